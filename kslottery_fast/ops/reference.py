"""The operators in plain torch. They are readable, and run on any device.

They are used if there are no native kernels for a device, and the tests compare the native kernels with them.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import schemas
from .records import RowUpdate, StepUpdate
from .schemas import HAS_INF, HAS_NAN, LEFT_OUT

_BLOCK_ELEMENTS = 1 << 21
"""How many values one block of rows may hold. They take about 100 MB of sorted copies and int64 ranks."""
_FLIP = -(2**63)
"""The bit by which uint64 and int64 of the same order differ."""


def ks_rows(x: Tensor, y: Tensor, sides: str = "both") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``kslottery_fast.ops.ks_rows``."""
    outputs = schemas.ks_rows(x, y, sides)
    if x.dtype == torch.uint64:  # torch neither sorts nor compares it
        plus, minus, plus_at, minus_at, flags = outputs
        signed = plus, minus, plus_at.view(torch.int64), minus_at.view(torch.int64), flags
        _fill(x.view(torch.int64) ^ _FLIP, y.view(torch.int64) ^ _FLIP, sides, signed, nowhere=_FLIP)
        signed[2].bitwise_xor_(_FLIP)
        signed[3].bitwise_xor_(_FLIP)
    else:
        _fill(x, y, sides, outputs)
    return outputs


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _fill(x: Tensor, y: Tensor, sides: str, outputs: _Outputs, *, nowhere: int = 0) -> None:
    block = max(1, _BLOCK_ELEMENTS // (x.shape[1] + y.shape[1]))
    for start in range(0, x.shape[0], block):
        part = slice(start, start + block)
        for output, value in zip(outputs, _ks_block(x[part], y[part]), strict=True):
            output[part] = value
    show_sides(x, y, sides, outputs, nowhere=nowhere)


def show_sides(x: Tensor, y: Tensor, sides: str, outputs: _Outputs, *, nowhere: int = 0) -> None:
    """Clear the side that was not asked for, in the results for both. Its place is NaN or, of integers, nowhere."""
    plus, minus, plus_at, minus_at, flags = outputs
    below = torch.full_like(flags, sides == "minus", dtype=torch.bool)
    if sides == "both":
        return
    if sides == "larger":
        below = minus > plus
        for row in torch.nonzero((minus == plus) & (plus > 0))[:, 0].tolist():
            # scipy compares the two in floating point, where equal fractions may differ in the last bit.
            below[row] = -_gap(x[row], y[row], minus_at[row]) > _gap(x[row], y[row], plus_at[row])
    has_nan = flags & HAS_NAN != 0
    for side, at, hidden in ((plus, plus_at, below), (minus, minus_at, ~below)):
        side.masked_fill_(hidden & ~has_nan, 0)
        at[hidden] = math.nan if at.is_floating_point() else nowhere


def _gap(x: Tensor, y: Tensor, at: Tensor) -> float:
    """F - G at one value, rounded as in scipy."""
    # A tensor without dimensions takes the other one's type in a comparison, in which the value may be another one.
    x, y = x.to(at.dtype), y.to(at.dtype)
    return int((x <= at).sum()) / len(x) - int((y <= at).sum()) / len(y)


def _ks_block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # A common type that holds both exactly: float64 if one of them is, else float32. Integers have one type.
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    integers = x.dtype in schemas.INTEGER_CODES
    dtype = x.dtype if integers else dtype
    # sort() keeps the strides of its input, and searchsorted warns if its rows are not contiguous.
    x, y = (sample.to(dtype).contiguous().sort(dim=1).values for sample in (x, y))
    n, m = x.shape[1], y.shape[1]
    gcd = math.gcd(n, m)
    values = torch.cat((x, y), dim=1)
    # How many of each sample are <= t, for every sample value t. All ties at t are counted at once.
    i = torch.searchsorted(x, values, right=True)
    j = torch.searchsorted(y, values, right=True)
    difference = i * (m // gcd) - j * (n // gcd)
    plus, minus = difference.amax(dim=1), -difference.amin(dim=1)  # never negative: the difference ends at 0
    # scipy.stats.ks_2samp picks the place by float64 differences, whose rounding may separate exact ties.
    rounded = i.double() / n - j.double() / m
    plus_at = values.gather(1, rounded.argmax(dim=1, keepdim=True)).squeeze(1)
    minus_at = values.gather(1, rounded.argmin(dim=1, keepdim=True)).squeeze(1)
    if integers:
        return plus, minus, plus_at, minus_at, torch.zeros_like(plus, dtype=torch.uint8)
    plus_at, minus_at = plus_at.double(), minus_at.double()
    nan = values.isnan().any(dim=1)
    flags = HAS_NAN * nan.to(torch.uint8) + HAS_INF * values.isinf().any(dim=1).to(torch.uint8)
    return (
        plus.masked_fill(nan, -1),
        minus.masked_fill(nan, -1),
        plus_at.masked_fill(nan, math.nan),
        minus_at.masked_fill(nan, math.nan),
        flags,
    )


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """See ``kslottery_fast.ops.ks_statistics``."""
    schemas.check_tables(before, after)
    plus, minus, _, _, flags = ks_rows(before, after)
    h = torch.maximum(plus, minus)
    return h.masked_fill((h >= 0) & (h < threshold), 0), flags


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """See ``kslottery_fast.ops.ks_decide``."""
    h, flags = ks_statistics(before, after)
    return (h >= threshold) & (flags & HAS_NAN == 0), flags


def row_adamw_(*tensors: Any, **options: Any) -> None:
    """See ``kslottery_fast.ops.row_adamw_``."""
    update_rows(RowUpdate(*tensors, **options))


@torch.no_grad()
def update_rows(update: RowUpdate) -> None:
    """Make an update, with the operations of csrc/cpu/row_adamw.cpp in their order."""
    schemas.check_row_update(update)
    if update.rows is not None:
        _check_ids("rows", update.rows, len(update.table))
        values, counts = update.rows.unique(return_counts=True)
        if values.numel() < update.rows.numel():
            twice = int(values[counts > 1][0])
            raise InputError(f"rows holds {twice} twice; each row can be updated once a step")
    step, lr, beta1, beta2 = update.step, update.lr, update.beta1, update.beta2
    _update_rows(
        update._replace(grad=update.grad.to(update.exp_avg.dtype)),
        root_bias2=math.sqrt(1 - _power(beta2, step)),
        decay=1 - lr * update.weight_decay,
        step_size=-lr / (1 - _power(beta1, step)),
    )


def _power(beta: float, step: int) -> float:
    """A beta to the power of the step, rounded once, as in csrc/powers.h. Powers of C libraries differ."""
    return float(Context(prec=40, traps=[]).power(Decimal(float(beta)), step))


def _power_at(beta: float, step: Tensor) -> Tensor:
    """The same for a step number in a float64 tensor.

    Another device would have to be waited for. There it is torch's power, whose last bit depends on the device.
    """
    return step.new_tensor(_power(beta, int(step))) if step.device.type == "cpu" else beta**step


def row_adamw_step_(*tensors: Any, **options: Any) -> None:
    """See ``kslottery_fast.ops.row_adamw_step_``."""
    update_tables(StepUpdate(*tensors, **options))


@torch.no_grad()
def update_tables(update: StepUpdate) -> None:
    """Make the updates of a step. This never waits for the device, and never reads the values of rows."""
    schemas.check_step_update(update)
    grads, control = gradients_of_rows(update), update.control
    left_out = torch.zeros((), dtype=torch.bool, device=control.device)
    if update.skip_nonfinite and grads:
        left_out = torch.stack([~grad.isfinite().all() for grad in grads]).any()
        control[LEFT_OUT] += left_out
    if update.found_inf is not None:
        left_out = left_out | (update.found_inf != 0).reshape(())
    for i, rows_grad in enumerate(grads):
        dtype = update.exp_avgs[i].dtype
        # Scalars in float64, rounded once. With the powers of the CPU they are those of the kernels.
        step, lr = update.steps[i].double().reshape(()) + 1, update.lrs[i].double().reshape(())
        beta1, beta2 = update.beta1[i], update.beta2[i]
        grad = rows_grad.to(dtype)
        grad = grad if update.grad_scale is None else grad / update.grad_scale.to(dtype)
        _update_rows(
            update.part(i, grad=grad, step=0, lr=0.0),
            root_bias2=(1 - _power_at(beta2, step)).sqrt().to(dtype),
            decay=(1 - lr * update.weight_decay[i]).to(dtype),
            step_size=(-lr / (1 - _power_at(beta1, step))).to(dtype),
            left_out=left_out,
        )
        update.steps[i] += (~left_out).to(update.steps[i])


def gradients_of_rows(update: StepUpdate) -> list[Tensor]:
    """The gradients [k, d] of the rows, taken out of the gradients of whole tables where necessary."""
    return [
        grad.index_select(0, rows) if whole and rows is not None else grad
        for grad, rows, whole in zip(update.grads, update.rows, update.whole_grads, strict=True)
    ]


def _update_rows(
    update: RowUpdate,
    *,
    root_bias2: float | Tensor,
    decay: float | Tensor,
    step_size: float | Tensor,
    left_out: Tensor | None = None,
) -> None:
    """The update itself. The scalars here stand for its step and lr. If ``left_out`` is true, nothing changes."""
    table, rows, grad, exp_avg, exp_avg_sq, _, _, beta1, beta2, eps, _, master, lazy = update
    dtype = exp_avg.dtype
    current = table if rows is None else table.index_select(0, rows)
    param = current.to(dtype) if master is None else master
    weight = torch.tensor(1 - beta1, dtype=dtype)
    # torch.lerp computes from the nearer end.
    average = exp_avg + (grad - exp_avg) * weight if weight < 0.5 else grad - (grad - exp_avg) * (1 - weight)
    square = exp_avg_sq * beta2 + grad * (1 - beta2) * grad
    param = param * decay + average * step_size / (square.sqrt() / root_bias2 + eps)

    kept = None if left_out is None else left_out
    if lazy:
        unread = (grad == 0).all(dim=1, keepdim=True)
        kept = unread if kept is None else unread | kept

    def write(target: Tensor, old: Tensor, new: Tensor) -> None:
        new = new.to(target.dtype)
        new = new if kept is None else torch.where(kept, old, new)
        if target is table and rows is not None:
            table.index_copy_(0, rows, new)
        else:
            target.copy_(new)

    write(exp_avg, exp_avg, average)
    write(exp_avg_sq, exp_avg_sq, square)
    write(table, current, param)
    if master is not None:
        write(master, master, param)


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """See ``kslottery_fast.ops.row_embedding``."""
    schemas.check_row_embedding(table, rows, slots, ids)
    _check_ids("ids", ids, table.shape[0])
    flat = ids.reshape(-1)
    out = table.index_select(0, flat)
    slot = slots.index_select(0, flat)
    _check_slots(slot, rows.shape[0])
    trained = (slot >= 0).nonzero().squeeze(1)
    out[trained] = rows.index_select(0, slot[trained]).to(table.dtype)
    return out.reshape(*ids.shape, table.shape[1])


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """See ``kslottery_fast.ops.row_embedding_backward``."""
    grad_rows = schemas.row_embedding_backward(grad_out, slots, ids, k).zero_()
    _check_ids("ids", ids, slots.shape[0])
    slot = slots.index_select(0, ids.reshape(-1))
    _check_slots(slot, k)
    trained = (slot >= 0).nonzero().squeeze(1)
    grads = grad_out.reshape(-1, grad_out.shape[-1]).index_select(0, trained).to(grad_rows.dtype)
    return grad_rows.index_add_(0, slot[trained], grads)


def _check_ids(name: str, ids: Tensor, vocab: int) -> None:
    """Refuse an id outside the table, which would otherwise read foreign memory."""
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.numel():
        raise InputError(f"{name} holds {int(outside[0])}, outside the table's rows 0 to {vocab - 1}")


def _check_slots(slot: Tensor, k: int) -> None:
    outside = slot[slot >= k]
    if outside.numel():
        raise InputError(f"slots holds {int(outside[0])}, but there are {k} rows")
