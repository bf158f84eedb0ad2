"""The benchmark on a GPU: every op beside the memory floor and its peers. `make gpu` runs it last.

    python -m benchmarks.gpu_table [--dry] [--only TEXT] [--turns N] [--seconds N] [--output FILE]

Each run is timed by events, after the L2 cache has been written over; inputs are rotated where they are small. --dry
runs all of it on the CPU, on small tables and without a verdict.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.files import write_json

from . import gpu_workloads
from .gpu_device import Device, Gpu, StandIn
from .gpu_targets import ratios, targets_of, verdict
from .measure import Timing
from .table import RESULTS, duration
from .workloads import Spec, Workload

FORMAT = "kslottery-gpu-benchmarks/1"
COLUMNS = (  # heading, width (negative: text, to the left)
    ("op", -13),
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
GB/s       bytes of both tables (row ops: bytes read and written) / median
/ floor    times as long as reading the same bytes in the same run, see gpu_read.cu
x torch    times as fast as torch on this GPU: batched sort + searchsorted (a sample of rows, scaled); fused AdamW on a
           dense table; nn.Embedding
x compact  times as fast as torch's fused AdamW on nothing but the rows
x PEFT     times as fast as copying the table with the rows written in, as PEFT's TrainableTokens does"""


def line(cells: list[str]) -> str:
    """The cells under their headings."""
    widths = (width for _, width in COLUMNS)
    padded = [c.rjust(width) if width > 0 else c.ljust(-width) for c, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def record_of(spec: Spec, workload: Workload, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """A row of the table as JSON: everything measured, in seconds, and what follows from it."""
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

    def ratio(name: str) -> str:
        return f"{found[name]:,.0f}" if found.get(name, 0) >= 99.5 else f"{found[name]:.2f}" if name in found else ""

    return line(
        [
            record["op"],
            "{:,} x {:,}".format(*record["shape"]),
            record["dtype"],
            record["case"],
            duration(ours["median"]),
            f"{duration(ours['low'])} - {duration(ours['high'])}",
            f"{record['bytes'] / ours['median'] / 1e9:,.0f}" if record["bytes"] else "",
            *(ratio(heading) for heading, _ in COLUMNS[7:11]),
            record["verdict"],
        ]
    )


def run(device: Device, sizes: gpu_workloads.Sizes, turns: int, only: str, seconds: float) -> list[dict[str, Any]]:
    """Print the table while it is measured; its records. What no time is left for is named."""
    print(line([heading for heading, _ in COLUMNS]), flush=True)
    start, records = time.monotonic(), []
    for spec in gpu_workloads.specs(sizes):
        if only not in str(spec):
            continue
        if time.monotonic() - start > seconds:
            print(f"NOT MEASURED, the {seconds:.0f} seconds are over: {spec}", flush=True)
            records.append({"op": spec.op, "name": str(spec), "verdict": "FALLS SHORT: not measured"})
            continue
        workload = gpu_workloads.prepare(spec, sizes, device)
        records.append(record_of(spec, workload, device.take_turns(workload.contenders, turns)))
        print(text_of(records[-1]), flush=True)
        del workload
    gpu_workloads.tables_of.cache_clear()
    return records


def main() -> int:
    """Run the command line; the exit code is 1 where something was left unmeasured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU and small tables, to test the benchmark itself")
    parser.add_argument("--turns", type=int, default=21, help="how often each contender is timed")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this in it")
    parser.add_argument("--seconds", type=float, default=120, help="start no further row after so many")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON; default results/<gpu>-<date>.json")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("error: torch finds no CUDA device; --dry runs the benchmark on the CPU", file=sys.stderr)
        return 2
    device: Device = StandIn() if arguments.dry else Gpu()
    about = device.about()
    print(f"{about['gpu'] or 'DRY RUN on the CPU'}; torch {about['torch']}; commit {about['commit']}")
    if speeds := about.get("bytes_per_second"):
        print(f"reading {speeds['read'] / 1e9:,.0f} GB/s, copying {speeds['copy'] / 1e9:,.0f} GB/s (read and written)")
    sizes = gpu_workloads.SMALL if arguments.dry else gpu_workloads.Sizes()
    records = run(device, sizes, 2 if arguments.dry else arguments.turns, arguments.only, arguments.seconds)
    print(LEGEND)
    judged = [record for record in records if record["verdict"]]
    short = [record for record in judged if record["verdict"].startswith("FALLS SHORT")]
    print(
        f"{len(records)} rows; of {len(judged)} with a figure to reach",
        f"{len(short)} fall short" if short else "all do",
    )
    name = re.sub(r"[^a-z0-9]+", "-", str(about["gpu"] or "dry run").lower()).strip("-")
    path = arguments.output or RESULTS / f"{name}-{about['utc'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, "machine": about, "rows": records})
    print(path)
    return int(any("seconds" not in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
