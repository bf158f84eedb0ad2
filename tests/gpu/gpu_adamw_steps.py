"""Steps of row AdamW on more tables than one launch takes, of which one has more tiles than blocks run at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HYPER = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
TILE = 512  # elements of float32; csrc/cuda/row_adamw.cu
TABLES = 20
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


class Steps:
    """Tables, gradients that stay the same, moments, and the words of the step. ``step`` is ops.row_adamw_step_."""

    def __init__(self, where: torch.device, tiles: int, step: Callable[..., None], tables: int = TABLES) -> None:
        shapes = [(tiles, TILE), *[(5 + i, 30 + 7 * i) for i in range(tables - 1)]]
        kinds = [torch.float32, *[DTYPES[i % 4] for i in range(tables - 1)]]
        wide = [torch.float64 if kind == torch.float64 else torch.float32 for kind in kinds]
        self._start = [
            [self._random(shape, seed).to(kind).to(where) for shape, kind in zip(shapes, kinds, strict=True)]
            for seed in (0, 1)
        ] + [
            [self._random(shape, seed).square().to(kind).to(where) for shape, kind in zip(shapes, wide, strict=True)]
            for seed in (2, 3)
        ]
        self.tables, self.grads, self.exp_avgs, self.exp_avg_sqs = [[each.clone() for each in of] for of in self._start]
        self.steps = [torch.zeros((), device=where) for _ in shapes]
        self.control = torch.zeros(3, dtype=torch.int32, device=where)
        self._rates = [torch.tensor(1e-3, dtype=torch.float64, device=where)] * tables
        self._step = step

    @staticmethod
    def _random(shape: tuple[int, int], seed: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def run(self) -> None:
        """One step, which is left out if a gradient is not finite."""
        count = len(self.tables)
        masters, rows = [torch.empty(0)] * count, [None] * count
        moments = self.exp_avgs, self.exp_avg_sqs
        options: dict[str, Any] = {name: [value] * count for name, value in HYPER.items()}
        options |= {"whole_grads": [False] * count, "skip_nonfinite": True}
        tensors = self.tables, rows, self.grads, *moments, masters, self.steps, self._rates, self.control
        self._step(*tensors, **options)

    def start_again(self) -> None:
        """What was written is as it was at first."""
        written = self.tables, self.exp_avgs, self.exp_avg_sqs
        for values, first in zip(written, (self._start[0], *self._start[2:]), strict=True):
            for value, old in zip(values, first, strict=True):
                value.copy_(old)
        for word in (*self.steps, self.control):
            word.zero_()

    def spoil(self) -> None:
        """A gradient in the last tile of the last launch is not finite."""
        self.grads[-1][-1, -1] = math.nan

    def mend(self) -> None:
        """It is what it was."""
        self.grads[-1][-1, -1] = self._start[1][-1][-1, -1]

    def written(self) -> list[Tensor]:
        """Copies of all that a step writes into."""
        return [each.clone() for each in (*self.tables, *self.exp_avgs, *self.exp_avg_sqs, *self.steps, self.control)]


def go(steps: Steps, replay: Callable[[], object], replays: int, bad_every: int) -> None:
    """Replay the step, each `bad_every`-th time with a bad gradient. Fails unless the words say so in the end."""
    for number in range(1, replays + 1):
        bad = number % bad_every == 0
        if bad:
            steps.spoil()
        replay()
        if bad:
            steps.mend()
    left_out = replays // bad_every
    assert steps.control.tolist() == [0, 0, left_out]
    assert [int(word) for word in steps.steps] == [replays - left_out] * len(steps.steps)
