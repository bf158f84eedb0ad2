"""The benchmark on a GPU: every op compared with the memory floor and its peers. `make gpu` runs it last.

    python -m benchmarks.gpu_table [--dry] [--only TEXT] [--turns N] [--seconds N] [--output FILE] [--commit NAME]

Each run is timed by events, or by the host's clock where its result comes back to the host, after the L2 cache has been
written over. Small inputs are rotated. The file is written again after each row, so what was measured is kept,
whatever happens later. --dry runs all of it on the CPU, on small tables and without a verdict.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from kslottery_fast.base.files import write_json

from . import STARTED, gpu_variants, gpu_workloads, history
from .gpu_device import Device, Gpu, StandIn
from .gpu_targets import ratios, targets_of
from .gpu_variants import VARIANTS, Variant
from .records import Record, falls_short, record_of
from .reporting import RESULTS, duration, line, ratio_text
from .workloads import Spec

FORMAT = "kslottery-gpu-benchmarks/3"
COLUMNS = (  # heading, width (negative: text, to the left)
    ("op", -16),
    ("shape", -15),
    ("dtype", -8),
    ("case", -31),
    ("median", 9),
    ("p20 - p80", 19),
    ("GB/s", 6),
    ("/ floor", 9),
    ("x torch", 10),
    ("x compact", 9),
    ("x PEFT", 9),
    ("x scipy", 10),
    ("to reach", -1),
)
LEGEND = """\
ks_select, ks_statistics: to their end on the host; the kernel of ks_select, and all others: the device's time alone
GB/s       bytes of both tables (row ops: bytes read and written) / median
/ floor    times as long as reading the same bytes in the same run, see gpu_read.cu
x torch    times as fast as torch on this GPU: batched sort + searchsorted (a sample of rows, scaled); fused AdamW on a
           dense table; nn.Embedding
x compact  times as fast as torch's fused AdamW on nothing but the rows
x PEFT     times as fast as copying the table with the rows written in, as PEFT's TrainableTokens does, or as a training
           step of that. / floor is then the same step of the frozen model
x scipy    times as fast as a loop over scipy.stats.ks_2samp on this CPU (a sample of rows, scaled)
ratios     the median of the turns' ratios, ± half of the way between their quartiles"""


def text_of(record: Record) -> str:
    """A row of the table as text."""
    ours, found = record["seconds"]["ours"], record["ratios"]

    return line(
        [
            record["op"],
            "{:,} x {:,}".format(*record["shape"]),
            record["dtype"],
            record["case"],
            duration(ours["median"]),
            f"{duration(ours['low'])} - {duration(ours['high'])}",
            f"{record['bytes'] / ours['median'] / 1e9:,.0f}" if record["bytes"] else "",
            *(ratio_text(found.get(heading)) for heading, _ in COLUMNS[7:-1]),
            record["verdict"],
        ],
        COLUMNS,
    )


def measured(
    device: Device, sizes: gpu_workloads.Sizes, turns: int, spec: Spec, variants: tuple[Variant, ...]
) -> Record:
    """Measure one row. Compare its result with a peer's if the workload can do that."""
    workload = gpu_variants.with_variants(spec, lambda: gpu_workloads.prepare(spec, sizes, device), variants)
    timings = device.take_turns(workload.contenders, turns)
    record = record_of(spec, workload, timings, ratios(timings), targets_of(spec))
    record["variants"] = gpu_variants.compared(timings)
    if workload.agrees is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "no row is selected"
            record["agrees"] = workload.agrees()
        if not record["agrees"]:
            record["verdict"] = "FALLS SHORT: the result is not that of its peer"
    return record


def in_order(specs: list[Spec]) -> list[Spec]:
    """Rows with a target come first, with those that share their data: what no time is left for matters least."""
    groups: dict[object, list[Spec]] = {}
    for spec in specs:
        shared = (spec.shape, spec.dtype, spec.case) if spec.op in gpu_workloads.KS_OPS else spec
        groups.setdefault(shared, []).append(spec)
    ordered = sorted(groups.values(), key=lambda group: not any(map(targets_of, group)))
    return [spec for group in ordered for spec in group]


