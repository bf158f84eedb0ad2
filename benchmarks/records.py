"""One row of a table as JSON: all turns of all contenders, what follows from them, and whether targets are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .measure import Timing
from .paired import Ratio
from .reporting import Target
from .workloads import Spec, Workload

Record = dict[str, Any]


def record_of(
    spec: Spec,
    workload: Workload,
    timings: Mapping[str, Timing],
    ratios: Mapping[str, Ratio],
    targets: Sequence[Target],
) -> Record:
    """All that was measured of a row. ``verdict`` is "" if the row has no target."""
    return {
        "op": spec.op,
        "shape": list(spec.shape),
        "dtype": spec.dtype_name,
        "case": spec.case,
        "note": workload.note,
        "bytes": workload.bytes,
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "targets": [str(target) for target in targets],
        "verdict": verdict(targets, ratios),
    }


def verdict(targets: Sequence[Target], ratios: Mapping[str, Ratio]) -> str:
    """The last column: empty, "met: ...", or "FALLS SHORT: ..." with what is missed. The medians are compared."""
    missed = [target for target in targets if not target.is_met(ratios[target.ratio].median)]
    return f"{'FALLS SHORT' if missed else 'met'}: {', '.join(map(str, missed or targets))}" if targets else ""


def falls_short(record: Mapping[str, Any]) -> bool:
    """Whether a row misses a target, or was not measured."""
    return bool(record["verdict"].startswith("FALLS SHORT"))


def name_of(record: Mapping[str, Any]) -> str:
    """The name of a row, as its Spec is written. Results of format 1 have a space before their percent signs."""
    rows, columns = record["shape"]
    return f"{record['op']}, {rows:,} x {columns:,} {record['dtype']}, {record['case'].replace(' %', '%')}"
