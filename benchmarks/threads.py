"""Small native calls between operators of torch on 8 and 16 threads: `python -m benchmarks.threads`.

GCC's OpenMP runtime, which torch brings, ends the threads above a smaller team and starts them again for the next
larger one. If a kernel asked for as many threads as its work is worth, every operator of torch after it would pay for
that. A pair of both would take a hundred times as long as the two alone, and "threads ended" would not be 0. On a
machine with fewer cores than threads the times are large, because all threads wait for each other, but they show the
same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from kslottery_fast import ops

from .machine import machine
from .measure import Contender, take_turns
from .reporting import duration, line

COLUMNS = (("threads", 7), ("ours alone", 11), ("torch alone", 11), ("in turns", 11), ("threads ended", 13))
VOCAB, D, IDS = 300, 64, 400  # a look-up in two chunks


def task_ids() -> set[str]:
    """The threads of this process."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


def measure(threads: int, turns: int) -> list[str]:
    """A row of the table: medians of a call, an operator and both in turns, and the threads that the last ended."""
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

    contenders = {"ours": Contender(ours), "torch": Contender(of_torch), "both": Contender(both)}
    timings = take_turns(contenders, turns, calls=20)
    of_torch(0)
    before = task_ids()
    both(0)
    medians = [duration(timings[name].median) for name in contenders]
    return [str(threads), *medians, str(len(before - task_ids()))]


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
