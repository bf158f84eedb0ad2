"""Safetensors checkpoints on disk: which tensors they hold, and the rows of one, block by block.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of the format that the kernels read; all others are integers or quantized."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BLOCK_BYTES = 32 << 20
"""Of both tables together: enough for all threads to work on, little enough to stay in a cache."""

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MAX_SIZE = 1 << 62  # of one dimension, which a tensor without numbers may claim; torch counts with an int64
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_AGAIN = "copy or download it again"
_SHOWN = 300  # letters of a path that the system refuses


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``nbytes`` bytes from ``offset`` in the file ``path``, rows one after the other.

    ``dtype`` is the code of the safetensors format, such as "BF16"; ``stamp`` tells the file from what may replace it.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stamp: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path}, tensor {self.name}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a matrix."""
        return self.nbytes // self.shape[0] if self.shape[0] else 0


class Checkpoint:
    """The tensors of a checkpoint by name. The headers of its files are read when they are needed."""

    def __init__(self, path: Path, files: Mapping[str, Path], index: Path | None = None) -> None:
        self.path, self.files, self.index = path, files, index
        self.folder = path if path.is_dir() else path.parent
        self._headers: dict[Path, dict[str, StoredTensor]] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        """The tensor ``name``, which must be one of ``self.files``."""
        file = self.files[name]
        if self.index is not None and not _exists(file):
            raise InputError(f"{file}: no such file, but {self.index} names it: the checkpoint lacks a shard; {_AGAIN}")
        if file not in self._headers:
            self._headers[file] = read_header(file)
        if name not in self._headers[file]:
            raise InputError(
                f"{file} has no tensor {name}, but {self.index} says so: they are of different checkpoints"
            )
        return self._headers[file][name]

    def matrices(self) -> list[StoredTensor]:
        """All 2-D tensors of a floating dtype, sorted by name."""
        tensors = (self[name] for name in sorted(self.files))
        return [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.dtype in FLOATS]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint from a .safetensors file, the index of a sharded one, or a Hugging Face folder.

    In a folder the order is that of transformers: ``model.safetensors``, then its index, then the only
    other ``.safetensors`` file.

    Raises
    ------
    InputError
        Nothing there, or something else: a pickle, a GGUF file, an adapter, a Git LFS pointer, a file that
        is cut short. The message names the file and says what to do.
    """
    path = Path(path)
    if not _exists(path):
        raise InputError(
            f"{path}: no such file or folder; a model of the Hugging Face Hub must be downloaded first "
            "(hf download NAME --local-dir FOLDER)"
        )
    if path.is_dir():
        return _folder(path)
    if path.name.endswith(".index.json"):
        return _sharded(path, path)
    if path.suffix in _PICKLES:
        raise _pickle(path)
    return Checkpoint(path, dict.fromkeys(read_header(path), path))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds: 8 bytes with the length of the header, the header in JSON, the data.

    Raises
    ------
    InputError
        The file cannot be read, is something else, or is one that the safetensors library refuses: cut short, a damaged
        header, tensors that overlap or leave a gap, a dtype that it does not know.
    """
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER:
                raise _foreign(path, start)
            # It looks at all of the header, which may then be taken at its word. (For "pt" torch maps the whole file.)
            safe_open(path, "np")
            text = file.read(length)
        if _stamp(path.stat()) != stamp:
            raise _changed(path)
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    header: dict[str, Any] = json.loads(text)
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, stamp) for name, entry in header.items()}


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What differs once a file was written to, cut short or replaced."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stored(path: Path, name: str, entry: dict[str, Any], data: int, stamp: tuple[int, ...]) -> StoredTensor:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    if max(shape, default=0) >= _MAX_SIZE:
        raise InputError(f"{path} is damaged: tensor {name} has shape {shape}; {_AGAIN}")
    return StoredTensor(path, name, entry["dtype"], tuple(shape), data + begin, end - begin, stamp)


def check_block_bytes(block_bytes: Any) -> None:
    """Refuse what is no size of a block for :func:`row_blocks`.

    Raises
    ------
    InputError
        Not an int of at least 1.
    """
    if isinstance(block_bytes, bool) or not isinstance(block_bytes, int) or block_bytes < 1:
        raise InputError(f"block_bytes is {block_bytes!r}: expected a number of bytes of at least 1")


