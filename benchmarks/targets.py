"""The targets of `make bench`, and the contenders of its ratios."""

from __future__ import annotations

import torch

from .ks_workloads import PREFIX
from .paired import Peers
from .reporting import Target
from .training_workloads import BOTH, BOTH_TABLES, MONITOR, STEP, TOKEN, WIDTH
from .two_sample_workloads import COLUMNS, OMIT_SPEC, REFERENCE_SPEC, SHAPES, column_spec
from .workloads import Spec

PEERS: Peers = {
    "x scipy": ("scipy",),
    "x axis": ("scipy axis",),
    "x presorted": ("presorted",),
    "x sort": ("numpy sort", "torch sort"),
    "x torch": ("torch",),
    "x float32": ("float32",),
    "x PEFT": ("peft",),
    "x dense": ("dense",),
    "x mask": ("mask",),
    "x step": ("step",),
}
LLAMA = (32_000, 4_096)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TARGETS = {
    Spec("ks_select", LLAMA, FLOAT32, "every row shifted"): (Target("x scipy", 350), Target("/ floor", 7, False)),
    Spec("ks_select", LLAMA, FLOAT32, "5% of rows changed"): (Target("x scipy", 1_200), Target("/ floor", 1.8, False)),
    Spec("ks_statistics", LLAMA, FLOAT32, "every row shifted"): (Target("x scipy", 220),),
    Spec("ks_select", LLAMA, BFLOAT16, "every row shifted"): (Target("x float32", 1.1),),
    Spec("RowAdamW", (18, 4_096), FLOAT32, "compact parameter"): (Target("x torch", 1), Target("x dense", 200)),
    Spec("RowAdamW", (2_253, 576), FLOAT32, "compact parameter"): (Target("x torch", 1),),
    Spec(MONITOR, (2_253, 576), FLOAT32, "a check every 10 steps"): (Target("x step", 100),),
}
STEP_FLOOR, TOKEN_FLOOR = Target("/ floor", 1.03, False), Target("/ floor", 1.02, False)
for _V, _times in ((49_152, 1.25), (128_256, 1.6)):
    _follows, _frozen, _untied = (
        {op: Spec(op, (_V, WIDTH), FLOAT32, case) for op in (STEP, TOKEN)}
        for case in ("tied, head follows", "tied, head frozen", "untied")
    )
    TARGETS[_follows[STEP]] = (STEP_FLOOR, Target("x PEFT", _times))
    TARGETS[_follows[TOKEN]] = (TOKEN_FLOOR, Target("x PEFT", 2.5))
    TARGETS |= {specs[STEP]: (STEP_FLOOR,) for specs in (_frozen, _untied)}
    TARGETS |= {specs[TOKEN]: (TOKEN_FLOOR,) for specs in (_frozen, _untied)}
for _V in BOTH_TABLES:
    TARGETS |= {Spec(op, (_V, WIDTH), FLOAT32, BOTH): (STEP_FLOOR, Target("x PEFT", 1.5)) for op in (STEP, TOKEN)}
TARGETS |= {column_spec(COLUMNS, *shape): (Target("x scipy", times),) for shape, times in SHAPES.items()}
TARGETS |= {spec: (Target("x presorted", 1 / 2),) for spec in (REFERENCE_SPEC, OMIT_SPEC)}
NEVER_SLOWER = (Target("x sort", 1 / 2.5),)  # than 2.5 times the best sort of both rows


def targets_of(spec: Spec) -> tuple[Target, ...]:
    """The targets of a row. Most rows have none."""
    if spec.op == "ks_statistics" and spec.case.startswith(PREFIX):
        return NEVER_SLOWER
    return TARGETS.get(spec, ())
