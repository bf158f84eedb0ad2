"""A safetensors file on disk: which tensors it holds, and the rows of a matrix block by block."""

import json
import mmap
import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kslottery_fast.base.arguments import check_integer, shown
from kslottery_fast.base.errors import InputError

from . import file_errors

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of the format that the kernels read. All others are integers or quantized."""
BLOCK_BYTES = 32 << 20
"""The size of a block of both tables: enough work for all threads, and small enough to stay in a cache."""

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MAX_SIZE = 1 << 62  # of one dimension, which a tensor without numbers may claim; torch counts with an int64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, with its rows one after the other.

    Attributes
    ----------
    path : Path
        The file.
    name : str
        The name of the tensor.
    dtype : str
        The code of the safetensors format, such as "BF16".
    shape : tuple of int
    offset, nbytes : int
        Where the tensor begins in the file, and how many bytes it takes.
    stamp : tuple of int
        Tells the file from one that replaces it.
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
            stamp = _stamp(os.fstat(file.fileno()))
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER:
                raise file_errors.foreign(path, start)
            # This checks the whole header, which can be trusted from here on. (For "pt" torch maps the whole file.)
            safe_open(path, "np")
            text = file.read(length)
        if _stamp(path.stat()) != stamp:
            raise file_errors.changed(path)
    except (OSError, MemoryError) as error:
        raise file_errors.unreadable(path, error) from None
    except SafetensorError as error:
        raise file_errors.damaged(path, str(error)) from None
    header: dict[str, Any] = json.loads(text)
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, stamp) for name, entry in header.items()}


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What differs after a file was written to, cut short or replaced."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stored(path: Path, name: str, entry: dict[str, Any], data: int, stamp: tuple[int, ...]) -> StoredTensor:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    if max(shape, default=0) >= _MAX_SIZE:
        raise InputError(f"{path} is damaged: tensor {name} has shape {shape}; {file_errors.AGAIN}")
    return StoredTensor(path, name, entry["dtype"], tuple(shape), data + begin, end - begin, stamp)


def check_reading(block_bytes: Any, progress: Any) -> None:
    """Refuse a block size that is not one, and a progress callback that cannot be called.

    Raises
    ------
    InputError
        ``block_bytes`` is below 1.
    TypeError
        ``block_bytes`` is no integer, or ``progress`` is neither a function nor None.
    """
    check_integer(block_bytes, "block_bytes", 1)
    # Models and tokenizers can be called too, but not with two numbers. Tokenizers have a length, functions have none.
    if progress is not None and (not callable(progress) or isinstance(progress, (torch.nn.Module, Sized))):
        raise TypeError(f"progress is {shown(progress)}: expected a function progress(done, total), or None")


def row_blocks(before: StoredTensor, after: StoredTensor, block_bytes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Read two matrices [V, d] in blocks of rows.

    The blocks are views of the page cache. So nothing is copied, no private memory is needed, and each byte is read
    once.

    Parameters
    ----------
    before, after : StoredTensor
        Two matrices with equally many rows.
    block_bytes : int
        A block has as many rows as fit in this, and at least one.

    Yields
    ------
    tuple of (int, Tensor, Tensor)
        The first row, the rows of ``before`` and the rows of ``after``. A view is valid until the next one is asked
        for.

    Raises
    ------
    InputError
        A file has changed or gone since its header was read.
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
        raise file_errors.unreadable(tensor.path, error) from None


def _block(file: BinaryIO, tensor: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows start..stop as a view of a window of the file."""
    # Reading a page that the file no longer has kills the process (SIGBUS). So the file is looked at before every
    # block. What remains is a file that is cut short within the milliseconds that a block lives.
    if _stamp(os.fstat(file.fileno())) != tensor.stamp:
        raise file_errors.changed(tensor.path)
    begin, nbytes = tensor.offset + start * tensor.row_bytes, (stop - start) * tensor.row_bytes
    dtype, shape = FLOATS[tensor.dtype], (stop - start, tensor.shape[1])
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


def _read_ahead(file: BinaryIO, tensor: StoredTensor, start: int, stop: int) -> None:
    """Let the system fetch these rows from a cold disk while the rows before them are compared."""
    if stop > start and hasattr(os, "posix_fadvise"):
        begin = tensor.offset + start * tensor.row_bytes
        os.posix_fadvise(file.fileno(), begin, (stop - start) * tensor.row_bytes, os.POSIX_FADV_WILLNEED)
