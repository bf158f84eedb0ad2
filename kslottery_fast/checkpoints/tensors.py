"""A tensor in a checkpoint, and its rows block by block. Each format has a class of its own, in a file of its own."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_integer, shown

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that the kernels read, by their codes in the safetensors format. All others are integers or quantized."""
STORED = {
    **FLOATS,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
if hasattr(torch, "float8_e8m0fnu"):  # since torch 2.7
    STORED["F8_E8M0"] = torch.float8_e8m0fnu
"""The dtypes whose rows can be read as they are stored, to be decoded: the bytes of GGUF, and 8-bit floats."""
CODES = {dtype: code for code, dtype in FLOATS.items()}
BLOCK_BYTES = 32 << 20
"""The size of a block of both tables: enough work for all threads, and small enough to stay in a cache."""


class RowReader(Protocol):
    """Reads the rows of one tensor while its file or connection is open."""

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`. A block is valid until the next one is asked for."""

    def read_ahead(self, start: int, stop: int, /) -> None:
        """Start to fetch these rows, which are asked for next, and do not wait for them."""


@dataclass(frozen=True)
class StoredTensor(ABC):
    """A tensor in a checkpoint, seen as rows.

    The last dimension is that of the rows: a tensor [V, d] has V rows, and a tensor [E, V, d] has E * V rows. A vector
    is one row.

    Attributes
    ----------
    source : str
        The file or address, as messages show it.
    name : str
        The name of the tensor.
    dtype : str
        How the numbers are stored: a code of the safetensors format, such as "BF16", or the name of a quantization.
    shape : tuple of int
        The shape of the tensor.
    nbytes : int
        How many bytes are read for the whole tensor.
    note : str
        A remark on its numbers, such as how they were quantized. Empty if there is none.
    """

    source: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    note: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return f"{self.source}, tensor {self.name}"

    @property
    def floats(self) -> torch.dtype | None:
        """The dtype in which :meth:`rows` returns the numbers. None if they are no floats and cannot be read."""
        return FLOATS.get(self.dtype)

    @property
    def remote(self) -> bool:
        """Whether the rows are fetched from another machine."""
        return False

    @property
    def height(self) -> int:
        """The number of rows."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return self.shape[-1] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes that are read for a row, rounded down."""
        return self.nbytes // self.height if self.height else 0

    @abstractmethod
    def rows(self, start: int, stop: int, /) -> Tensor:
        """Read rows ``start`` to ``stop`` (exclusive).

        Returns
        -------
        Tensor
            [stop - start, width] of the dtype :attr:`floats`, on the CPU. Nobody may write to it.

        Raises
        ------
        InputError
            The rows cannot be read, or the file is another one than before.
        """

    def read_ahead(self, start: int, stop: int, /) -> None:  # noqa: B027 (most formats have nothing to prepare)
        """See :class:`RowReader`. Without anything to prepare it does nothing."""

    def derived_from(self, other: "StoredTensor") -> Callable[[int, Tensor], Tensor] | None:
        """Return what makes rows of this tensor from those of another one, their first row and themselves.

        None if the rows have to be read. Rows that are derived are not read a second time. An adapter leaves most
        tensors of its base as they are, and these are the same object in both checkpoints.
        """
        return (lambda start, block: block) if other is self else None

    def opened(self) -> AbstractContextManager[RowReader]:
        """Keep open what reading block after block needs. Each file or connection is opened once."""
        return nullcontext(self)


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


def row_blocks(
    before: StoredTensor, after: StoredTensor, block_bytes: int, only: Container[int] | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Read the rows that two tensors both have, in blocks.

    Blocks of a local safetensors file are views of the page cache: nothing is copied, no private memory is needed, and
    each byte is read once.

    Parameters
    ----------
    before, after : StoredTensor
        Two tensors with rows of one length. The rows that only the taller one has are not read.
    block_bytes : int
        A block has as many rows as fit in this, and at least one.
    only : container of int, optional
        The first rows of the blocks that are read. Without it, all are.

    Yields
    ------
    tuple of (int, Tensor, Tensor)
        The first row, the rows of ``before`` and the rows of ``after``. A block is valid until the next one is asked
        for.

    Raises
    ------
    InputError
        A file has changed or gone since its header was read, or a connection broke.
    """
    V = min(before.height, after.height)
    step = max(1, block_bytes // max(1, _held_bytes(before) + _held_bytes(after)))
    derive = after.derived_from(before)
    with before.opened() as first, nullcontext(first) if derive else after.opened() as second:
        starts = [start for start in range(0, V, step) if only is None or start in only]
        for start, following in zip_longest(starts, starts[1:]):
            if following is not None:
                for reader in (first,) if derive else (first, second):
                    reader.read_ahead(following, min(V, following + step))
            stop = min(V, start + step)
            rows = first.rows(start, stop)
            yield start, rows, derive(start, rows) if derive else second.rows(start, stop)


def _held_bytes(tensor: StoredTensor) -> int:
    """Bytes of a row in memory. Those of a quantized row are more than were read."""
    return max(tensor.row_bytes, tensor.width * tensor.floats.itemsize if tensor.floats else 0)
