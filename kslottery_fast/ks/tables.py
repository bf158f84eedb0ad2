"""Two tables that are compared row by row: what may be passed, and errors that name the argument and its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.arguments import shown
from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops.kernels import statistics_and_identity
from kslottery_fast.ops.schemas import HAS_NAN

from .samples import KERNEL_DTYPES, check_dense, tensor_view

_DIVERGED = "training diverged; lower the learning rate, warm up longer or clip gradients"
_DAMAGED = "this checkpoint is damaged; load it again or take an earlier one"
_SHOWN = 5
_SMALL = 512  # rows of a table whose blocks would take longer than to count all rows
_SAMPLED, _SPACING = 256, 64  # at most 256 rows, and at most every 64th: the sample costs a few percent of the pass


def counts_in_memory(before: Any, after: Any, names: tuple[str, str]) -> Tensor:
    """Return the exact h of every row of two tables in memory, int64 [V].

    Raises
    ------
    InputError, TypeError
        As for :func:`table_pair`. NaN is an InputError too.
    """
    first, second = table_pair(before, after, names)
    h, flags = ops.ks_statistics(first, second)
    refuse_flagged(first, second, flags, HAS_NAN, names)
    return h


def table_pair(before: Any, after: Any, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Return two [V, d] tensors of one shape, d >= 1, on the device of the first. They are copied only between devices.

    Raises
    ------
    InputError
        Shapes that are not [V, d] or that differ, d = 0, masked numbers, or no numbers at all (the meta device).
    TypeError
        Not a dense table of floats.
    """
    tables = _as_tensor(before, names[0]), _as_tensor(after, names[1])
    shapes = [list(table.shape) for table in tables]
    both = f"{names[0]} is {shapes[0]} and {names[1]} is {shapes[1]}"
    if shapes[0][1] != shapes[1][1]:
        raise InputError(f"{both}: rows of different lengths are not two states of one model")
    if shapes[0] != shapes[1]:
        shared = min(shapes[0][0], shapes[1][0])
        raise InputError(
            f"{both}: was the vocabulary resized between them? Compare the rows that they share, [:{shared}]"
        )
    if shapes[0][1] == 0:
        raise InputError(f"{names[0]} and {names[1]} are {shapes[0]}: rows without numbers cannot be compared")
    return tables[0], tables[1].to(tables[0].device)


def counts_and_largest(before: Tensor, after: Tensor, threshold: int, known: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The counts h that reach a threshold, and the largest h, in one pass over two tables.

    Rows that are identical are found to be so, which D cannot tell: it is 0 for values in another order too.

    The largest h is wanted even if no row is significant. So the pass asks for every h that exceeds the largest one so
    far. It begins with a few rows that are spread over the table, and the first blocks are small. After that nearly all
    rows cost only a decision. Once a significant row is found, only the threshold counts.

    Parameters
    ----------
    before, after : Tensor
        Two [V, d] tables that :func:`kslottery_fast.ops.ks_statistics` accepts.
    threshold : int
        The smallest h that is significant.
    known : int
        An h that another part of the table is known to have. Rows that do not exceed it need not be counted.

    Returns
    -------
    h : Tensor
        int64 [V]. Exact where h reaches the threshold, and for a row with the largest h if that exceeds ``known``.
        Elsewhere exact or 0. A row with NaN has -1.
    flags : Tensor
        uint8 [V], as from :func:`kslottery_fast.ops.ks_statistics`.
    identical : Tensor
        bool [V], the rows that are known to hold the same finite numbers. Others may too.
    """
    V = len(before)
    if V <= _SMALL:
        return statistics_and_identity(before, after, min(threshold, known + 1))
    h, flags, identical = (before.new_empty(V, dtype=dtype) for dtype in (torch.int64, torch.uint8, torch.bool))
    sample, sampled, start = slice(0), h[:0], 0
    if threshold > known + 1 and known == 0:
        sample = slice(None, None, max(_SPACING, V // _SAMPLED))
        sampled, _, _ = statistics_and_identity(before[sample], after[sample], 1)
        known = max(0, int(sampled.max()))
    while start < V:
        # The first block has V / 32 rows, and each next one doubles what was read. Once the threshold cannot rise any
        # more, one block takes the rest.
        stop = V if threshold <= known + 1 else min(V, max(2 * start, V // 32, _SPACING))
        block = slice(start, stop)
        found = statistics_and_identity(before[block], after[block], min(threshold, known + 1))
        h[block], flags[block], identical[block] = found
        if stop < V:
            known = max(known, int(h[block].max()))
        start = stop
    h[sample] = torch.maximum(h[sample], sampled)
    return h, flags, identical


def same_memory(before: Tensor, after: Tensor) -> bool:
    """Tell whether both are views of the same numbers, so that nothing can differ."""
    return before.numel() > 0 and before.data_ptr() == after.data_ptr() and before.stride() == after.stride()


def refuse_flagged(before: Tensor, after: Tensor, flags: Tensor, bits: int, names: tuple[str, str]) -> None:
    """Raise InputError if a row has one of the flag ``bits`` (1 NaN, 2 Inf). The message names table and first rows."""
    flagged = torch.nonzero(flags & bits)[:, 0]
    if not len(flagged):
        return
    what = {1: "NaN", 2: "Inf", 3: "NaN or Inf"}[bits]
    bad = {1: torch.isnan, 2: torch.isinf, 3: _not_finite}[bits]
    parts = []
    for table, name in zip((before, after), names, strict=True):
        rows = flagged[bad(table[flagged]).any(dim=1)]
        if len(rows):
            shown = ", ".join(map(str, rows[:_SHOWN].tolist())) + (", ..." if len(rows) > _SHOWN else "")
            plural = "row" if len(rows) == 1 else "rows"
            parts.append((name, f"{name} has {what} in {len(rows)} {plural} (token ids {shown})"))
    found = " and ".join(text for _, text in parts)
    only_after = [name for name, _ in parts] == [names[1]]
    raise InputError(f"{found}: {_DIVERGED if only_after else _DAMAGED}")


def _not_finite(table: Tensor) -> Tensor:
    return ~torch.isfinite(table)


def _as_tensor(value: Any, name: str) -> Tensor:
    if np.ma.is_masked(value):
        raise InputError(
            f"{name} is a masked array that hides {np.ma.count_masked(value)} of its numbers, and a row is tested "
            f"whole: fill them ({name}.filled(number)), or drop their rows from both tables"
        )
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:
            raise TypeError(f"{name} has dtype {value.dtype}: expected float64, float32 or float16")
        value = tensor_view(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {shown(value)}: expected a [V, d] tensor or array, an nn.Embedding or a model")
    if is_dtensor(value):
        raise InputError(
            f"{name} is a DTensor, of which this process holds a part: use kslottery_fast.tickets.ks_select_sharded"
        )
    check_dense(value, name)
    if value.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name} has dtype {value.dtype}: expected float64, float32, float16 or bfloat16")
    if value.ndim != 2:
        raise InputError(f"{name} has shape {list(value.shape)}: expected [V, d], one row per token")
    return value.detach()
