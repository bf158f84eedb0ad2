"""Two tables that are compared row by row: what may be passed, and errors that name argument and rows."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kslottery_fast import ops
from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.samples import KERNEL_DTYPES, check_dense, tensor_view
from kslottery_fast.ops.schemas import HAS_NAN
from kslottery_fast.rows.overlay import Overlay

Table: TypeAlias = Tensor | nn.Embedding | npt.NDArray[Any]
"""A [V, d] table: tensor, Parameter, nn.Embedding or numpy array of float64, float32, float16 or bfloat16."""

_DIVERGED = "training diverged; lower the learning rate, warm up longer or clip gradients"
_DAMAGED = "this is no healthy checkpoint; load it anew or take an earlier one"
_SHOWN = 5


def ks_statistics(before: Table, after: Table) -> Tensor:
    """Count h = d * D, the exact two-sided KS count of every row of two tables.

    Parameters
    ----------
    before, after : tensor, nn.Embedding or array [V, d]
        Float64, float32, float16 or bfloat16, mixed as you like; any strides. ``after`` is moved to the
        device of ``before``. V may be 0.

    Returns
    -------
    Tensor int64 [V]
        ``D = h / d``. 0 says that the two rows hold the same values (in whatever order).

    Raises
    ------
    InputError
        Shapes that differ or are not [V, d]; NaN, naming the table and the rows. Inf is a value like any
        other.
    TypeError
        Not a table of floats.

    Examples
    --------
    >>> before = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    >>> after = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 5.0, 6.0]])
    >>> ks_statistics(before, after)
    tensor([0, 2])
    """
    first, second = table_pair(before, after, ("before", "after"))
    h, flags = ops.ks_statistics(first, second)
    refuse_flagged(first, second, flags, HAS_NAN, ("before", "after"))
    return h


def table_pair(before: Any, after: Any, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two [V, d] tensors of one shape, d >= 1, on the device of the first; copied only between devices.

    Raises
    ------
    InputError
        Shapes that are not [V, d] or differ; rows attached but not merged; d = 0; masked numbers; no numbers
        at all (the meta device).
    TypeError
        Not a dense table of floats.
    """
    tables = _as_table(before, names[0]), _as_table(after, names[1])
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


def _as_table(value: Any, name: str) -> Tensor:
    if isinstance(value, Overlay):
        raise InputError(
            f"{name} is an embedding with attached rows, which its table lacks: call merge_rows(model) first"
        )
    if isinstance(value, nn.Module):
        weight = getattr(value, "weight", None)
        if not isinstance(value, nn.Embedding) or not isinstance(weight, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}: expected a [V, d] table; for a model pass "
                "model.get_input_embeddings()"
            )
        value = weight
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
