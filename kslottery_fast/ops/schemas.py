"""The schemas of the operators, the checks of their arguments, and their fake kernels.

The checks look only at shapes, strides, dtypes and devices, so that they also run on fake tensors. Values (token ids in
range, distinct rows) are checked by the kernels, which read them anyway.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from .records import RowUpdate, StepUpdate, schema_of

NAMESPACE = "kslottery"

SCHEMAS = {
    # x [R, n], y [R, m] -> int64 [R], int64 [R], float64 [R], float64 [R], uint8 [R]; places of integers are integers
    "ks_rows": "(Tensor x, Tensor y, str sides='both') -> "
    "(Tensor plus, Tensor minus, Tensor plus_at, Tensor minus_at, Tensor flags)",
    # [V, d], [V, d] -> int64 [V], uint8 [V]
    "ks_statistics": "(Tensor before, Tensor after, int threshold=0) -> (Tensor h, Tensor flags)",
    # [V, d], [V, d] -> bool [V], uint8 [V]
    "ks_decide": "(Tensor before, Tensor after, int threshold) -> (Tensor decided, Tensor flags)",
    "row_adamw_": schema_of(RowUpdate, written=("table", "exp_avg", "exp_avg_sq", "master"), first_keyword="step"),
    "row_adamw_step_": schema_of(
        StepUpdate,
        written=("tables", "exp_avgs", "exp_avg_sqs", "masters", "steps", "control"),
        first_keyword="beta1",
    ),
    # table [V, d], rows [k, d], slots int32 [V], ids int64 [...] -> [..., d]
    "row_embedding": "(Tensor table, Tensor rows, Tensor slots, Tensor ids) -> Tensor",
    # grad_out [..., d], slots int32 [V], ids int64 [...] -> float32 [k, d] (float64 for float64)
    "row_embedding_backward": "(Tensor grad_out, Tensor slots, Tensor ids, SymInt k) -> Tensor",
}

DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
"""The DType codes of csrc/ksl.h."""

INTEGER_CODES = {torch.int64: 4, torch.uint64: 5}
"""Those of the integers that ks_rows takes."""

SIDES = {"both": 0, "plus": 1, "minus": 2, "larger": 3}
"""The Sides codes of csrc/ksl.h."""

HAS_NAN, HAS_INF = 1, 2
"""The bits of a row's flags."""

FINISHED, NONFINITE, LEFT_OUT = 0, 1, 2
"""The entries of row_adamw_step_'s control, as in csrc/ksl.h: two for the kernel, and a count of steps left out."""

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def shape_of(tensor: Tensor) -> str:
    """The shape as error messages show it: ``[2, 3]``."""
    return str(list(tensor.shape))


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse all but strided tensors of one of the four element types."""
    if tensor.dtype not in DTYPE_CODES:
        raise InputError(f"{name} has dtype {tensor.dtype}; expected float32, float64, float16 or bfloat16")
    if tensor.layout is not torch.strided:
        raise InputError(f"{name} has layout {tensor.layout}; expected a dense tensor: use {name}.to_dense()")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Refuse all but floating-point matrices."""
    check_floating(name, tensor)
    if tensor.dim() != 2:
        raise InputError(f"{name} has shape {shape_of(tensor)}; expected two dimensions, one row per token")


def check_same_device(**tensors: Tensor | None) -> None:
    """Refuse tensors that are not on the device of the first."""
    (first_name, first), *others = [(name, t) for name, t in tensors.items() if t is not None]
    for name, tensor in others:
        if tensor.device != first.device:
            raise InputError(f"{name} is on {tensor.device}, {first_name} on {first.device}; move them to one device")


def check_samples(x: Tensor, y: Tensor, sides: str) -> None:
    """Check the arguments of ks_rows."""
    if sides not in SIDES:
        raise InputError(f"sides is {sides!r}; expected one of {', '.join(map(repr, SIDES))}")
    if x.dtype not in INTEGER_CODES or x.dtype != y.dtype or y.layout is not x.layout or x.dim() != 2 or y.dim() != 2:
        check_matrix("x", x)
        check_matrix("y", y)
    check_same_device(x=x, y=y)
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and y has {y.shape[0]}; row r is tested against row r")
    for name, sample in (("x", x), ("y", y)):
        if sample.shape[1] == 0:
            raise InputError(f"{name} has shape {shape_of(sample)}; a sample needs at least one value")


