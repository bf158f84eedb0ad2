"""The operators in plain torch: what they compute, readable, on any device.

They run where the native library is not there and on every device but the CPU, and the tests hold the native
kernels to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import schemas
from .schemas import HAS_INF, HAS_NAN, LEFT_OUT

_BLOCK_ELEMENTS = 1 << 21
"""Values that one block of rows may hold: about 100 MB of sorted copies and int64 ranks."""


def ks_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``kslottery_fast.ops.ks_rows``."""
    outputs = schemas.ks_rows(x, y)
    block = max(1, _BLOCK_ELEMENTS // (x.shape[1] + y.shape[1]))
    for start in range(0, x.shape[0], block):
        part = slice(start, start + block)
        for output, value in zip(outputs, _ks_block(x[part], y[part]), strict=True):
            output[part] = value
    return outputs


def _ks_block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # A common type that holds both exactly: float64 if one is, else float32.
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    x, y = x.to(dtype).sort(dim=1).values, y.to(dtype).sort(dim=1).values
    n, m = x.shape[1], y.shape[1]
    gcd = math.gcd(n, m)
    values = torch.cat((x, y), dim=1)
    # How many of each sample are <= t, at every sample value t: all ties at t are counted at once.
    i = torch.searchsorted(x, values, right=True)
    j = torch.searchsorted(y, values, right=True)
    difference = i * (m // gcd) - j * (n // gcd)
    plus, minus = difference.amax(dim=1), -difference.amin(dim=1)  # never negative: the difference ends at 0
    # scipy.stats.ks_2samp picks the place among float64 differences: their rounding may tell exact ties
    # apart.
    rounded = i.double() / n - j.double() / m
    plus_at = values.gather(1, rounded.argmax(dim=1, keepdim=True)).squeeze(1).double()
    minus_at = values.gather(1, rounded.argmin(dim=1, keepdim=True)).squeeze(1).double()
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


@torch.no_grad()
def row_adamw_(
    table: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    master: Tensor | None = None,
) -> None:
    """See ``kslottery_fast.ops.row_adamw_``; the operations and their order are csrc/cpu/row_adamw.cpp's."""
    schemas.row_adamw_(
        table, rows, grad, exp_avg, exp_avg_sq,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, master=master,
    )  # fmt: skip
    if rows is not None:
        _check_ids("rows", rows, table.shape[0])
        values, counts = rows.unique(return_counts=True)
        if values.numel() < rows.numel():
            twice = int(values[counts > 1][0])
            raise InputError(f"rows holds {twice} twice; each row can be updated once a step")
    bias1, root_bias2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    _update_rows(
        table, rows, grad.to(exp_avg.dtype), exp_avg, exp_avg_sq, master,
        betas=(beta1, beta2), root_bias2=root_bias2, eps=eps, decay=1 - lr * weight_decay, step_size=-lr / bias1,
    )  # fmt: skip


@torch.no_grad()
def row_adamw_step_(
    tables: list[Tensor],
    rows: list[Tensor | None],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    steps: list[Tensor],
    lrs: list[Tensor],
    control: Tensor,
    *,
    beta1: list[float],
    beta2: list[float],
    eps: list[float],
    weight_decay: list[float],
    whole_grads: list[bool],
    skip_nonfinite: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """See ``kslottery_fast.ops.row_adamw_step_``. The device is never waited for, nor the values of rows read."""
    schemas.row_adamw_step_(
        tables, rows, grads, exp_avgs, exp_avg_sqs, masters, steps, lrs, control,
        beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, whole_grads=whole_grads,
        skip_nonfinite=skip_nonfinite, grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip
    grads = [rows_of_gradient(*part) for part in zip(grads, rows, whole_grads, strict=True)]
    left_out = torch.zeros((), dtype=torch.bool, device=control.device)
    if skip_nonfinite and grads:
        left_out = torch.stack([~grad.isfinite().all() for grad in grads]).any()
        control[LEFT_OUT] += left_out
    if found_inf is not None:
        left_out = left_out | (found_inf != 0).reshape(())
    for i, table in enumerate(tables):
        dtype, master = exp_avgs[i].dtype, masters[i] if masters[i].numel() else None
        # Scalars in float64 and rounded once, as the kernels have them.
        step, lr = steps[i].double().reshape(()) + 1, lrs[i].double().reshape(())
        grad = grads[i].to(dtype)
        _update_rows(
            table, rows[i], grad if grad_scale is None else grad / grad_scale.to(dtype),
            exp_avgs[i], exp_avg_sqs[i], master,
            betas=(beta1[i], beta2[i]),
            root_bias2=(1 - beta2[i] ** step).sqrt().to(dtype),
            eps=eps[i],
            decay=(1 - lr * weight_decay[i]).to(dtype),
            step_size=(-lr / (1 - beta1[i] ** step)).to(dtype),
            left_out=left_out,
        )  # fmt: skip
        steps[i] += (~left_out).to(steps[i])


def rows_of_gradient(grad: Tensor, rows: Tensor | None, whole: bool) -> Tensor:
    """The gradient [k, d] of the rows, out of that of the whole table where it is one."""
    return grad.index_select(0, rows) if whole and rows is not None else grad


def _update_rows(
    table: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    *,
    betas: tuple[float, float],
    root_bias2: float | Tensor,
    eps: float,
    decay: float | Tensor,
    step_size: float | Tensor,
    left_out: Tensor | None = None,
) -> None:
    """The update itself; with a true ``left_out``, all is written as it was."""
    dtype, (beta1, beta2) = exp_avg.dtype, betas
    current = table if rows is None else table.index_select(0, rows)
    param = current.to(dtype) if master is None else master
    weight = torch.tensor(1 - beta1, dtype=dtype)
    # torch.lerp computes from the nearer end.
    average = exp_avg + (grad - exp_avg) * weight if weight < 0.5 else grad - (grad - exp_avg) * (1 - weight)
    square = exp_avg_sq * beta2 + grad * (1 - beta2) * grad
    param = param * decay + average * step_size / (square.sqrt() / root_bias2 + eps)

    def write(target: Tensor, old: Tensor, new: Tensor) -> None:
        new = new.to(target.dtype)
        new = new if left_out is None else torch.where(left_out, old, new)
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
    """An id outside the table is an error here, not an access to foreign memory later."""
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.numel():
        raise InputError(f"{name} holds {int(outside[0])}, outside the table's rows 0 to {vocab - 1}")


def _check_slots(slot: Tensor, k: int) -> None:
    outside = slot[slot >= k]
    if outside.numel():
        raise InputError(f"slots holds {int(outside[0])}, but there are {k} rows")
