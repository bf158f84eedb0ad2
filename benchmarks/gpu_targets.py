"""The targets on a GPU of the H200's class, and whether a measured row meets them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .gpu_workloads import CASES, IN_TABLE, REPLAY, Sizes
from .reporting import Target
from .workloads import Spec

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
SHIFTED, SOME, _SAME = CASES
SORT = Target("x torch", 40)
TARGETS = {
    **{
        Spec(op, shape, dtype, case): targets
        for shape in Sizes().tables
        for op, dtype, case, targets in (
            ("ks_select", FLOAT32, SOME, (Target("/ floor", 1.25, False), SORT)),
            ("ks_select", FLOAT32, SHIFTED, (Target("/ floor", 1.6, False), SORT)),
            ("ks_select", BFLOAT16, SHIFTED, (Target("/ floor", 2.2, False), SORT)),
            ("ks_statistics", FLOAT32, SHIFTED, (Target("/ floor", 3, False),)),
        )
    },
    **{
        Spec("RowAdamW", Sizes().rows, FLOAT32, case): (Target("microseconds", 8, False), Target("x torch", 100))
        for case in (REPLAY, IN_TABLE)
    },
}


def targets_of(spec: Spec) -> tuple[Target, ...]:
    """The targets of a row. Most rows, and all rows of a dry run, have none."""
    return TARGETS.get(spec, ())


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """How many times as long as the memory floor, how many times as fast as each peer, and the time itself.

    >>> ratios({"ours": 0.5, "floor: 1": 0.25, "floor: 2": 0.375, "torch": 10.0})
    {'microseconds': 500000.0, '/ floor': 2.0, 'x torch': 20.0}
    """
    ours = medians["ours"]
    found = {"microseconds": ours * 1e6}
    if floors := [seconds for name, seconds in medians.items() if name.startswith("floor")]:
        found["/ floor"] = ours / min(floors)
    for ratio, name in {"x torch": "torch", "x compact": "compact", "x PEFT": "peft"}.items():
        if name in medians:
            found[ratio] = medians[name] / ours
    return found


def verdict(spec: Spec, found: Mapping[str, float]) -> str:
    """The last column: empty, "met: ...", or "FALLS SHORT: ..." with what is missed."""
    targets = targets_of(spec)
    missed = [target for target in targets if not target.is_met(found)]
    return f"{'FALLS SHORT' if missed else 'met'}: {', '.join(map(str, missed or targets))}" if targets else ""
