"""KS statistics and sorted rows by other libraries, each on a sample of the rows and scaled to all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from .measure import Contender

SCIPY_ROWS = 50
NUMPY_ROWS = 512
TORCH_ROWS = 32


def sampled_rows(total: int, rows: int) -> Tensor:
    """At most that many of all rows, evenly spaced."""
    return torch.linspace(0, total - 1, min(rows, total)).long()


def sample(before: Tensor, after: Tensor, rows: int) -> tuple[Tensor, Tensor, float]:
    """The sampled rows in float32, and how many times as many there are in all."""
    chosen = sampled_rows(len(before), rows)
    return before[chosen].float(), after[chosen].float(), len(before) / len(chosen)


def scipy_rows(before: Tensor, after: Tensor) -> Contender:
    """scipy.stats.ks_2samp, row by row, by the method that is cheapest for scipy."""
    x, y, scale = sample(before, after, SCIPY_ROWS)
    pairs = list(zip(x.numpy(), y.numpy(), strict=True))
    return Contender(lambda turn: [scipy.stats.ks_2samp(a, b, method="asymp") for a, b in pairs], scale)


def numpy_sort(before: Tensor, after: Tensor) -> Contender:
    """numpy.sort of both rows, one thread per half. At this size it is vectorised and the fastest sort in Python."""
    x, y, scale = sample(before, after, NUMPY_ROWS)
    threads = torch.get_num_threads()
    blocks = [block for table in (x, y) for block in np.array_split(table.numpy(), threads)]
    pool = ThreadPoolExecutor(threads)
    return Contender(lambda turn: list(pool.map(lambda block: np.sort(block, axis=1).shape, blocks)), scale)


def torch_sort(before: Tensor, after: Tensor) -> Contender:
    """torch.sort of both rows, batched."""
    x, y, scale = sample(before, after, TORCH_ROWS)
    return Contender(lambda turn: (x.sort(dim=1).values.shape, y.sort(dim=1).values.shape), scale)


def torch_ks(before: Tensor, after: Tensor) -> Contender:
    """The exact statistics by torch alone, batched."""
    x, y, scale = sample(before, after, TORCH_ROWS)
    return Contender(lambda turn: batched_statistics(x, y), scale)


def batched_statistics(x: Tensor, y: Tensor) -> Tensor:
    """Exact counts h = d * D, int64 [rows]. Sort both rows. At every value, count how many of each are at most it."""
    x, y = x.sort(dim=1).values, y.sort(dim=1).values
    values = torch.cat([x, y], dim=1)
    counts = [torch.searchsorted(table, values, right=True) for table in (x, y)]
    return (counts[0] - counts[1]).abs().amax(dim=1)
