"""A folder that torch.distributed.checkpoint (DCP) saved: what it holds, and its tensors through torch's own reader."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import file_errors
from .memory_tensor import dtype_code
from .tensors import STORED, RowReader, StoredTensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

METADATA = ".metadata"
"""The file of such a folder that says which tensors it holds."""
_CLASSES = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed._shard.sharded_tensor.metadata": ("MEM_FORMAT_ENCODING", "TensorProperties"),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "collections": ("OrderedDict",),
}
"""What .metadata may name. torch reads this file with an unrestricted pickle.load, which can run any code."""


@dataclass(frozen=True)
class SavedTensor(StoredTensor):
    """A tensor in a DCP folder. It was saved in one piece, or in one piece for each process.

    Attributes
    ----------
    folder : Path
        The folder.
    metadata : Metadata
        torch's description of the whole folder.
    """

    folder: Path
    metadata: Metadata = field(compare=False, repr=False)

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        with self.opened() as reader:
            return reader.rows(start, stop)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Keep the pieces of a block. torch reads each piece whole, so it is read once for all blocks in it."""
        yield _Pieces(self)


class _Pieces:
    """Reads rows of a tensor from the pieces that hold them."""

    def __init__(self, tensor: SavedTensor) -> None:
        self._tensor = tensor
        self._pieces = tensor.metadata.state_dict_metadata[tensor.name].chunks  # type: ignore[union-attr]
        self._held: dict[int, Tensor] = {}

    def rows(self, start: int, stop: int, /) -> Tensor:
        """Put the rows together."""
        tensor = self._tensor
        if len(tensor.shape) != 2:  # in such a tensor a piece may hold parts of many rows
            return self._together(range(len(self._pieces)), 0, tensor.shape)[start:stop]
        wanted = [
            number
            for number, piece in enumerate(self._pieces)
            if piece.offsets[0] < stop and start < piece.offsets[0] + piece.sizes[0]
        ]
        return self._together(wanted, start, (stop - start, tensor.shape[1]))

    def read_ahead(self, start: int, stop: int, /) -> None:
        """A piece is read when its first row is needed."""

    def _together(self, numbers: Any, start: int, shape: tuple[int, ...]) -> Tensor:
        """The part of the tensor with this shape that begins at row ``start``, from the pieces that touch it."""
        self._held = {number: piece for number, piece in self._held.items() if number in numbers}
        whole = torch.empty(shape, dtype=STORED[self._tensor.dtype])
        for number in numbers:
            piece = self._pieces[number]
            if number not in self._held:
                self._held[number] = _read_piece(self._tensor, piece)
            part, place = self._held[number], list(piece.offsets)
            if shape and len(shape) == 2:
                before, begin = max(0, start - place[0]), max(0, place[0] - start)
                part = part[before : before + shape[0] - begin]
                place[0] = begin
            whole[tuple(slice(at, at + size) for at, size in zip(place, part.shape, strict=True))] = part
        return whole if len(shape) == 2 else whole.reshape(self._tensor.height, self._tensor.width)


def read_saved(folder: Path) -> dict[str, StoredTensor]:
    """Read which tensors a DCP folder holds.

    Raises
    ------
    InputError
        Its description cannot be read, is damaged, or names what it need not.
    """
    path = folder / METADATA
    try:
        # Not from the file itself, which would make room for as many bytes as a damaged length says.
        metadata = _Restricted(io.BytesIO(path.read_bytes())).load()
        found = metadata.state_dict_metadata
        tensors = {name: item for name, item in found.items() if hasattr(item, "chunks")}
        _check_size(folder, metadata, tensors)
        return {name: _stored(folder, name, item, metadata) for name, item in tensors.items()}
    except InputError:
        raise
    except OSError as error:
        raise file_errors.unreadable(path, error) from None
    except Exception as error:  # whatever a pickle of other content raises
        raise InputError(
            f"{path} is not what torch.distributed.checkpoint writes ({type(error).__name__}); {file_errors.AGAIN}"
        ) from None


class _Restricted(pickle._Unpickler):
    """Reads the description of a folder, and refuses a pickle that names anything else.

    It is the one in Python. That in C makes a list as long as the largest index in the file says, which may be any.
    Both make room for a bytearray before they read it, and a description has none.
    """

    dispatch: ClassVar[Any] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names, if a description needs it."""
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePath  # a path of the system that saved it
        known = name in _CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)
        )
        if not known:
            raise InputError(
                f"the {METADATA} of a torch.distributed.checkpoint folder names {module}.{name}, which could run code: "
                "it is not read"
            )
        return super().find_class(module, name)


def _stored(folder: Path, name: str, item: Any, metadata: Metadata) -> SavedTensor:
    shape, dtype = tuple(item.size), item.properties.dtype
    _check_pieces(folder, name, shape, item.chunks)
    nbytes = dtype.itemsize * item.size.numel()
    return SavedTensor(str(folder), name, dtype_code(dtype), shape, nbytes, folder, metadata)


def _check_size(folder: Path, metadata: Metadata, tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that take more bytes than the folder has, before there is room made for one."""
    stored = metadata.storage_data.values()
    if any(getattr(each, "transform_descriptors", None) for each in stored):
        return  # they may be compressed
    if not all((folder / each.relative_path).exists() for each in stored):
        return  # whoever reads a tensor is told which file is missing
    held = sum(file.stat().st_size for file in folder.iterdir())
    for name, item in tensors.items():
        needed = item.properties.dtype.itemsize * math.prod(item.size)
        if needed > held:
            raise InputError(
                f"{folder} is damaged: tensor {name} takes {needed:,} bytes, and all files of the folder have "
                f"{held:,}; {file_errors.AGAIN}"
            )


def _check_pieces(folder: Path, name: str, shape: tuple[int, ...], pieces: Sequence[ChunkStorageMetadata]) -> None:
    """Refuse pieces that leave a part of the tensor open, which would hold whatever was in memory."""
    inside = all(
        len(piece.offsets) == len(piece.sizes) == len(shape)
        and all(0 <= at <= at + size <= end for at, size, end in zip(piece.offsets, piece.sizes, shape, strict=True))
        for piece in pieces
    )
    if not inside or sum(math.prod(piece.sizes) for piece in pieces) != math.prod(shape):
        raise InputError(
            f"{folder / METADATA} is damaged: the pieces of tensor {name} do not make up its shape {list(shape)}; "
            f"{file_errors.AGAIN}"
        )


def _read_piece(tensor: SavedTensor, piece: ChunkStorageMetadata) -> Tensor:
    """Let torch read a piece of a tensor."""
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

    class Planner(DefaultLoadPlanner):
        """Gives torch the place to put the numbers."""

        def resolve_tensor(self, read_item: ReadItem) -> Tensor:
            return values

        def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
            pass

    values = torch.empty(piece.sizes, dtype=STORED[tensor.dtype])
    where = MetadataIndex(tensor.name, piece.offsets)
    nowhere = torch.Size([0] * len(piece.sizes))
    item = ReadItem(LoadItemType.TENSOR, where, nowhere, where, nowhere, piece.sizes)
    reader = FileSystemReader(tensor.folder)
    try:
        reader.set_up_storage_reader(tensor.metadata, is_coordinator=True)
        reader.read_data(LoadPlan([item]), Planner()).wait()
    except Exception as error:  # KeyError, RuntimeError, OSError, UnpicklingError, ... of a file that is damaged
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise InputError(
            f"{tensor} cannot be read ({type(error).__name__}: {lines[0][:160]}): a file of the folder is missing or "
            f"damaged; {file_errors.AGAIN}"
        ) from None
    return values
