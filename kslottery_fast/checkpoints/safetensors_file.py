"""A safetensors file on disk: which tensors it holds, and their rows as views of the page cache."""

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import file_errors
from .tensors import STORED, RowReader, StoredTensor

MAX_HEADER = 100_000_000
"""The limit of the safetensors library for a header, in bytes."""
MAX_SIZE = 1 << 62
"""A limit for one dimension, which a tensor without numbers may claim. torch counts with an int64."""


@dataclass(frozen=True)
class FileTensor(StoredTensor):
    """A tensor in a safetensors file, with its rows one after the other.

    Attributes
    ----------
    path : Path
        The file.
    offset : int
        Where the tensor begins in the file.
    stamp : tuple of int
        Tells the file from one that replaces it.
    """

    path: Path
    offset: int
    stamp: tuple[int, ...]

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        with self.opened() as reader:
            return reader.rows(start, stop)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Open the file once for all blocks."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise file_errors.unreadable(self.path, error) from None
        with file:
            yield _Rows(file, self)


class _Rows:
    """The rows of a tensor as views of windows of its file."""

    def __init__(self, file: BinaryIO, tensor: FileTensor) -> None:
        self._file, self._tensor = file, tensor

    def rows(self, start: int, stop: int, /) -> Tensor:
        """Map rows start..stop."""
        file, tensor = self._file, self._tensor
        # Reading a page that the file no longer has kills the process (SIGBUS). So the file is looked at before every
        # block. What remains is a file that is cut short within the milliseconds that a block lives.
        if stamp_of(os.fstat(file.fileno())) != tensor.stamp:
            raise file_errors.changed(tensor.path)
        begin, nbytes = tensor.offset + start * tensor.row_bytes, (stop - start) * tensor.row_bytes
        dtype, shape = STORED[tensor.dtype], (stop - start, tensor.width)
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        # ACCESS_COPY: torch has no read-only tensors, and a stray write must not reach the file. A window is mapped and
        # not the whole file, as safetensors does: Linux refuses such a mapping that is larger than memory and swap, and
        # counts the pages that were read as memory of this process until its end.
        base = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            window = mmap.mmap(file.fileno(), begin - base + nbytes, access=mmap.ACCESS_COPY, offset=base)
        except OSError as error:
            raise file_errors.unreadable(tensor.path, error) from None
        block = torch.frombuffer(window, dtype=torch.uint8, count=nbytes, offset=begin - base)
        # The format does not align tensors, and the kernels need aligned numbers.
        return (block if begin % dtype.itemsize == 0 else block.clone()).view(dtype).view(shape)

    def read_ahead(self, start: int, stop: int, /) -> None:
        """Let the system fetch these rows from a cold disk while the rows before them are compared."""
        if hasattr(os, "posix_fadvise"):
            begin = self._tensor.offset + start * self._tensor.row_bytes
            length = (stop - start) * self._tensor.row_bytes
            os.posix_fadvise(self._file.fileno(), begin, length, os.POSIX_FADV_WILLNEED)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read which tensors a safetensors file holds.

    The file begins with the length of the header (8 bytes). The header, in JSON, and the data follow.

    Raises
    ------
    InputError
        The file cannot be read, is something else, or is refused by the safetensors library: it is cut short, has a
        damaged header, tensors that overlap or leave a gap, or a dtype that the library does not know.
    """
    try:
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > MAX_HEADER:
                raise file_errors.foreign(path, start)
            # This checks the whole header, which can be trusted from here on. (For "pt" torch maps the whole file.)
            safe_open(path, "np")
            text = file.read(length)
        if stamp_of(path.stat()) != stamp:
            raise file_errors.changed(path)
    except (OSError, MemoryError) as error:
        raise file_errors.unreadable(path, error) from None
    except SafetensorError as error:
        raise file_errors.damaged(path, str(error)) from None
    header: dict[str, Any] = json.loads(text)
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, stamp) for name, entry in header.items()}


def stamp_of(stat: os.stat_result) -> tuple[int, ...]:
    """What differs after a file was written to, cut short or replaced."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stored(path: Path, name: str, entry: dict[str, Any], data: int, stamp: tuple[int, ...]) -> StoredTensor:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    if max(shape, default=0) >= MAX_SIZE:
        raise InputError(f"{path} is damaged: tensor {name} has shape {shape}; {file_errors.AGAIN}")
    return FileTensor(str(path), name, entry["dtype"], tuple(shape), end - begin, path, data + begin, stamp)