def check_tables(before: Tensor, after: Tensor) -> None:
    """Check the arguments of ks_statistics and ks_decide."""
    check_matrix("before", before)
    check_matrix("after", after)
    check_same_device(before=before, after=after)
    if before.shape != after.shape:
        raise InputError(f"before has shape {shape_of(before)} and after {shape_of(after)}; expected one shape [V, d]")
    if before.shape[1] == 0:
        raise InputError(f"before has shape {shape_of(before)}; a row needs at least one value")


def row_adamw_(*tensors: Any, **options: Any) -> None:
    """Check the arguments of row_adamw_, which has no outputs."""
    check_row_update(RowUpdate(*tensors, **options))


def check_row_update(update: RowUpdate) -> None:
    """Check the arguments of row_adamw_. This is written for speed, as an update of a few rows takes hardly longer."""
    table, rows, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay, master, _ = update
    check_matrix("table", table)
    check_matrix("grad", grad)
    state = (exp_avg, exp_avg_sq) if master is None else (exp_avg, exp_avg_sq, master)
    dtype, device = table.dtype, table.device
    for other in (rows, grad, *state):
        if other is not None and other.device != device:
            check_same_device(table=table, rows=rows, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, master=master)
    shape, (height, width), strides = grad.shape, table.shape, table.stride()
    if 0 in strides and ((height > 1 and strides[0] == 0) or (width > 1 and strides[1] == 0)):
        raise InputError("table is an expanded tensor whose rows share memory; clone it first")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise InputError(f"rows is {rows.dtype} {shape_of(rows)}; expected one int64 token id per row of grad")
    count = height if rows is None else rows.shape[0]
    if shape != (count, width):
        whose = "rows is None, so the whole table is updated" if rows is None else "one row for each of rows"
        raise InputError(f"grad has shape {shape_of(grad)}; expected [{count}, {width}], {whose}")
    if master is not None and dtype in (torch.float32, torch.float64):
        raise InputError(f"master is for tables narrower than float32, table is {dtype}; pass None")
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for i, tensor in enumerate(state):
        if tensor.dtype != state_dtype or tensor.shape != shape or not tensor.is_contiguous():
            name = ("exp_avg", "exp_avg_sq", "master")[i]
            raise InputError(
                f"{name} is {tensor.dtype} {shape_of(tensor)} with strides {tensor.stride()}; "
                f"expected contiguous {state_dtype} {shape_of(grad)}"
            )
    if step < 1:
        raise InputError(f"step is {step}; expected the number of this update, counted from 1")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        name = "beta2" if 0 <= beta1 < 1 else "beta1"
        raise InputError(f"{name} is {getattr(update, name)}; expected 0 <= {name} < 1")
    if not (0 <= lr < math.inf and 0 <= eps < math.inf and 0 <= weight_decay < math.inf):
        name = next(name for name in ("lr", "eps", "weight_decay") if not 0 <= getattr(update, name) < math.inf)
        raise InputError(f"{name} is {getattr(update, name)}; expected a finite number of at least 0")


def check_step(step: Tensor) -> None:
    """Check the number of updates made so far, which the kernel reads and writes."""
    if not torch.is_tensor(step) or step.dtype != torch.float32 or step.numel() != 1 or not step.is_cpu:
        given = f"{step.dtype} {shape_of(step)} on {step.device}" if torch.is_tensor(step) else repr(step)
        raise InputError(f"step is {given}; expected one float32 on the CPU")


def row_adamw_step_(*tensors: Any, **options: Any) -> None:
    """Check the arguments of row_adamw_step_, which has no outputs."""
    check_step_update(StepUpdate(*tensors, **options))


