"""The targets on a GPU of the H100's class, and the contenders of the ratios."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .gpu_training import FOLLOWS, STEP, UNTIED
from .gpu_workloads import CASES, IN_TABLE, REPLAY, UNEQUAL, Sizes, unequal_spec
from .measure import Timing
from .paired import Peers, Ratio, paired_ratios
from .reporting import Target
from .workloads import Spec

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
SHIFTED, SOME, _SAME = CASES
SMALL_TABLE, LARGE_TABLE = Sizes().tables
PEERS: Peers = {"x torch": ("torch",), "x compact": ("compact",), "x PEFT": ("peft",), "x scipy": ("scipy",)}
TIME = "microseconds"


def at_most(ratio: str, bound: float) -> Target:
    """A target below."""
    return Target(ratio, bound, at_least=False)


SORT = Target("x torch", 40)
TARGETS = {
    Spec("ks_select", LARGE_TABLE, FLOAT32, SOME): (at_most("/ floor", 1.25), SORT),
    Spec("ks_select", LARGE_TABLE, FLOAT32, SHIFTED): (at_most("/ floor", 1.6), SORT),
    Spec("ks_select", SMALL_TABLE, FLOAT32, SHIFTED): (at_most("/ floor", 1.8), SORT),
    **{
        Spec("ks_select", shape, BFLOAT16, SHIFTED): (at_most("/ floor", 2.2), SORT)
        for shape in (SMALL_TABLE, LARGE_TABLE)
    },
    **{
        Spec("ks_statistics", shape, FLOAT32, SHIFTED): (at_most("/ floor", 3),) for shape in (SMALL_TABLE, LARGE_TABLE)
    },
    **{
        Spec("RowAdamW", Sizes().rows, FLOAT32, case): (at_most(TIME, 8), Target("x torch", 100))
        for case in (REPLAY, IN_TABLE)
    },
    Spec(STEP, Sizes().model, BFLOAT16, FOLLOWS): (at_most("/ floor", 1.03), Target("x PEFT", 1.5)),
    Spec(STEP, Sizes().model, BFLOAT16, UNTIED): (at_most("/ floor", 1.03),),
    unequal_spec(UNEQUAL): (Target("x scipy", 1_000),),
}


def targets_of(spec: Spec) -> tuple[Target, ...]:
    """The targets of a row. Most rows, and all rows of a dry run, have none."""
    return TARGETS.get(spec, ())


def ratios(timings: Mapping[str, Timing]) -> dict[str, Ratio]:
    """The ratios to the floor and to the peers, and the time itself.

    >>> list(ratios({"ours": Timing.of([8e-6]), "torch": Timing.of([8e-4])}).values())[0].median
    8.0
    """
    ours = timings["ours"].seconds
    return {TIME: Ratio.of(ours, [1e-6] * len(ours)), **paired_ratios(timings, PEERS)}
