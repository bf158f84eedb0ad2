"""The device of the GPU benchmark: a GPU, or the CPU in a dry run, which has no targets."""

from __future__ import annotations

import ctypes
import functools
import gc
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import memory
from .machine import machine, output_of
from .measure import Contender, Timing, take_turns

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "gpu_read.cu"
BLOCKS_PER_MULTIPROCESSOR = (4, 8, 16)  # of the reading loop; the fastest in each case is the floor


class Device(Protocol):
    """What workloads and the table need of a device."""

    torch_device: torch.device

    def take_turns(self, contenders: Mapping[str, Contender], turns: int) -> dict[str, Timing]:
        """Let all run once unmeasured, then `turns` times one after the other."""

    def floors(self, x: Tensor, y: Tensor) -> dict[str, Contender]:
        """Ways to read both tables once."""

    def captured(self, step: Callable[[], object]) -> Callable[[], object]:
        """The step as a CUDA graph that is replayed. It has run a few times before."""

    def about(self) -> dict[str, Any]:
        """What a reader needs to know to compare numbers."""


class Gpu:
    """A CUDA device, timed by events. What the last run left in the L2 cache is written over before each run."""

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(index)
        self._properties = torch.cuda.get_device_properties(index)
        cache = getattr(self._properties, "L2_cache_size", 0) or 128 << 20
        self._flush = torch.empty(2 * cache, dtype=torch.uint8, device=self.torch_device)
        self._sink = torch.zeros(1, dtype=torch.int64, device=self.torch_device)

    def take_turns(self, contenders: Mapping[str, Contender], turns: int) -> dict[str, Timing]:
        """Time by events, from before the first launch to after the last. What waits is timed by the host's clock."""
        elapsed: dict[str, list[Callable[[], float]]] = {name: [] for name in contenders}
        gc.collect()
        gc.disable()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # "no row is selected" is one of the timed cases
                for turn in range(-2, turns):
                    for name, contender in contenders.items():
                        seconds = (self._by_clock if contender.waits else self._by_events)(contender, turn + 2)
                        if turn >= 0:
                            elapsed[name].append(seconds)
            torch.cuda.synchronize()
        finally:
            gc.enable()
        return {
            name: Timing.of([each() * contenders[name].scale for each in seconds]) for name, seconds in elapsed.items()
        }

    def _by_events(self, contender: Contender, turn: int) -> Callable[[], float]:
        """Run it. Return a function that gives the device's seconds once the device is idle again."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()  # also keeps the GPU busy while the run is being launched
        start.record()
        contender.run(turn)
        end.record()
        return lambda: start.elapsed_time(end) * 1e-3

    def _by_clock(self, contender: Contender, turn: int) -> Callable[[], float]:
        """Run it from an idle device to an idle device. Return a function that gives the host's seconds."""
        self._flush.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        contender.run(turn)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return lambda: seconds

    def floors(self, x: Tensor, y: Tensor) -> dict[str, Contender]:
        """The reading loop with some numbers of blocks."""
        return {
            f"floor: {blocks} blocks": Contender(lambda turn, blocks=blocks: self.read(x, y, blocks))
            for blocks in (each * self._properties.multi_processor_count for each in BLOCKS_PER_MULTIPROCESSOR)
        }

    def read(self, x: Tensor, y: Tensor, blocks: int) -> Tensor:
        """Read two contiguous tensors of one size. The XOR of their 64-bit words goes on top of what is there."""
        if not (x.is_contiguous() and y.is_contiguous() and x.nbytes == y.nbytes and x.nbytes % 16 == 0):
            raise ValueError("expected two contiguous tensors of one size, a multiple of 16 bytes")
        stream = torch.cuda.current_stream(self.torch_device).cuda_stream
        status = library().gpu_read(x.data_ptr(), y.data_ptr(), x.nbytes, self._sink.data_ptr(), blocks, stream)
        if status:
            raise RuntimeError(f"reading failed with CUDA error {status}")
        return self._sink

    def captured(self, step: Callable[[], object]) -> Callable[[], object]:
        """Run a few steps on a side stream, then capture, as torch's documentation recommends."""
        stream = torch.cuda.Stream(self.torch_device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def bandwidths(self, size: int = 2 << 30, turns: int = 11) -> dict[str, float]:
        """Bytes per second of reading and of copying (bytes read and written), on tables of this size."""
        x, y = (torch.randint(256, (size,), dtype=torch.uint8, device=self.torch_device) for _ in range(2))
        found = self.take_turns({**self.floors(x, y), "copy": Contender(lambda turn: x.copy_(y))}, turns)
        reading = min(timing.median for name, timing in found.items() if name.startswith("floor"))
        return {"read": 2 * size / reading, "copy": 2 * size / found["copy"].median}

    def about(self) -> dict[str, Any]:
        """The GPU, what drives it, and the bandwidths measured in this run."""
        query = "--query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
        try:
            speeds: dict[str, Any] = {"bytes_per_second": self.bandwidths()}
        except RuntimeError as error:  # rows have floors of their own
            speeds = {"bandwidths failed": str(error)}
        smi = output_of("nvidia-smi", query, "--format=csv,noheader")
        p = self._properties
        gpu = {
            "gpu": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "driver, memory, clocks, power": smi.splitlines()[0] if smi else "unknown: nvidia-smi is missing or fails",
            "cuda": torch.version.cuda,
            **speeds,
        }
        return {**gpu, **machine()}


class StandIn:
    """The CPU with the same methods, with which the dry run tests the benchmark."""

    torch_device = torch.device("cpu")

    def take_turns(self, contenders: Mapping[str, Contender], turns: int) -> dict[str, Timing]:
        """By the wall clock."""
        return take_turns(contenders, turns)

    def floors(self, x: Tensor, y: Tensor) -> dict[str, Contender]:
        """The floors of the CPU."""
        return {
            f"floor: {pattern}": Contender(lambda turn, pattern=pattern: memory.read(x, y, pattern))
            for pattern in memory.PATTERNS
        }

    def captured(self, step: Callable[[], object]) -> Callable[[], object]:
        """The step itself, after as many runs as before a capture."""
        for _ in range(3):
            step()
        return step

    def about(self) -> dict[str, Any]:
        """The machine, and that it was not a GPU."""
        return {"gpu": None, "dry_run": True, **machine()}


def target_of_library() -> Path:
    """The path of the library built from gpu_read.cu."""
    return HERE.parent / "build" / "benchmarks" / "gpu_read.so"


def compile_library(target: Path, arch: str = "native", *, strict: bool = False) -> None:
    """Build gpu_read.cu with nvcc. With ``strict``, warnings are errors."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = [
        "-O3",
        "-std=c++17",
        f"-arch={arch}",
        *(["-Werror=all-warnings"] if strict else []),
        "-shared",
        "-Xcompiler=-fPIC",
        "--cudart=static",
    ]
    subprocess.run([nvcc, *flags, str(SOURCE), "-o", str(target)], check=True)


def compile_if_stale(arch: str = "native", *, strict: bool = False) -> Path:
    """Build gpu_read.cu if its library is missing or older. Return the library's path."""
    target = target_of_library()
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        compile_library(target, arch, strict=strict)
    return target


@functools.cache
def library() -> ctypes.CDLL:
    """The library of gpu_read.cu, built if it is missing or older than its source."""
    loaded = ctypes.CDLL(str(compile_if_stale()))
    loaded.gpu_read.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    loaded.gpu_read.restype = ctypes.c_int
    return loaded
