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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.files import write_json

from . import STARTED, gpu_workloads
from .gpu_device import Device, Gpu, StandIn
from .gpu_targets import ratios, targets_of, verdict
from .measure import Timing
from .reporting import RESULTS, duration, line, ratio_text
from .workloads import Spec, Workload

FORMAT = "kslottery-gpu-benchmarks/2"
COLUMNS = (  # heading, width (negative: text, to the left)
    ("op", -16),
    ("shape", -15),
    ("dtype", -8),
    ("case", -31),
    ("median", 9),
    ("p20 - p80", 19),
    ("GB/s", 6),
    ("/ floor", 7),
    ("x torch", 8),
    ("x compact", 9),
    ("x PEFT", 7),
    ("to reach", -1),
)
LEGEND = """\
ks_select, ks_statistics: to their end on the host; the kernel of ks_select, and all others: the device's time alone
GB/s       bytes of both tables (row ops: bytes read and written) / median
/ floor    times as long as reading the same bytes in the same run, see gpu_read.cu
x torch    times as fast as torch on this GPU: batched sort + searchsorted (a sample of rows, scaled); fused AdamW on a
           dense table; nn.Embedding
x compact  times as fast as torch's fused AdamW on nothing but the rows
x PEFT     times as fast as copying the table with the rows written in, as PEFT's TrainableTokens does"""


def record_of(spec: Spec, workload: Workload, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """A row of the table as JSON: all measured times in seconds, and what follows from them."""
    found = ratios({name: timing.median for name, timing in timings.items()})
    return {
        "op": spec.op,
        "shape": list(spec.shape),
        "dtype": spec.dtype_name,
        "case": spec.case,
        "bytes": workload.bytes,
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "ratios": found,
        "targets": [str(target) for target in targets_of(spec)],
        "verdict": verdict(spec, found),
    }


def text_of(record: Mapping[str, Any]) -> str:
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
            *(ratio_text(found, heading) for heading, _ in COLUMNS[7:11]),
            record["verdict"],
        ],
        COLUMNS,
    )


def measured(device: Device, sizes: gpu_workloads.Sizes, turns: int, spec: Spec) -> dict[str, Any]:
    """Measure one row. Compare its result with a peer's if the workload can do that."""
    workload = gpu_workloads.prepare(spec, sizes, device)
    record = record_of(spec, workload, device.take_turns(workload.contenders, turns))
    if workload.agrees is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "no row is selected"
            record["agrees"] = workload.agrees()
        if not record["agrees"]:
            record["verdict"] = "FALLS SHORT: the result is not that of torch"
    return record


def run(
    device: Device,
    sizes: gpu_workloads.Sizes,
    turns: int,
    only: str = "",
    seconds: float = math.inf,
    keep: Callable[[list[dict[str, Any]]], object] = lambda records: None,
) -> list[dict[str, Any]]:
    """Print the table while it is measured. Return its records, which ``keep`` also gets after each row.

    A row that fails, or for which no time is left, is named and falls short.
    """
    print(line([heading for heading, _ in COLUMNS], COLUMNS), flush=True)
    records: list[dict[str, Any]] = []
    for spec in gpu_workloads.specs(sizes):
        if only not in str(spec):
            continue
        try:
            if time.monotonic() - STARTED > seconds:
                raise TimeoutError(f"not measured, the {seconds:.0f} seconds are over")
            records.append(measured(device, sizes, turns, spec))
            print(text_of(records[-1]), flush=True)
        except (RuntimeError, TimeoutError) as error:  # CUDA's errors are RuntimeErrors
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
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this in it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further row after this many seconds")
    parser.add_argument(
        "--commit", help="commit of these sources if git cannot tell (or KSL_COMMIT in the environment)"
    )
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

    def keep(records: list[dict[str, Any]]) -> None:
        write_json(path, {"format": FORMAT, "machine": about, "rows": records})

    sizes = gpu_workloads.SMALL if arguments.dry else gpu_workloads.Sizes()
    records = run(device, sizes, 2 if arguments.dry else arguments.turns, arguments.only, arguments.seconds, keep)
    print(LEGEND)
    judged = [record for record in records if record["verdict"]]
    short = [record for record in judged if record["verdict"].startswith("FALLS SHORT")]
    print(
        f"{len(records)} rows; of {len(judged)} with a figure to reach",
        f"{len(short)} fall short" if short else "all do",
    )
    keep(records)
    print(path)
    return int(any("seconds" not in record or not record.get("agrees", True) for record in records))


if __name__ == "__main__":
    sys.exit(main())
