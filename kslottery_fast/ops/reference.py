"""The operators in plain torch: what they compute, readable, on any device.

They run where the native library is not there and on every device but the CPU, and the tests hold the native
kernels to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kslottery_fast.errors import InputError

from . import schemas
from .schemas import HAS_INF, HAS_NAN

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
    dtype = exp_avg.dtype
    current = table if rows is None else table.index_select(0, rows)
    param = current.to(dtype) if master is None else master
    grad = grad.to(dtype)
    weight = torch.tensor(1 - beta1, dtype=dtype)
    if weight < 0.5:
        exp_avg.add_((grad - exp_avg) * weight)
    else:  # torch.lerp computes from the nearer end
        exp_avg.copy_(grad - (grad - exp_avg) * (1 - weight))
    exp_avg_sq.mul_(beta2).add_(grad * (1 - beta2) * grad)
    denominator = exp_avg_sq.sqrt() / math.sqrt(1 - beta2**step) + eps
    param = param * (1 - lr * weight_decay) + exp_avg * (-lr / (1 - beta1**step)) / denominator
    if master is not None:
        master.copy_(param)
    if rows is None:
        table.copy_(param)
    else:
        table.index_copy_(0, rows, param.to(table.dtype))


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