def run(
    device: Device,
    sizes: gpu_workloads.Sizes,
    turns: int,
    only: str = "",
    seconds: float = math.inf,
    keep: Callable[[list[Record]], object] = lambda records: None,
    variants: tuple[Variant, ...] = (),
) -> list[Record]:
    """Print the table while it is measured. Return its records, which ``keep`` also gets after each row.

    A row that fails, or for which no time is left, is named and falls short.
    """
    print(line([heading for heading, _ in COLUMNS], COLUMNS), flush=True)
    records: list[Record] = []
    for spec in in_order(gpu_workloads.specs(sizes)):
        if not any(part in str(spec) for part in only.split("|")):
            continue
        try:
            if time.monotonic() - STARTED > seconds:
                raise TimeoutError(f"not measured, the {seconds:.0f} seconds are over")
            records.append(measured(device, sizes, turns, spec, variants))
            print(text_of(records[-1]), flush=True)
            for text in gpu_variants.lines_of(records[-1]):
                print(text, flush=True)
        except (RuntimeError, TimeoutError, ImportError) as error:  # CUDA's errors are RuntimeErrors
            said = next(iter(str(error).splitlines()), "")
            what = said if isinstance(error, TimeoutError) else f"error: {type(error).__name__}: {said}"
            records.append({"op": spec.op, "name": str(spec), "verdict": f"FALLS SHORT: {what}"})
            print(f"{spec}: {records[-1]['verdict']}", flush=True)
        keep(records)
    gpu_workloads.tables_of.cache_clear()
    return records


def main() -> int:
    """Run the command line. The exit code is 1 if something was not measured or gave a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry", action="store_true", help="run on the CPU with small tables, to test the benchmark itself"
    )
    parser.add_argument("--turns", type=int, default=21, help="how often each contender is timed")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this in it; several: a|b")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further row after this many seconds")
    parser.add_argument(
        "--commit", help="commit of these sources if git cannot tell (or KSL_COMMIT in the environment)"
    )
    parser.add_argument("--variants", action="store_true", help="compare variants of the kernels too, see docs/gpu.md")
    parser.add_argument("--history", action="store_true", help="add a line to benchmarks/history.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file (default: results/<gpu>-<date>.json)")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("error: torch finds no CUDA device; --dry runs the benchmark on the CPU", file=sys.stderr)
        return 2
    if arguments.commit:
        os.environ["KSL_COMMIT"] = arguments.commit
    device: Device = StandIn() if arguments.dry else Gpu()
    about = device.about()
    print(f"{about['gpu'] or 'DRY RUN on the CPU'}; torch {about['torch']}; commit {about['commit']}")
    if speeds := about.get("bytes_per_second"):
        print(f"reading {speeds['read'] / 1e9:,.0f} GB/s, copying {speeds['copy'] / 1e9:,.0f} GB/s (read and written)")
    name = re.sub(r"[^a-z0-9]+", "-", str(about["gpu"] or "dry run").lower()).strip("-")
    path = arguments.output or RESULTS / f"{name}-{about['utc'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(records: list[Record]) -> Record:
        results = {"format": FORMAT, "machine": about, "rows": records}
        write_json(path, results)
        return results

    sizes = gpu_workloads.SMALL if arguments.dry else gpu_workloads.Sizes()
    turns, variants = 2 if arguments.dry else arguments.turns, VARIANTS if arguments.variants else ()
    records = run(device, sizes, turns, arguments.only, arguments.seconds, keep, variants)
    print(LEGEND)
    judged = [record for record in records if record["verdict"]]
    short = [record for record in judged if falls_short(record)]
    print(
        f"{len(records)} rows; of {len(judged)} with a figure to reach",
        f"{len(short)} fall short" if short else "all do",
    )
    results = keep(records)
    print(path)
    if arguments.history:
        print(f"one line more in {history.add(results)}")
    return int(any("seconds" not in record or not record.get("agrees", True) for record in records))


if __name__ == "__main__":
    sys.exit(main())