def row_blocks(before: StoredTensor, after: StoredTensor, block_bytes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Both matrices [V, d] in blocks of as many rows as fit in ``block_bytes``, at least one.

    Yields (first row, rows of before, rows of after), views of the page cache: no copy, hence no private
    memory, and each byte is read once. A view is valid until the next one is asked for.

    Raises
    ------
    InputError
        A file that has changed or gone since its header was read.
    """
    V = before.shape[0]
    step = max(1, block_bytes // max(1, before.row_bytes + after.row_bytes))
    with _opened(before) as first, _opened(after) as second:
        for start in range(0, V, step):
            stop = min(V, start + step)
            for file, tensor in ((first, before), (second, after)):
                _read_ahead(file, tensor, stop, min(V, stop + step))
            yield start, _block(first, before, start, stop), _block(second, after, start, stop)


def _opened(tensor: StoredTensor) -> BinaryIO:
    try:
        return tensor.path.open("rb")
    except OSError as error:
        raise _unreadable(tensor.path, error) from None


def _block(file: BinaryIO, tensor: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows start..stop as a view of a window of the file."""
    # Reading a page that the file no longer has kills the process (SIGBUS). So the file is looked at before
    # every block; what remains is a file cut short within the milliseconds that a block lives.
    if _stamp(os.fstat(file.fileno())) != tensor.stamp:
        raise _changed(tensor.path)
    begin, nbytes = tensor.offset + start * tensor.row_bytes, (stop - start) * tensor.row_bytes
    dtype, shape = FLOATS[tensor.dtype], (stop - start, tensor.shape[1])
    if nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    # ACCESS_COPY: torch has no read-only tensors, and a stray write must not reach the file. A window and not
    # safetensors' slice of the whole file: Linux refuses to map more than memory and swap like that, and the pages
    # that were read would count as this process's to the end.
    base = begin - begin % mmap.ALLOCATIONGRANULARITY
    try:
        window = mmap.mmap(file.fileno(), begin - base + nbytes, access=mmap.ACCESS_COPY, offset=base)
    except OSError as error:
        raise _unreadable(tensor.path, error) from None
    block = torch.frombuffer(window, dtype=torch.uint8, count=nbytes, offset=begin - base)
    # The format does not align tensors; the kernels need aligned numbers.
    return (block if begin % dtype.itemsize == 0 else block.clone()).view(dtype).view(shape)


def _read_ahead(file: BinaryIO, tensor: StoredTensor, start: int, stop: int) -> None:
    """Let the system fetch these rows from a cold disk while the rows before them are compared."""
    if stop > start and hasattr(os, "posix_fadvise"):
        begin = tensor.offset + start * tensor.row_bytes
        os.posix_fadvise(file.fileno(), begin, (stop - start) * tensor.row_bytes, os.POSIX_FADV_WILLNEED)


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that the system cannot take is an InputError."""
    try:
        return path.exists()
    except OSError as error:
        shown = str(path) if len(str(path)) < _SHOWN else f"{str(path)[:_SHOWN]}..."
        raise InputError(f"{shown} cannot be read: {error.strerror}") from None


def _folder(folder: Path) -> Checkpoint:
    if (folder / SINGLE).exists():
        return Checkpoint(folder, dict.fromkeys(read_header(folder / SINGLE), folder / SINGLE))
    if (folder / INDEX).exists():
        return _sharded(folder, folder / INDEX)
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} holds an adapter, not a model: merge it into its base model (peft's merge_and_unload, or "
            "merge_rows) and save that"
        )
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return Checkpoint(folder, dict.fromkeys(read_header(found[0]), found[0]))
    if found:
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "")
        raise InputError(f"{folder} has {len(found)} safetensors files and no {INDEX}: pass one of them ({names})")
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLES and not file.name.startswith(("training_args", "optimizer", "scheduler")):
            raise _pickle(file)
        if file.suffix == ".gguf":
            raise _gguf(file)
    raise InputError(f"{folder} holds no checkpoint: neither {SINGLE} nor {INDEX} is there")


def _sharded(path: Path, index: Path) -> Checkpoint:
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} is not the index of a checkpoint: expected weight_map, a file name for each tensor")
    for shard in shards.values():
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise InputError(f"{index} names the shard {shard}, which lies outside its folder")
        if Path(shard).suffix in _PICKLES:
            raise _pickle(index.parent / shard)
    return Checkpoint(path, {name: index.parent / shard for name, shard in shards.items()}, index)


def _unreadable(path: Path, error: OSError | MemoryError) -> InputError:
    return InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read: something else writes it; try again")


def _damaged(path: Path, reason: str) -> InputError:
    if "unknown variant `" in reason:  # the only names that the format lists are those of dtypes
        dtype = reason.split("`")[1]
        return InputError(
            f"{path} holds a tensor of dtype {dtype}, which safetensors {safetensors.__version__} does not know: "
            "upgrade safetensors"
        )
    return InputError(f"{path} is cut short or damaged ({reason}); {_AGAIN}")


def _pickle(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle, which can run code when it is read, so it is not read here; if you trust it, convert it: "
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}).save_pretrained(NEW_FOLDER) writes safetensors"
    )


def _gguf(path: Path) -> InputError:
    return InputError(
        f"{path} is a GGUF file: load it with transformers (from_pretrained(..., gguf_file=...)) and "
        "save it as safetensors, or use the checkpoint that it was made from"
    )


def _foreign(path: Path, start: bytes) -> InputError:
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return _pickle(path)
    if start.startswith(b"GGUF"):
        return _gguf(path)
    if start == b"version ":
        return InputError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder")
    if len(start) < 8:
        return InputError(f"{path} is cut short: it has {len(start)} bytes; {_AGAIN}")
    return InputError(f"{path} is not a safetensors file; expected one, the index of a sharded checkpoint, or a folder")
