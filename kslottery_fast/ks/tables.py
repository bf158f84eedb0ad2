"""Two tables that are compared row by row: what may be passed, and errors that name argument and rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops.schemas import HAS_NAN

from .samples import KERNEL_DTYPES, check_dense, tensor_view

_DIVERGED = "training diverged; lower the learning rate, warm up longer or clip gradients"
_DAMAGED = "this is no healthy checkpoint; load it anew or take an earlier one"
_SHOWN = 5


def counts_in_memory(before: Any, after: Any, names: tuple[str, str]) -> Tensor:
    """Exact h of every row of two tables in memory, int64 [V]; errors are those of :func:`table_pair`, and NaN."""
    first, second = table_pair(before, after, names)
    h, flags = ops.ks_statistics(first, second)
    refuse_flagged(first, second, flags, HAS_NAN, names)
    return h


def table_pair(before: Any, after: Any, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two [V, d] tensors of one shape, d >= 1, on the device of the first; copied only between devices.

    Raises
    ------
    InputError
        Shapes that are not [V, d] or differ; d = 0; masked numbers; no numbers at all (the meta device).
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


def same_memory(before: Tensor, after: Tensor) -> bool:
    """Whether both are views of the same numbers, so that nothing can differ."""
    return before.numel() > 0 and before.data_ptr() == after.data_ptr() and before.stride() == after.stride()


def refuse_flagged(before: Tensor, after: Tensor, flags: Tensor, bits: int, names: tuple[str, str]) -> None:
    """Raise InputError if a row has one of the flag ``bits`` (1 NaN, 2 Inf), naming table and first rows."""
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
        raise TypeError(f"{name} is a {type(value).__name__}: expected a [V, d] tensor, array or nn.Embedding")
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
