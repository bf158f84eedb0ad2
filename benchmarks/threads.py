"""Small native calls between operators of torch on 8 and 16 threads: `python -m benchmarks.threads`.

GCC's OpenMP runtime, which torch brings, ends the threads above a smaller team and starts them again for the next
larger one. The columns "n, n" and "n, n/2" show this by empty regions of the runtime itself: two of n threads, and one
of n and one of half as many. If a kernel asked for as many threads as its work is worth, every operator of torch after
it would pay for that. A pair of both would take a hundred times as long as the two alone ("/ both alone"), and
"threads ended" would not be 0. On a machine with fewer cores than threads the times are large, because all threads wait
for each other, but they show the same.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from kslottery_fast import ops

from .machine import machine
from .measure import Contender, take_turns
from .paired import Ratio
from .reporting import duration, line, ratio_text

COLUMNS = (
    ("threads", 7),
    ("n, n", 9),
    ("n, n/2", 9),
    ("ours alone", 11),
    ("torch alone", 11),
    ("in turns", 11),
    ("/ both alone", 12),
    ("threads ended", 13),
)
VOCAB, D, IDS = 300, 64, 400  # a look-up in two chunks


def task_ids() -> set[str]:
    """The threads of this process."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


def regions(*teams: int) -> Callable[[int], None]:
    """Empty parallel regions of these numbers of threads, one after the other, in the runtime that torch has loaded."""
    process = ctypes.CDLL(None)
    region, nothing = process.GOMP_parallel, ctypes.cast(process.free, ctypes.c_void_p)  # free(NULL) does nothing
    region.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    region.restype = None

    def run(_turn: int) -> None:
        for threads in teams:
            region(nothing, None, threads, 0)

    return run


def measure(threads: int, turns: int, calls: int = 20) -> list[str]:
    """A row of the table: medians of the regions, of a call, an operator and both in turns, and what these cost."""
    torch.set_num_threads(threads)
    table, rows, slots = torch.zeros(VOCAB, D), torch.zeros(0, D), torch.full((VOCAB,), -1, dtype=torch.int32)
    ids, values = torch.zeros(IDS, dtype=torch.int64), torch.ones(threads << 16)

    def ours(_turn: int) -> None:
        ops.row_embedding(table, rows, slots, ids)

    def of_torch(_turn: int) -> None:
        values.add_(1.0)

    def both(turn: int) -> None:
        ours(turn)
        of_torch(turn)

    of_torch(0)  # loads the runtime
    # First what makes and ends threads: afterwards their number stays the same, or "threads ended" says so.
    teams = {"same": regions(threads, threads), "half": regions(threads, threads // 2)}
    timings = {name: take_turns({name: Contender(run)}, turns, calls=20)[name] for name, run in teams.items()}
    timings |= take_turns(
        {"ours": Contender(ours), "torch": Contender(of_torch), "both": Contender(both)}, turns, calls=20
    )
    alone = [a + b for a, b in zip(timings["ours"].seconds, timings["torch"].seconds, strict=True)]
    cost = Ratio.of(timings["both"].seconds, alone)
    of_torch(0)
    before = task_ids()
    both(0)
    medians = [duration(timings[name].median) for name in ("same", "half", "ours", "torch", "both")]
    return [str(threads), *medians, ratio_text(asdict(cost)), str(len(before - task_ids()))]


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--turns", type=int, default=15, help="how often each is timed, 20 calls each time")
    arguments = parser.parse_args()
    about = machine()
    print(f"{about['cpu']}, load {about['load']:.1f}; torch {about['torch']}; commit {about['commit']}")
    print(line([heading for heading, _ in COLUMNS], COLUMNS))
    for threads in arguments.threads:
        print(line(measure(threads, arguments.turns), COLUMNS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
