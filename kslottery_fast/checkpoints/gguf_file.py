"""A GGUF file on disk: its tensors, floats as they are stored and quantized rows through the package gguf."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    parts = [(part, *read_gguf_header(part)) for part in _parts(path)]
    header = parts[0][1]
    if header.entries.get("general.type") == "adapter":
        raise InputError(f"{path} is an adapter in GGUF, which is not read here; give the adapter in the form of PEFT")
    tensors: dict[str, StoredTensor] = {}
    for part, read, stamp in parts:
        for name, entry in read.tensors.items():
            if name in tensors:
                raise InputError(f"{part} holds tensor {name}, which another part holds too: they are of two models")
            tensors[name] = _stored(part, entry, stamp)
    checkpoint = GgufCheckpoint(str(path), tensors, lambda: _config(tensors, header))
    checkpoint.header = header
    return checkpoint


def first_part(path: Path) -> Path:
    """The first file of a model that llama-gguf-split has cut, or the file itself.

    Examples
    --------
    >>> first_part(Path("m-00002-of-00003.gguf")).name, first_part(Path("m.gguf")).name
    ('m-00001-of-00003.gguf', 'm.gguf')
    """
    return path.with_name(_PART.sub(r"-00001-of-\2.gguf", path.name))


def _parts(path: Path) -> list[Path]:
    """The files of a model that llama-gguf-split has cut, or the only file."""
    found = _PART.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[2])
    parts = [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.exists():
            raise InputError(f"{part}: no such file, but {path.name} is one of {count} parts of a model")
    return parts


def _stored(path: Path, entry: GgufEntry, stamp: tuple[int, ...]) -> StoredTensor:
    """The tensor of an entry. It has no floats if its type is not decoded, and a note that says why."""
    about = (str(path), entry.name)
    if decodable(entry.type_name):
        raw = FileTensor(*about, "U8", (*entry.shape[:-1], entry.row_bytes), entry.nbytes, path, entry.offset, stamp)
        return GgufTensor(*about, entry.type_name, entry.shape, entry.nbytes, raw, note=f"GGUF {entry.type_name}")
    note = ""
    if entry.type_name not in (*FLOATS, "I8", "I16", "I32", "I64"):
        note = (
            f"is of the GGUF type {entry.type_name}, which the package gguf {version('gguf')} does not decode: upgrade "
            "gguf, or compare the checkpoint that the file was made from"
        )
    return FileTensor(*about, entry.type_name, entry.shape, entry.nbytes, path, entry.offset, stamp, note=note)


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
