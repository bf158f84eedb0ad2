"""The benchmark table: what every op costs, compared with the memory floor and its peers. `make bench` prints it.

    python -m benchmarks.table [--quick] [--output [FILE]] [--only TEXT] [--threads 2] [--history]

All contenders of a row take turns in one process that is pinned to as many CPUs as it has threads.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kslottery_fast.base.files import write_json

from . import history, ks_workloads, row_workloads, training_checks, training_workloads, two_sample_workloads
from .machine import machine, pin
from .measure import take_turns
from .paired import paired_ratios
from .records import Record, falls_short, record_of
from .reporting import RESULTS, duration, line, ratio_text
from .targets import PEERS, targets_of

FORMAT = "kslottery-benchmarks/2"
COLUMNS = (  # heading, width (negative: text, to the left)
    ("op", -13),
    ("shape", -15),
    ("dtype", -8),
    ("case", -49),
    ("median", 9),
    ("p20 - p80", 19),
    ("GB/s", 6),
    ("/ floor", 9),
    ("x scipy", 10),
    ("x axis", 9),
    ("x presorted", 11),
    ("x sort", 9),
    ("x torch", 10),
    ("x float32", 9),
    ("x PEFT", 9),
    ("x dense", 10),
    ("x mask", 9),
    ("x step", 9),
    ("to reach", -1),
)
LEGEND = """\
GB/s      bytes of both tables (row ops: bytes read and written) / median
/ floor   times as long as reading the same bytes on as many threads, see memory.py
x scipy   times as fast as scipy.stats.ks_2samp row by row (50 rows, extrapolated; ks_2samp: the whole batch)
x axis    times as fast as scipy.stats.ks_2samp(axis=1) of the same rows
x presorted  times as fast as numpy.searchsorted of each row in a sorted reference (sorting it is not counted)
x sort    times as fast as sorting both rows by numpy.sort (adversarial rows: or torch.sort, if that is faster), as many
          threads, in float32
          training step, one token: the same step or forward of the frozen model, see training_workloads.py
x torch   times as fast as torch: batched sort + searchsorted; AdamW(fused=True) on the rows alone; F.embedding
x PEFT    times as fast as PEFT's TrainableTokens, same rows
x dense   times as fast as AdamW(fused=True) on the whole table; x mask: the same with a mask on its gradient
x step    how many times a training step takes what a check of TicketMonitor adds to each
ratios    the median of the turns' ratios, ± half of the way between their quartiles
adversarial: the worst of each shape and dtype, and all that fall short; --output writes every one"""


def text_of(record: Record) -> str:
    """A row of the table as text."""
    ours = record["seconds"]["ours"]
    found = record["ratios"]
    rate = f"{record['bytes'] / ours['median'] / 1e9:.1f}" if record["bytes"] else ""

    return line(
        [
            record["op"],
            "{:,} x {:,}".format(*record["shape"]),
            record["dtype"],
            record["case"] + (f", {record['note']}" if record["note"] else ""),
            duration(ours["median"]),
            f"{duration(ours['low'])} - {duration(ours['high'])}",
            rate,
            *(ratio_text(found.get(heading)) for heading, _ in COLUMNS[7:-1]),
            record["verdict"],
        ],
        COLUMNS,
    )


def measured(turns: int, quick: bool, only: str) -> Iterator[Record]:
    """Measure one row after the other."""
    for module in (ks_workloads, two_sample_workloads, row_workloads, training_workloads):
        suite = module.suite(quick=quick)
        for spec in suite.specs:
            if only in str(spec):
                workload = suite.prepare(spec)
                timings = take_turns(workload.contenders, turns, workload.calls)
                yield record_of(spec, workload, timings, paired_ratios(timings, PEERS), targets_of(spec))
                del workload
        ks_workloads.forget_tables()


def run(turns: int, quick: bool, only: str) -> list[Record]:
    """Print the table while it is measured. Return its records."""
    print(line([heading for heading, _ in COLUMNS], COLUMNS), flush=True)
    records: list[Record] = []
    group: list[Record] = []  # adversarial rows of one shape and dtype, of which the worst is shown
    for record in measured(turns, quick, only):
        records.append(record)
        if group and not same_group(group[0], record):
            show_worst(group)
            group = []
        if record["case"].startswith(ks_workloads.PREFIX):
            group.append(record)
        else:
            print(text_of(record), flush=True)
    if group:
        show_worst(group)
    return records


def same_group(first: Record, second: Record) -> bool:
    """Whether both are adversarial rows of one op, shape and dtype."""
    return second["case"].startswith(ks_workloads.PREFIX) and all(
        first[key] == second[key] for key in ("op", "shape", "dtype")
    )


def show_worst(group: list[Record]) -> None:
    """Print the slowest of the adversarial rows, relative to sorting, and all that fall short."""
    group = sorted(group, key=lambda record: record["ratios"]["x sort"]["median"])
    for place, record in enumerate(group):
        if place == 0 or falls_short(record):
            print(text_of({**record, "note": f"worst of {len(group)}"} if place == 0 else record), flush=True)


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller tables and fewer turns, under 30 seconds")
    parser.add_argument("--turns", type=int, help="how often each contender is timed (7; with --quick 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", nargs="?", const="", metavar="FILE", help="also write JSON (without FILE: into results/)"
    )
    parser.add_argument("--history", action="store_true", help="add a line to benchmarks/history.jsonl")
    arguments = parser.parse_args()
    threads = pin(arguments.threads)
    about = machine()
    print(f"{about['cpu']}, {threads} threads, {about['isa']}; torch {about['torch']}; commit {about['commit']}")
    if about["load"] > 0.5:
        print(f"warning: other processes are at work (load {about['load']:.1f}): the numbers will be off")
    start = time.monotonic()
    records = run(arguments.turns or (3 if arguments.quick else 7), arguments.quick, arguments.only)
    judged = [record for record in records if record["verdict"]]
    short = [record for record in judged if falls_short(record)]
    print(LEGEND)
    checks = training_checks.run(quick=arguments.quick) if not arguments.only else []
    judged, short = judged + checks, short + [check for check in checks if check["verdict"] != "met"]
    print(f"{len(records)} rows in {time.monotonic() - start:.0f} s; of {len(judged)} with a figure to reach", end=" ")
    print(f"{len(short)} fall short" if short else "all reach it")
    results = {"format": FORMAT, "quick": arguments.quick, "machine": about, "rows": records, "checks": checks}
    if arguments.output is not None:
        cpu = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
        path = Path(arguments.output or RESULTS / f"{cpu}-{about['utc'][:10]}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
        print(path)
    if arguments.history:
        print(f"one line more in {history.add(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