def check_step_update(update: StepUpdate) -> None:
    """Check the arguments of row_adamw_step_."""
    tables, control = update.tables, update.control
    for name, values in zip(update._fields, update, strict=True):
        if isinstance(values, (list, tuple)) and len(values) != len(tables):
            raise InputError(f"{name} has {len(values)} entries for {len(tables)} tables; expected one for each")
    if control.dtype != torch.int32 or tuple(control.shape) != (3,) or not control.is_contiguous():
        raise InputError(f"control is {control.dtype} {shape_of(control)}; expected int32 [3], zeros at first")
    for i, table in enumerate(tables):
        grad, step, lr = update.grads[i], update.steps[i], update.lrs[i]
        if update.whole_grads[i] and grad.shape != table.shape:
            raise InputError(f"grads has {shape_of(grad)} for a table {shape_of(table)}, but whole_grads is True")
        rows_alone = grad[: len(update.exp_avgs[i])] if update.whole_grads[i] else grad
        check_row_update(update.part(i, grad=rows_alone, step=1, lr=0.0))
        check_same_device(tables=table, control=control)
        for name, scalar in (("steps", step), ("lrs", lr)):
            _check_scalar(name, scalar)
            if not scalar.is_cpu:
                check_same_device(tables=table, **{name: scalar})
        if step.dtype != torch.float32:
            raise InputError(f"steps holds {step.dtype}; expected float32 scalars, the updates made so far")
        if step.is_cpu and not table.is_cpu and (update.skip_nonfinite or update.found_inf is not None):
            raise InputError(
                "steps is on the CPU, but whether this step is left out is known on the device alone; "
                f"move steps to {table.device}"
            )
    for name, flag in (("grad_scale", update.grad_scale), ("found_inf", update.found_inf)):
        if flag is not None:
            _check_scalar(name, flag)
            check_same_device(control=control, **{name: flag})
            if flag.dtype != torch.float32:
                raise InputError(f"{name} is {flag.dtype}; expected a float32 scalar, such as GradScaler's")


def _check_scalar(name: str, scalar: Tensor) -> None:
    if scalar.numel() != 1 or scalar.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} is {scalar.dtype} {shape_of(scalar)}; expected one float32 or float64 number")


def check_slots_and_ids(slots: Tensor, ids: Tensor) -> None:
    """Check the arguments that row_embedding and its backward share."""
    if slots.dtype != torch.int32 or slots.dim() != 1:
        raise InputError(f"slots is {slots.dtype} {shape_of(slots)}; expected int32 [V]: the row of each token, or -1")
    if ids.dtype != torch.int64:
        raise InputError(f"ids has dtype {ids.dtype}; expected int64 token ids: use ids.long()")


def check_row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> None:
    """Check the arguments of row_embedding."""
    check_matrix("table", table)
    check_matrix("rows", rows)
    check_slots_and_ids(slots, ids)
    check_same_device(table=table, rows=rows, slots=slots, ids=ids)
    if rows.shape[1] != table.shape[1]:
        raise InputError(f"rows has shape {shape_of(rows)}; expected {table.shape[1]} columns, as table has")
    if slots.shape[0] != table.shape[0]:
        raise InputError(f"slots has {slots.shape[0]} entries; expected {table.shape[0]}, one per row of table")


def check_row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> None:
    """Check the arguments of row_embedding_backward."""
    check_floating("grad_out", grad_out)
    check_slots_and_ids(slots, ids)
    check_same_device(grad_out=grad_out, slots=slots, ids=ids)
    if grad_out.dim() != ids.dim() + 1 or grad_out.shape[:-1] != ids.shape:
        raise InputError(
            f"grad_out has shape {shape_of(grad_out)}; expected the shape of ids, {shape_of(ids)}, and [d]"
        )
    if k < 0:
        raise InputError(f"k is {k}; expected the number of trained rows")


def ks_rows(x: Tensor, y: Tensor, sides: str = "both") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments of ks_rows and make its outputs, not filled."""
    check_samples(x, y, sides)
    rows = x.shape[0]
    place = x.dtype if x.dtype in INTEGER_CODES else torch.float64
    return (
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(rows, dtype=place),
        x.new_empty(rows, dtype=place),
        x.new_empty(rows, dtype=torch.uint8),
    )


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """Check the arguments of ks_statistics and make its outputs, not filled."""
    check_tables(before, after)
    rows = before.shape[0]
    return before.new_empty(rows, dtype=torch.int64), before.new_empty(rows, dtype=torch.uint8)


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """Check the arguments of ks_decide and make its outputs, not filled."""
    check_tables(before, after)
    rows = before.shape[0]
    return before.new_empty(rows, dtype=torch.bool), before.new_empty(rows, dtype=torch.uint8)


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Check the arguments of row_embedding and make its output, not filled."""
    check_row_embedding(table, rows, slots, ids)
    return table.new_empty((*ids.shape, table.shape[1]))


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """Check the arguments of row_embedding_backward and make its output, not filled."""
    check_row_embedding_backward(grad_out, slots, ids, k)
    dtype = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    return grad_out.new_empty((k, grad_out.shape[-1]), dtype=dtype)


# A fake kernel checks the arguments and allocates the outputs. The real ones start with the same functions.
for _name in SCHEMAS:
    torch.library.register_fake(f"{NAMESPACE}::{_name}", globals()[_name], lib=LIBRARY)
