"""A GGUF file on disk: its tensors, floats as they are stored and quantized rows through the package gguf."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from .checkpoint import Checkpoint
from .gguf_header import GgufEntry, GgufHeader, read_gguf_header
from .safetensors_file import FileTensor
from .tensors import FLOATS, RowReader, StoredTensor

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class GgufCheckpoint(Checkpoint):
    """A model in the GGUF format. Its tensors have the names of llama.cpp.

    Attributes
    ----------
    header : GgufHeader
        What the (first) file says of the model.
    """

    header: GgufHeader


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A quantized tensor of a GGUF file.

    Attributes
    ----------
    stored : StoredTensor
        Its rows as bytes.
    """

    stored: StoredTensor

    @property
    def floats(self) -> torch.dtype:
        """The package gguf returns float32."""
        return torch.float32

    @property
    def remote(self) -> bool:
        """See :attr:`StoredTensor.remote`."""
        return self.stored.remote

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        with self.opened() as reader:
            return reader.rows(start, stop)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Open the file once for all blocks."""
        with self.stored.opened() as reader:
            yield _Rows(reader, self)


class _Rows:
    """The rows of a quantized tensor as numbers."""

    def __init__(self, reader: RowReader, tensor: GgufTensor) -> None:
        from gguf import GGMLQuantizationType

        self._reader, self._width, self._kind = reader, tensor.width, GGMLQuantizationType[tensor.dtype]

    def rows(self, start: int, stop: int, /) -> Tensor:
        from gguf.quants import dequantize

        raw = self._reader.rows(start, stop)
        if raw.numel() == 0:
            return torch.empty(stop - start, self._width)
        return torch.from_numpy(dequantize(raw.numpy(), self._kind))

    def read_ahead(self, start: int, stop: int, /) -> None:
        self._reader.read_ahead(start, stop)


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF file. If it is one of several parts of a model, all of them are opened.

    Raises
    ------
    InputError
        A file or part is missing, cut short or damaged. Or the package gguf is not installed.
    """
    parts = [path.with_name(name) for name in part_names(path.name)]
    for part in parts:
        if len(parts) > 1 and not part.exists():
            raise InputError(f"{part}: no such file, but {path.name} is one of {len(parts)} parts of a model")
    return joined_parts(str(path), [file_part(part) for part in parts])


class Part(NamedTuple):
    """One file of a model.

    Attributes
    ----------
    label : str
        What messages call it.
    header : GgufHeader
    place : callable
        Makes the tensor of an entry, from the entry, and the dtype, shape and note that it gets.
    """

    label: str
    header: GgufHeader
    place: Callable[[GgufEntry, str, tuple[int, ...], str], StoredTensor]


def file_part(path: Path) -> Part:
    """Read the header of a file on disk.

    Raises
    ------
    InputError
        As :func:`open_gguf`.
    """
    header, stamp = read_gguf_header(path)

    def place(entry: GgufEntry, dtype: str, shape: tuple[int, ...], note: str) -> StoredTensor:
        return FileTensor(str(path), entry.name, dtype, shape, entry.nbytes, path, entry.offset, stamp, note=note)

    return Part(str(path), header, place)


def joined_parts(source: str, parts: Sequence[Part]) -> GgufCheckpoint:
    """Make one checkpoint of the files of a model. ``source`` is what the user named.

    Raises
    ------
    InputError
        It is an adapter, or two files hold a tensor of the same name.
    """
    header = parts[0].header
    if header.entries.get("general.type") == "adapter":
        raise InputError(
            f"{source} is an adapter in GGUF, which is not read here; give the adapter in the form of PEFT"
        )
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        for name, entry in part.header.tensors.items():
            if name in tensors:
                raise InputError(
                    f"{part.label} holds tensor {name}, which another part holds too: they are of two models"
                )
            tensors[name] = _stored(part, entry)
    checkpoint = GgufCheckpoint(source, tensors, lambda: _config(tensors, header))
    checkpoint.header = header
    return checkpoint


def first_part(name: str) -> str:
    """The name of the first file of a model that llama-gguf-split has cut, or of the file itself.

    Examples
    --------
    >>> first_part("m-00002-of-00003.gguf"), first_part("m.gguf")
    ('m-00001-of-00003.gguf', 'm.gguf')
    """
    return _PART.sub(r"-00001-of-\2.gguf", name)


def part_names(name: str) -> list[str]:
    """The names of the files of a model that llama-gguf-split has cut, or of the only file.

    Examples
    --------
    >>> part_names("m-00002-of-00002.gguf"), part_names("m.gguf")
    (['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf'], ['m.gguf'])
    """
    found = _PART.search(name)
    if found is None:
        return [name]
    stem, count = name[: found.start()], int(found[2])
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _stored(part: Part, entry: GgufEntry) -> StoredTensor:
    """The tensor of an entry. It has no floats if its type is not decoded, and a note that says why."""
    if decodable(entry.type_name):
        raw = part.place(entry, "U8", (*entry.shape[:-1], entry.row_bytes), "")
        about = (raw.source, entry.name, entry.type_name, entry.shape, entry.nbytes)
        return GgufTensor(*about, raw, note=f"GGUF {entry.type_name}")
    note = ""
    if entry.type_name not in (*FLOATS, "I8", "I16", "I32", "I64"):
        note = (
            f"is of the GGUF type {entry.type_name}, which the package gguf {version('gguf')} does not decode: upgrade "
            "gguf, or compare the checkpoint that the file was made from"
        )
    return part.place(entry, entry.type_name, entry.shape, note)


@cache
def decodable(type_name: str) -> bool:
    """Tell whether the package gguf decodes a quantized type.

    Examples
    --------
    >>> decodable("Q4_K"), decodable("Q8_1"), decodable("F32"), decodable("type 99")
    (True, False, False, False)
    """
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    if type_name in FLOATS or type_name not in GGMLQuantizationType.__members__:
        return False
    kind = GGMLQuantizationType[type_name]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _config(tensors: Mapping[str, StoredTensor], header: GgufHeader) -> dict[str, Any]:
    """What config.json would say: llama.cpp takes the embedding for the head where no head is stored."""
    return {"model_type": header.architecture, "tie_word_embeddings": HEAD not in tensors}
