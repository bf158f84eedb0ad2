"""The memory floor: how long the machine takes to read the same bytes on as many threads.

A native loop (memory_read.cpp) reads them, because torch's sums and torch.equal reach only 40 to 75% of its bandwidth
(16 to 19 and 11 of 27 GB/s on two cores of a Zen 4). Two patterns are timed in every case. The faster one is the floor.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "memory_read.cpp"
LIBRARY = HERE.parent / "build" / "benchmarks" / "memory_read.so"
# (bytes read of one table before the other has its turn, bytes to prefetch ahead): the best two of 20 pairs that
# were tried; which of them wins changes with the size and with what else the machine does.
PATTERNS = {"long runs": (1 << 20, 0), "short runs, prefetched": (1 << 10, 1 << 12)}
LINE = 64


@functools.cache
def _library() -> ctypes.CDLL:
    sources = (SOURCE, HERE.parent / "csrc" / "parallel.h")
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(LIBRARY)], check=True)
    library = ctypes.CDLL(str(LIBRARY))
    library.memory_read.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    library.memory_read.restype = ctypes.c_uint64
    return library


def read(x: Tensor, y: Tensor, pattern: str) -> int:
    """Read two contiguous tensors of one size on torch's number of threads. Return the XOR of their 64-bit words.

    What is left over after the last whole block (at most 1 MiB of each) is read as one block of its own.
    """
    if not (x.is_contiguous() and y.is_contiguous() and x.nbytes == y.nbytes and x.nbytes % LINE == 0):
        raise ValueError(f"expected two contiguous tensors of one size, a multiple of {LINE} bytes")
    block, ahead = PATTERNS[pattern]
    whole = x.nbytes - x.nbytes % block
    read, threads = _library().memory_read, torch.get_num_threads()
    result = read(x.data_ptr(), y.data_ptr(), whole, block, ahead, threads)
    if rest := x.nbytes - whole:
        result ^= read(x.data_ptr() + whole, y.data_ptr() + whole, rest, rest, ahead, 1)
    return result


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache of CPU 0, or 32 MiB if Linux does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 << 20)


def copies_beyond_the_cache(size: int) -> int:
    """How many sets of `size` bytes have to take turns so that none is still in the cache when its turn comes."""
    return max(1, -(-2 * last_level_cache() // size))
