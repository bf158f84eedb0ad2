"""How each row of two tables differs: D, L2 shift, cosine and identity, in one pass over blocks of rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kslottery_fast.ks.order import reordered_rows
from kslottery_fast.ks.tables import refuse_flagged
from kslottery_fast.ops.kernels import statistics_and_identity
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

_NOT_FINITE = HAS_NAN | HAS_INF
_PIECE = 1 << 19  # numbers that are computed with in float64 at a time: 4 MiB, which stay in a cache

Blocks = Iterable[tuple[int, Tensor, Tensor]]
"""The first row of each block, and its rows in both tables."""


@dataclass(frozen=True, eq=False)
class RowDifferences:
    """What was measured of V rows, on the CPU.

    Attributes
    ----------
    counts : Tensor
        int64 [V], h = d * D.
    identical : Tensor
        bool [V]. Whether every number is equal. 0.0 equals -0.0.
    l2, relative_l2, cosine : Tensor
        float64 [V]. The norm of the difference, the same divided by the norm of the row before, and the cosine of the
        row before and the row after. A row that is identical has 0, 0 and 1. A number that does not exist, because a
        row is all zeros, is NaN.
    """

    counts: Tensor
    identical: Tensor
    l2: Tensor
    relative_l2: Tensor
    cosine: Tensor


def measure_rows(blocks: Blocks, V: int, names: tuple[str, str]) -> RowDifferences:
    """Measure the rows of two tables block by block.

    Parameters
    ----------
    blocks : iterable of (int, Tensor, Tensor)
        The blocks in any order. Together they hold every row once.
    V : int
        The number of rows.
    names : (str, str)
        What messages call the tables.

    Returns
    -------
    RowDifferences

    Raises
    ------
    InputError
        A table has NaN or Inf. The message names the table and its first rows.

    Examples
    --------
    >>> before = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 1.0]])
    >>> after = torch.tensor([[1.0, 2.0], [4.0, 3.0], [4.0, 5.0]])
    >>> found = measure_rows([(0, before, after)], 3, ("before", "after"))
    >>> found.counts.tolist(), found.identical.tolist(), found.l2.tolist()
    ([0, 0, 2], [True, False, False], [0.0, 1.4142135623730951, 5.0])
    """
    counts, flags = torch.zeros(V, dtype=torch.int64), torch.zeros(V, dtype=torch.uint8)
    identical = torch.zeros(V, dtype=torch.bool)
    numbers = torch.zeros(3, V, dtype=torch.float64)
    numbers[2] = 1.0
    marks = torch.zeros(V, 1), torch.zeros(V, 1)  # Inf if the row of that table is not finite, else 0
    for start, x, y in blocks:
        here = slice(start, start + len(x))
        h, flagged, known = statistics_and_identity(x, y)
        counts[here], flags[here] = h.cpu(), flagged.cpu()
        bad = torch.nonzero(flagged & _NOT_FINITE)[:, 0]
        for mark, block in zip(marks, (x, y), strict=True):
            mark[here][bad[~torch.isfinite(block[bad]).all(dim=1)].cpu()] = torch.inf
        same = h == 0  # D cannot see order
        same[reordered_rows(x, y, h, known).to(h.device)] = False
        identical[here] = same.cpu()
        for rows in torch.nonzero(~same)[:, 0].split(max(1, _PIECE // max(1, x.shape[1]))):
            numbers[:, start + rows.cpu()] = _distances(x[rows].double(), y[rows].double()).cpu()
    refuse_flagged(*marks, flags, _NOT_FINITE, names)
    return RowDifferences(counts, identical, *numbers)


def memory_blocks(before: Tensor, after: Tensor, block_bytes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut two [V, d] tables into blocks of at most so many bytes, with at least one row each."""
    row_bytes = before.shape[1] * (before.element_size() + after.element_size())
    step = max(1, block_bytes // row_bytes)
    for start in range(0, len(before), step):
        yield start, before[start : start + step], after[start : start + step]


_LEAST, _MOST = 2.0**-480, 2.0**500
"""Norms between these are right as they are. Beyond them, squares may leave the range of float64."""


def row_norms(rows: Tensor) -> Tensor:
    """The L2 norm of each row, float64 [n], also where the squares of the numbers are beyond the range of float64.

    >>> found = row_norms(torch.tensor([[3.0, 4.0], [3e200, 4e200], [3e-200, 4e-200]], dtype=torch.float64))
    >>> [f"{norm:.12g}" for norm in found.tolist()]
    ['5', '5e+200', '5e-200']
    """
    found = rows.norm(dim=1)
    odd = ~((found > _LEAST) & (found < _MOST))
    if rows.shape[1] and bool(odd.any()):
        found[odd] = _scaled_norms(rows[odd])
    return found


def l2_shifts(before: Tensor, after: Tensor) -> Tensor:
    """The L2 norm of the difference of each row, float64 [n]. It is Inf only where float64 cannot hold it.

    >>> l2_shifts(torch.full((1, 2), -8e307, dtype=torch.float64), torch.full((1, 2), 2e307, dtype=torch.float64))
    tensor([1.4142e+308], dtype=torch.float64)
    """
    return row_norms(after.double() - before.double())


def _scaled_norms(rows: Tensor) -> Tensor:
    """The same, as hypot computes it: after a division by a power of two near the largest number."""
    largest = rows.abs().amax(dim=1)
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0))[1].double()
    # In two steps, because 2^1024 is beyond float64. (torch.ldexp computes the power in float32.)
    half = (exponent / 2).floor()
    first, second = torch.exp2(half), torch.exp2(exponent - half)
    norms = (rows / first[:, None] / second[:, None]).norm(dim=1) * first * second
    return torch.where(largest.isfinite(), norms, largest)  # infinity, or NaN


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """L2 shift, relative L2 shift and cosine of each row, float64 [3, n]."""
    l2, before, after = l2_shifts(x, y), row_norms(x), row_norms(y)
    zero = before == 0
    relative = torch.where(zero, torch.nan, l2 / before)
    # The norms divide one after the other, because their product may overflow or underflow.
    cosine = torch.where(zero | (after == 0), torch.nan, ((x / before[:, None]) * (y / after[:, None])).sum(dim=1))
    return torch.stack([l2, relative, cosine.clamp(-1, 1)])
