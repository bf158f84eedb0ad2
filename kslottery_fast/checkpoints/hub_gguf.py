"""A GGUF model on the Hugging Face Hub: the header by pieces, and then the bytes of the wanted rows."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import cast

from kslottery_fast.base.errors import InputError

from .gguf_file import GgufCheckpoint, Part, file_part, joined_parts, part_names
from .gguf_header import GgufEntry, parse_gguf_header
from .hub_client import HubFile
from .hub_repository import Repository
from .hub_tensor import HubTensor
from .tensors import StoredTensor

_PIECE = 1 << 20
"""Bytes that are fetched at a time. A header with the tokens of a large vocabulary has a few times as many."""
_MOST = 100_000_000  # bytes of a header, as in safetensors files


def open_hub_gguf(repository: Repository, name: str) -> GgufCheckpoint:
    """Open a GGUF file of a repository. If it is one of several parts of a model, all of them are opened.

    Raises
    ------
    InputError
        A part is missing, cut short or damaged, or the Hub does not give it. Or the package gguf is not installed.
    """
    names = part_names(name)
    for each in names:
        if each not in repository.names:
            raise InputError(f"{repository} lacks {each}, but {name} is one of {len(names)} parts of a model")
    return joined_parts(str(repository), [_part(repository.file(each)) for each in names])


def _part(file: HubFile | Path) -> Part:
    if isinstance(file, Path):  # in the cache
        return file_part(file)
    reader = io.BufferedReader(cast(io.RawIOBase, _Pieces(file)), _PIECE)
    header = parse_gguf_header(str(file), reader, file.measured())
    return Part(str(file), header, _in_file(file))


def _in_file(file: HubFile) -> Callable[[GgufEntry, str, tuple[int, ...], str], StoredTensor]:
    def place(entry: GgufEntry, dtype: str, shape: tuple[int, ...], note: str) -> StoredTensor:
        return HubTensor(str(file), entry.name, dtype, shape, entry.nbytes, file, entry.offset, note=note)

    return place


class _Pieces(io.RawIOBase):
    """A file on the Hub as one that can be read from its start. What is passed over is not fetched."""

    def __init__(self, file: HubFile) -> None:
        self._file, self._size, self._at, self._fetched = file, file.measured(), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        self._fetched += count
        if self._fetched > _MOST:
            raise InputError(f"{self._file} is damaged: its header has more than {_MOST:,} bytes; download it again")
        buffer[:count] = self._file.read(self._at, self._at + count)
        self._at += count
        return count
