"""Two builds of the native module compared: `ks_statistics` on one thread, turn by turn, in pairs of fresh processes.

    python -m benchmarks.two_builds OLD.so NEW.so [--pairs 11] [--turns 21] [--threshold 0]

Where a process has its memory makes a row up to a tenth faster or slower. So each pair of processes gives one ratio for
each case, and the table has the median and the quartiles of these. Time is that of the processor, so other processes
disturb it little.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .paired import Ratio

ROOT = Path(__file__).resolve().parents[1]
ROWS_IN_CACHE, ROWS_IN_MEMORY = 16, 2_000  # of 4,096 values
WIDTHS = (4_096, 576)
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """Rows that are slightly shifted, and how often a turn goes over them."""

    dtype: torch.dtype
    rows: int
    columns: int
    calls: int

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.rows:,} x {self.columns:,}"


def cases(scale: int) -> list[Case]:
    """Tables in the cache and in memory, of 1 / ``scale`` of the rows."""
    found = []
    for dtype in DTYPES:
        for columns in WIDTHS:
            wide = WIDTHS[0] // columns
            found.append(Case(dtype, ROWS_IN_CACHE * wide, columns, max(1, 20 // scale)))
            found.append(Case(dtype, max(1, ROWS_IN_MEMORY * wide // scale), columns, 1))
    return found


def use(build: Path) -> None:
    """Make this file the package's native module. The package must not have been imported, as it has one for ever."""
    name = "kslottery_fast._C"
    if "kslottery_fast" in sys.modules:
        raise RuntimeError(f"{build} was to be used, but this process has imported kslottery_fast already")
    spec = importlib.util.spec_from_file_location(name, build)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


def seconds_of(case: Case, threshold: int) -> Callable[[], float]:
    """What makes one turn and returns its seconds on the processor, for each row."""
    from kslottery_fast import ops

    generator = torch.Generator().manual_seed(0)
    before = torch.randn(case.rows, case.columns, generator=generator)
    after = before + 0.05 * torch.randn(case.rows, case.columns, generator=generator) + 0.02
    before, after = before.to(case.dtype), after.to(case.dtype)

    def turn() -> float:
        begun = time.thread_time()
        for _ in range(case.calls):
            ops.kernels.ks_statistics(before, after, threshold)
        return (time.thread_time() - begun) / case.calls / case.rows

    return turn


def serve(build: Path, scale: int, threshold: int) -> None:
    """A process of a pair: makes a turn for each line "turn" of its input, and goes to the next case at any other."""
    use(build)
    torch.set_num_threads(1)
    for case in cases(scale):
        turn = seconds_of(case, threshold)
        turn()
        print("ready", flush=True)
        while sys.stdin.readline().strip() == "turn":
            print(turn(), flush=True)


def pair(builds: list[Path], turns: int, scale: int, threshold: int) -> Iterator[tuple[Case, list[list[float]]]]:
    """For each case, the seconds of both builds turn by turn."""
    arguments = ["--serve", "--scale", str(scale), "--threshold", str(threshold)]
    command = [sys.executable, "-m", "benchmarks.two_builds", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    running = [subprocess.Popen([*command, str(build)], **pipes) for build in builds]  # type: ignore[call-overload]

    def asked(process: subprocess.Popen[str], what: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        if what:
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
        if not (said := process.stdout.readline()):
            raise RuntimeError("a process of the pair has ended; its error is above")
        return said

    try:
        for number, case in enumerate(cases(scale)):
            for process in running:
                asked(process, "next" if number else "")
            seconds: list[list[float]] = [[], []]
            for turn in range(turns):
                for which in (0, 1) if turn % 2 else (1, 0):
                    seconds[which].append(float(asked(running[which], "turn")))
            yield case, seconds
    finally:
        for process in running:
            process.communicate()  # at the end of its input it ends


def compare(builds: list[Path], pairs: int, turns: int, scale: int, threshold: int) -> None:
    """Print a line for each case."""
    found: dict[Case, list[list[list[float]]]] = {}
    for _ in range(pairs):
        for case, seconds in pair(builds, turns, scale, threshold):
            found.setdefault(case, []).append(seconds)
    for case, of_pairs in found.items():
        medians = [[statistics.median(seconds[which]) for seconds in of_pairs] for which in (0, 1)]
        within = [Ratio.of(*seconds).median for seconds in of_pairs]
        low, median, high = np.quantile(within, [0.25, 0.5, 0.75])
        old, new = (statistics.median(each) * 1e6 for each in medians)
        print(f"{case}: {old:.3f} and {new:.3f} µs a row, old / new {median:.3f} ({low:.3f} to {high:.3f})", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="+", type=Path, metavar="FILE", help="kslottery_fast/_C*.so, old and new")
    parser.add_argument("--pairs", type=int, default=11, help="pairs of processes")
    parser.add_argument("--turns", type=int, default=21, help="turns of a pair in each case")
    parser.add_argument("--threshold", type=int, default=0, help="of ks_statistics; large: the bounds decide")
    parser.add_argument("--scale", type=int, default=1, help="a part of the rows, to test this program")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.builds[0], asked.scale, asked.threshold)
        return 0
    if len(asked.builds) != 2:
        parser.error(f"{len(asked.builds)} builds were given; expected two, the old one and the new one")
    compare([build.resolve() for build in asked.builds], asked.pairs, asked.turns, asked.scale, asked.threshold)
    return 0


if __name__ == "__main__":
    sys.exit(main())
