"""What the tests of RowAdamW share: a small table, some of its rows, and gradients of many sizes."""

from __future__ import annotations

import torch
from torch import nn

V, D = 30, 8
ROWS = [7, 3, 20]


def table(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(V, D, generator=generator).to(dtype))


def gradients(steps: int, shape: tuple[int, ...] = (V, D)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Sizes over eight orders of magnitude, and a row that gets no gradient half of the time.
    grads = [torch.randn(shape, generator=generator) * 10.0 ** ((step % 9) - 6) for step in range(steps)]
    for grad in grads[::2]:
        grad[3 % shape[0]] = 0
    return grads
