"""Rows of two tables with the same values: identical ones, and those whose values stand in another order.

A KS statistic does not see order, so it is 0 for both. Here the numbers are compared place by place.
"""

import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.ops.kernels import all_finite
from kslottery_fast.ops.schemas import HAS_NAN

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
_FIRST, _LARGEST = 1 << 18, 1 << 22  # bytes of a block of both tables: it stays in the cache for its second reading
_LOOK = 32  # rows that are compared at the end of a table, and spread over it, before it is taken for identical
_SHOWN = 5


def identical_start(before: Tensor, after: Tensor) -> int:
    """Count rows at the start of two tables that hold the same bits, none of them NaN or Inf.

    A few rows are compared first, and 0 is returned if one differs. Then whole blocks are compared, up to the first one
    that differs. So tables that differ cost next to nothing. The count may be too low, but never too high.

    Parameters
    ----------
    before, after : Tensor
        Two [V, d] tables. The count is 0 for tables on a GPU, with other strides, or of two dtypes.

    Returns
    -------
    int

    Examples
    --------
    >>> table = torch.ones(4, 8)
    >>> identical_start(table, table.clone())
    4
    """
    pair = before, after
    plain = all(table.device.type == "cpu" and table.is_contiguous() for table in pair) and before.dtype == after.dtype
    if not plain or before.numel() == 0:
        return 0
    looks = slice(-_LOOK, None), slice(None, None, max(1, len(before) // _LOOK))
    if not all(torch.equal(before[rows], after[rows]) for rows in looks):
        return 0
    # Integers of 64 bits are compared faster than floats, and those of one number's size fit every row.
    V, size, row_bytes = len(before), before.element_size(), 2 * before[0].nbytes
    aligned = all(table.data_ptr() % 8 == 0 and table.storage_offset() * size % 8 == 0 for table in pair)
    word = _WORDS[8 if aligned and row_bytes % 16 == 0 else size]
    start, size = 0, _FIRST
    while start < V:
        block = slice(start, min(V, start + max(1, size // row_bytes)))
        first, second = (table[block] for table in pair)
        if not (torch.equal(first.reshape(-1).view(word), second.reshape(-1).view(word)) and all_finite(first)):
            break
        start, size = block.stop, min(2 * size, _LARGEST)
    return start


def reordered_rows(before: Tensor, after: Tensor, counts: Tensor | None = None) -> Tensor:
    """Find the rows that hold the same values in both tables, but in another order.

    Parameters
    ----------
    before, after : Tensor
        Two [V, d] tables on one device, whose dtypes may differ.
    counts : Tensor, optional
        int64 [V], the exact h of every row. It is 0 for these rows, and for identical ones. Without it, all are 0.

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
    start = identical_start(before, after)
    if counts is None:
        counts = torch.zeros(len(before), dtype=torch.int64, device=before.device)
    equal = start + torch.nonzero(counts[start:] == 0)[:, 0]
    step = max(1, _LARGEST // max(1, before.shape[1] * (before.element_size() + after.element_size())))
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

    Rows that are identical at the start of both tables are only read.

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
    same = identical_start(before, after)
    h, flags = (torch.zeros(len(before), dtype=dtype) for dtype in (torch.int64, torch.uint8))
    reordered = torch.zeros(len(before), dtype=torch.bool)
    if same < len(before):
        counts, flags[same:] = ops.ks_statistics(before[same:], after[same:])
        h[same:] = torch.where(flags[same:] & HAS_NAN != 0, -1, counts)
        reordered[same + reordered_rows(before[same:], after[same:], h[same:])] = True
    return h, flags, reordered
