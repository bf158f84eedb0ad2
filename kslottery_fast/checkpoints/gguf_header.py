"""The header of a GGUF file: which tensors it holds, of which types, and where their bytes are."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab

from . import file_errors
from .safetensors_file import MAX_SIZE, stamp_of

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # of the library that defines the format
_MAX_COUNT = 1 << 20  # of tensors, or of entries: far more than any model has
_MOST_TEXT = 64 << 20  # bytes of one text: a damaged length must not ask for memory
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of entries that are one number, as struct knows them."""
_MAX_NESTED = 4  # arrays of arrays, which no writer makes


@dataclass(frozen=True)
class GgufEntry:
    """What the header of a GGUF file says of a tensor.

    Attributes
    ----------
    name : str
    type_name : str
        What the format calls the type of its numbers, such as "Q4_K".
    shape : tuple of int
        Rows first, as torch has it. The file has it in the other direction.
    offset, nbytes, row_bytes : int
        Where the tensor begins in the file, and how many bytes it and one of its rows take. They are 0 for a type that
        is unknown here.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    row_bytes: int


@dataclass
class GgufHeader:
    """What a GGUF file says before its data.

    Attributes
    ----------
    tensors : dict of str to GgufEntry
    entries : dict of str to str or number
        The metadata. Of an array only its length is kept.
    """

    tensors: dict[str, GgufEntry] = field(default_factory=dict)
    entries: dict[str, str | float] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The kind of model, such as "llama". It is empty if the file does not say."""
        found = self.entries.get("general.architecture", "")
        return found if isinstance(found, str) else ""

    def count(self, key: str) -> int:
        """An entry that is a count, such as ``split.count``. It is 0 if the file has none."""
        found = self.entries.get(key, 0)
        return int(found) if isinstance(found, int) else 0


def read_gguf_header(path: Path) -> tuple[GgufHeader, tuple[int, ...]]:
    """Read which tensors a GGUF file holds. The tokens and all data are passed over.

    Returns
    -------
    tuple of (GgufHeader, tuple of int)
        The header, and what tells the file from one that replaces it.

    Raises
    ------
    InputError
        The file cannot be read, is cut short or damaged, or is of a version that is unknown here. Or the package gguf
        is not installed.
    """
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            return parse_gguf_header(str(path), file, stat.st_size), stamp_of(stat)
    except OSError as error:
        raise file_errors.unreadable(path, error) from None


def parse_gguf_header(label: str, file: BinaryIO | BufferedReader, size: int) -> GgufHeader:
    """Read the header of an open GGUF file of so many bytes. Messages call it ``label``.

    Raises
    ------
    InputError
        As :func:`read_gguf_header`.
    """
    require_lab(f"{label} is a GGUF file, and reading it", "gguf", extra="gguf")
    return _Reader(label, file, size).header()


class _Reader:
    """Reads a header from its start. All lengths are checked against the size of the file."""

    def __init__(self, label: str, file: BinaryIO | BufferedReader, size: int) -> None:
        self._path, self._file, self._size = label, file, size

    def header(self) -> GgufHeader:
        if self._file.read(4) != MAGIC:
            raise InputError(f"{self._path} is not a GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise InputError(
                f"{self._path} is GGUF of version {version}: expected 2 or 3, little-endian; convert the model again "
                "with a newer llama.cpp"
            )
        tensors, entries = self._count("Q", _MAX_COUNT), self._count("Q", _MAX_COUNT)
        header = GgufHeader()
        for _ in range(entries):
            key, kind = self._text(), self._number("I")
            header.entries[key] = self._entry(kind)
        found = [self._tensor() for _ in range(tensors)]
        alignment = header.count("general.alignment") or 32
        if alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment}")
        data = -(-self._file.tell() // alignment) * alignment
        for name, raw_type, shape, offset in found:
            if name in header.tensors:
                raise self._damaged(f"it holds tensor {name} twice")
            header.tensors[name] = self._placed(name, raw_type, shape, data + offset)
        return header

    def _entry(self, kind: int, depth: int = 0) -> str | float:
        if kind == _STRING:
            return self._text()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _ARRAY or depth > _MAX_NESTED:
            raise self._damaged(f"it has an entry of type {kind}")
        inside, length = self._number("I"), self._count("Q")
        if inside in _NUMBERS:
            self._skip(length * struct.calcsize(_NUMBERS[inside]))
        elif inside == _STRING:
            for _ in range(length):
                self._skip(self._count("Q"))
        else:
            for _ in range(length):
                self._entry(inside, depth + 1)
        return length

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._text(), self._count("I", _MAX_DIMENSIONS)
        shape = tuple(self._number("Q") for _ in range(dimensions))
        raw_type, offset = self._number("I"), self._number("Q")
        if max(shape, default=0) >= MAX_SIZE:
            raise self._damaged(f"tensor {name} has shape {list(shape[::-1])}")
        return name, raw_type, shape[::-1], offset

    def _placed(self, name: str, raw_type: int, shape: tuple[int, ...], begin: int) -> GgufEntry:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(raw_type)
        except ValueError:
            return GgufEntry(name, f"type {raw_type}", shape, begin, 0, 0)
        together, nbytes = GGML_QUANT_SIZES[kind]
        width = shape[-1] if shape else 1
        if width % together:
            raise self._damaged(f"tensor {name} of type {kind.name} has rows of {width} numbers")
        row_bytes = width // together * nbytes
        nbytes = row_bytes * math.prod(shape[:-1])
        if begin + nbytes > self._size:
            raise self._cut_short()
        return GgufEntry(name, kind.name, shape, begin, nbytes, row_bytes)

    def _number(self, code: str) -> int:
        nbytes = struct.calcsize(code)
        read = self._file.read(nbytes)
        if len(read) < nbytes:
            raise self._cut_short()
        (value,) = struct.unpack("<" + code, read)
        return value

    def _count(self, code: str, limit: int | None = None) -> int:
        """A number of things that follow, each of which takes a byte or more."""
        count = self._number(code)
        if limit is not None and count > limit:
            raise self._damaged(f"it claims {count} parts where at most {limit} are possible")
        if count > self._size:
            raise self._cut_short()
        return count

    def _text(self) -> str:
        length = self._count("Q")
        if length > _MOST_TEXT:
            raise self._damaged(f"a text in its header claims {length:,} bytes")
        read = self._file.read(length)
        if len(read) < length:
            raise self._cut_short()
        try:
            return read.decode()
        except UnicodeDecodeError:
            raise self._damaged("a name in its header is not UTF-8") from None

    def _skip(self, nbytes: int) -> None:
        if self._file.tell() + nbytes > self._size:
            raise self._cut_short()
        self._file.seek(nbytes, os.SEEK_CUR)

    def _cut_short(self) -> InputError:
        return InputError(
            f"{self._path} is cut short: its header tells of more than its {self._size:,} bytes; {file_errors.AGAIN}"
        )

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._path} is damaged: {what}; {file_errors.AGAIN}")
