"""Which code runs an operator: the native kernels on the CPU, the pure-torch ones everywhere else.

``CPU`` gets the native library, or the reference where that could not be loaded;
``CompositeExplicitAutograd`` gets the reference, for CUDA and every other device. Gradients are registered
here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kslottery_fast.errors import InputError

from . import native, reference, schemas
from .schemas import DTYPE_CODES, LIBRARY, NAMESPACE

_Matrix = tuple[int, int, int, int, int, int]


def _matrix(tensor: Tensor) -> _Matrix:
    """A matrix as csrc/bindings.cpp takes it: any strides, no copy."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride(), DTYPE_CODES[tensor.dtype])


def ks_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Native ks_rows."""
    if (library := native.module()) is None:
        return reference.ks_rows(x, y)
    outputs = schemas.ks_rows(x, y)
    native.call(library, "ks_rows", _matrix(x), _matrix(y), *(output.data_ptr() for output in outputs))
    return outputs


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """Native ks_statistics."""
    if (library := native.module()) is None:
        return reference.ks_statistics(before, after, threshold)
    h, flags = schemas.ks_statistics(before, after, threshold)
    pointers = h.data_ptr(), flags.data_ptr()
    native.call(library, "ks_statistics", _matrix(before), _matrix(after), threshold, *pointers)
    return h, flags


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """Native ks_decide."""
    if (library := native.module()) is None:
        return reference.ks_decide(before, after, threshold)
    decided, flags = schemas.ks_decide(before, after, threshold)
    pointers = decided.data_ptr(), flags.data_ptr()
    native.call(library, "ks_decide", _matrix(before), _matrix(after), threshold, *pointers)
    return decided, flags


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
    """Native row_adamw_."""
    scalars = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    if (library := native.module()) is None:
        reference.row_adamw_(table, rows, grad, exp_avg, exp_avg_sq, step=step, master=master, **scalars)
    else:
        schemas.row_adamw_(table, rows, grad, exp_avg, exp_avg_sq, step=step, master=master, **scalars)
        row_ids = None if rows is None else rows.contiguous()
        native.call(
            library,
            "row_adamw",
            _matrix(table),
            _pointer(row_ids),
            grad.shape[0],
            _pointer(master),
            _matrix(grad),
            exp_avg.data_ptr(),
            exp_avg_sq.data_ptr(),
            step,
            *scalars.values(),
        )
    # Autograd must notice that these changed behind its back.
    for tensor in (table, exp_avg, exp_avg_sq, master):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Native row_embedding."""
    if (library := native.module()) is None:
        return reference.row_embedding(table, rows, slots, ids)
    out = schemas.row_embedding(table, rows, slots, ids)
    slots, ids = slots.contiguous(), ids.contiguous()
    pointers = slots.data_ptr(), ids.data_ptr(), ids.numel(), out.data_ptr()
    native.call(library, "row_embedding", _matrix(table), _matrix(rows), *pointers)
    return out


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """Native row_embedding_backward."""
    if (library := native.module()) is None:
        return reference.row_embedding_backward(grad_out, slots, ids, k)
    grad_rows = schemas.row_embedding_backward(grad_out, slots, ids, k)
    slots, ids = slots.contiguous(), ids.contiguous()
    native.call(
        library,
        "row_embedding_backward",
        _matrix(grad_out.reshape(ids.numel(), grad_out.shape[-1])),
        slots.data_ptr(),
        slots.numel(),
        ids.data_ptr(),
        ids.numel(),
        k,
        grad_rows.data_ptr(),
        DTYPE_CODES[grad_rows.dtype],
    )
    return grad_rows


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    _table, rows, slots, ids = inputs
    if ctx.needs_input_grad[0]:
        raise InputError("table requires grad, but row_embedding trains rows only: use table.requires_grad_(False)")
    ctx.save_for_backward(slots, ids)
    ctx.k, ctx.rows_dtype = rows.shape[0], rows.dtype


def _backward(ctx: Any, grad_out: Tensor) -> tuple[None, Tensor | None, None, None]:
    if not ctx.needs_input_grad[1]:
        return None, None, None, None
    slots, ids = ctx.saved_tensors
    grad_rows = torch.ops.kslottery.row_embedding_backward(grad_out, slots, ids, ctx.k)
    return None, grad_rows.to(ctx.rows_dtype), None, None


for _kernel in (ks_rows, ks_statistics, ks_decide, row_adamw_, row_embedding, row_embedding_backward):
    LIBRARY.impl(_kernel.__name__, _kernel, "CPU")
    LIBRARY.impl(_kernel.__name__, getattr(reference, _kernel.__name__), "CompositeExplicitAutograd")

torch.library.register_autograd(f"{NAMESPACE}::row_embedding", _backward, setup_context=_setup_context, lib=LIBRARY)
