"""How fast ks_stream reads, and how much memory it takes. The values are made chunk by chunk and never stored.

    python -m benchmarks.ks_streams                          10^8 values against 10^8
    python -m benchmarks.ks_streams --values 1000000000      10^9 against 10^9

The last lines compare one pass over a chunk in memory with a plain read of it, on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kslottery_fast import KsAccumulator, ks_stream
from kslottery_fast.ops import info

CHUNK = 1 << 20
Values = npt.NDArray[np.float64]


def normal_chunks(count: int, seed: int, shift: float = 0.0) -> Callable[[], Iterator[Values]]:
    """A function that gives normal values in chunks, the same ones each time."""

    def chunks() -> Iterator[Values]:
        for number in range(-(-count // CHUNK)):
            size = min(CHUNK, count - number * CHUNK)
            values = np.random.Generator(np.random.SFC64([seed, number])).standard_normal(size)
            yield values + shift if shift else values

    return chunks


def best_seconds(work: Callable[[], object], turns: int = 9) -> float:
    """The shortest time of several turns, in seconds of this thread."""
    seconds = []
    for _ in range(turns):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def peak_mib(*, reset: bool = False) -> float:
    """The peak of this process's memory since the last reset. Where the system cannot reset it, since the start."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


def print_speeds() -> None:
    """Print how fast each kind of pass goes over one chunk, and how fast the chunk can be read."""
    chunks = [next(normal_chunks(CHUNK, seed)()) for seed in (0, 1)]
    for dtype in (np.float64, np.float32):
        x, y = (np.tile(chunk, 4).astype(dtype) for chunk in chunks)
        read = best_seconds(lambda x=x: np.bitwise_xor.reduce(x.view(np.uint64)))  # type: ignore[misc]
        seen: KsAccumulator | None = KsAccumulator(keep=1 << 12)
        while seen is not None:
            work = seen.empty()
            seconds = best_seconds(lambda work=work, x=x: work.update(x=x), turns=5)  # type: ignore[misc]
            speed = x.nbytes / seconds / 1e9
            kind = "keeps values" if seen._plan.keeps_keys else f"{len(seen._plan.cut):,} intervals"
            floor = f"{x.nbytes / read / 1e9:.1f} GB/s by a plain read"
            print(f"{np.dtype(dtype).name}, pass {seen.passes} ({kind}): {speed:.2f} GB/s, {floor}")
            seen = seen.update(x=x, y=y).refined()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=10**8, help="how many values each sample has")
    parser.add_argument("--shift", type=float, default=0.0, help="by how much the second sample is shifted")
    options = parser.parse_args(arguments)
    print(f"native: {info()['native']}")
    start = time.perf_counter()
    for _ in normal_chunks(options.values, 0)():
        pass
    making = time.perf_counter() - start
    before = peak_mib(reset=True)
    start = time.perf_counter()
    result = ks_stream(normal_chunks(options.values, 0), normal_chunks(options.values, 1, options.shift))
    seconds = time.perf_counter() - start
    peak = peak_mib()
    print(f"{options.values:,} values against {options.values:,}: {result}")
    counted = seconds - 2 * making * result.passes
    print(f"{result.passes} passes in {seconds:.1f} s, of which {counted:.1f} s without making the values")
    print(f"memory: {peak:.0f} MiB at most, {peak - before:.0f} MiB more than before")
    print_speeds()  # last, since its samples take memory
    return 0


if __name__ == "__main__":
    sys.exit(main())
