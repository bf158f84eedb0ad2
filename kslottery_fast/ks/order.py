"""Rows of two tables with the same values: identical ones, and those whose values stand in another order.

A KS statistic does not see order, so it is 0 for both. Here the numbers are compared place by place.
"""

import torch
from torch import Tensor

from kslottery_fast.ops.kernels import statistics_and_identity
from kslottery_fast.ops.schemas import HAS_NAN

_BLOCK = 1 << 22  # bytes of the rows of both tables that are compared at a time
_SHOWN = 5


def reordered_rows(
    before: Tensor, after: Tensor, counts: Tensor | None = None, identical: Tensor | None = None
) -> Tensor:
    """Find the rows that hold the same values in both tables, but in another order.

    Parameters
    ----------
    before, after : Tensor
        Two [V, d] tables on one device, whose dtypes may differ.
    counts : Tensor, optional
        int64 [V], the exact h of every row. It is 0 for these rows, and for identical ones. Without it, all are 0.
    identical : Tensor, optional
        bool [V], rows that are known to be identical. They are not read.

    Returns
    -------
    Tensor
        int64 [k], ascending, on the CPU. Zeros of either sign are the same value.

    Examples
    --------
    >>> before, after = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    >>> reordered_rows(before, after)
    tensor([1])
    """
    asked = torch.ones(len(before), dtype=torch.bool, device=before.device) if counts is None else counts == 0
    equal = torch.nonzero(asked if identical is None else asked & ~identical)[:, 0]
    step = max(1, _BLOCK // max(1, before.shape[1] * (before.element_size() + after.element_size())))
    found = [torch.empty(0, dtype=torch.int64)]
    for ids in equal.split(step) if len(equal) else ():
        low, high = int(ids[0]), int(ids[-1]) + 1
        if high - low <= 2 * len(ids):  # to compare a few more rows costs less than a copy of these
            differs = (before[low:high] != after[low:high]).any(dim=1)[ids - low]
        else:
            differs = (before[ids] != after[ids]).any(dim=1)
        found.append(ids[differs].cpu())
    return torch.cat(found)


def order_note(names: tuple[str, str], rows: Tensor) -> str:
    """Say that rows hold the same values in another order.

    >>> order_note(("before", "after"), torch.tensor([3]))[:71]
    'no row of after holds other values than in before, but 1 row holds them'
    """
    ids = ", ".join(map(str, rows[:_SHOWN].tolist())) + (", ..." if len(rows) > _SHOWN else "")
    several = f"{len(rows):,} rows hold" if len(rows) != 1 else "1 row holds"
    return (
        f"no row of {names[1]} holds other values than in {names[0]}, but {several} them in another order (token ids "
        f"{ids}): the KS test compares the values of a row, not their order; look for permuted columns"
    )


def counts_and_order(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exact h of every row of two tables, and the rows that hold the same values in another order.

    Parameters
    ----------
    before, after : Tensor
        Two [V, d] tables that :func:`kslottery_fast.ops.ks_statistics` accepts.

    Returns
    -------
    h : Tensor
        int64 [V]. A row with NaN has -1.
    flags : Tensor
        uint8 [V], as from :func:`kslottery_fast.ops.ks_statistics`.
    reordered : Tensor
        bool [V].

    Examples
    --------
    >>> before = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> h, _, reordered = counts_and_order(before, torch.tensor([[1.0, 2.0], [4.0, 3.0], [7.0, 8.0]]))
    >>> h.tolist(), reordered.tolist()
    ([0, 0, 2], [False, True, False])
    """
    h, flags, identical = statistics_and_identity(before, after)
    h = h.masked_fill(flags & HAS_NAN != 0, -1)
    reordered = torch.zeros(len(before), dtype=torch.bool)
    reordered[reordered_rows(before, after, h, identical)] = True
    return h, flags, reordered
