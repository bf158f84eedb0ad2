"""The KS kernels on rows whose last value is the last of readable memory: the process crashes if they read on.

GCC's AddressSanitizer does not see masked vector loads, so this is what checks them.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import partial

import torch
from ks_cases import DTYPES

from kslottery_fast import ops

WIDTHS = (*range(1, 70), 100, 127, 255, 257, 576, 1000, 1023, 2049)
PROT_NONE = 0


def guarded(size: int) -> tuple[mmap.mmap, memoryview]:
    """The last `size` bytes before a page that must not be touched."""
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    return memory, memoryview(memory)[pages - size : pages]


def at_the_end(table: torch.Tensor) -> torch.Tensor:
    """The same matrix at the end of readable memory."""
    _, view = guarded(table.nbytes)
    return torch.frombuffer(view, dtype=table.dtype).view(table.shape).copy_(table)


def check_guarded_rows() -> None:
    """All dtypes and widths; the results have to be those of ordinary memory."""
    decide, from_two_on = partial(ops.ks_decide, threshold=2), partial(ops.ks_statistics, threshold=2)
    for dtype in DTYPES:
        for width in WIDTHS:
            generator = torch.Generator().manual_seed(width)
            x = torch.randn(3, width, generator=generator).to(dtype)
            y = (x.double() + torch.randn(3, width, generator=generator)).to(dtype)
            for op in (ops.ks_rows, ops.ks_statistics, from_two_on, decide):
                for got, wanted in zip(op(at_the_end(x), at_the_end(y)), op(x, y), strict=True):
                    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
