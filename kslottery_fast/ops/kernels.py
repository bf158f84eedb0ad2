"""Which code runs an operator: the native kernels on the CPU and on CUDA, the pure-torch ones everywhere else.

``CPU`` and ``CUDA`` get the native library, or the reference where that has no kernels for the device;
``CompositeExplicitAutograd`` gets the reference, for every other device. Gradients are registered here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import native, reference, schemas
from .schemas import DTYPE_CODES, LEFT_OUT, LIBRARY, NAMESPACE

_Matrix = tuple[int, int, int, int, int, int]


def _matrix(tensor: Tensor) -> _Matrix:
    """A matrix as csrc/bindings.cpp takes it: any strides, no copy."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride(), DTYPE_CODES[tensor.dtype])


def ks_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Native ks_rows."""
    if (call := native.caller(x.device)) is None:
        return reference.ks_rows(x, y)
    outputs = schemas.ks_rows(x, y)
    call("ks_rows", _matrix(x), _matrix(y), *(output.data_ptr() for output in outputs))
    return outputs


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """Native ks_statistics."""
    if (call := native.caller(before.device)) is None:
        return reference.ks_statistics(before, after, threshold)
    h, flags = schemas.ks_statistics(before, after, threshold)
    pointers = h.data_ptr(), flags.data_ptr()
    call("ks_statistics", _matrix(before), _matrix(after), threshold, *pointers)
    return h, flags


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """Native ks_decide."""
    if (call := native.caller(before.device)) is None:
        return reference.ks_decide(before, after, threshold)
    decided, flags = schemas.ks_decide(before, after, threshold)
    pointers = decided.data_ptr(), flags.data_ptr()
    call("ks_decide", _matrix(before), _matrix(after), threshold, *pointers)
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
    hyper = lr, beta1, beta2, eps, weight_decay
    if (call := native.caller(table.device)) is None:
        reference.row_adamw_(
            table, rows, grad, exp_avg, exp_avg_sq,
            step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, master=master,
        )  # fmt: skip
    else:
        schemas.check_row_adamw(table, rows, grad, exp_avg, exp_avg_sq, master, step, *hyper)
        row_ids = None if rows is None else rows.contiguous()
        matrices = _matrix(table), _pointer(row_ids), grad.shape[0], _pointer(master), _matrix(grad)
        call("row_adamw", *matrices, exp_avg.data_ptr(), exp_avg_sq.data_ptr(), step, *hyper)
    _mark_written(table, exp_avg, exp_avg_sq, master)


def row_adamw_if_finite_(
    table: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    master: Tensor | None,
) -> bool:
    """Make the update of row_adamw_, on the CPU, and count it in `step` (float32, the updates made so far).

    Where grad holds NaN or Inf nothing is written. Returns whether the update was made. No torch operator: those take
    longer than the update of a few rows.
    """
    hyper = lr, beta1, beta2, eps, weight_decay
    if (call := native.caller()) is None:
        if not all_finite(grad):
            return False
        with torch.no_grad():
            reference.row_adamw_(
                table, rows, grad, exp_avg, exp_avg_sq,
                step=int(step) + 1, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, master=master,
            )  # fmt: skip
        step += 1
    else:
        schemas.check_row_adamw(table, rows, grad, exp_avg, exp_avg_sq, master, 1, *hyper)
        schemas.check_step(step)
        row_ids = None if rows is None else rows.contiguous()
        matrices = _matrix(table), _pointer(row_ids), grad.shape[0], _pointer(master), _matrix(grad)
        pointers = exp_avg.data_ptr(), exp_avg_sq.data_ptr(), step.data_ptr()
        if not call("row_adamw_if_finite", *matrices, *pointers, *hyper):
            return False
    _mark_written(table, exp_avg, exp_avg_sq, master, step)
    return True


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
    """Native row_adamw_step_: one launch on CUDA, on the CPU one row_adamw_ after the other."""
    lists = rows, grads, exp_avgs, exp_avg_sqs, masters, steps, lrs
    arguments: Any = tables, *lists, control
    options: Any = {
        "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "whole_grads": whole_grads,
        "skip_nonfinite": skip_nonfinite, "grad_scale": grad_scale, "found_inf": found_inf,
    }  # fmt: skip
    if (call := native.caller(control.device)) is None:
        reference.row_adamw_step_(*arguments, **options)
        return
    schemas.row_adamw_step_(*arguments, **options)
    if not call.offers("row_adamw_step"):
        grads = [reference.rows_of_gradient(*part) for part in zip(grads, rows, whole_grads, strict=True)]
        updates: Any = list(zip(tables, rows, grads, *lists[2:], beta1, beta2, eps, weight_decay, strict=True))
        if not _left_out(grads, control, skip_nonfinite, found_inf):
            for update in updates:
                _update_on_the_cpu(grad_scale, *update)
        return
    updates = list(zip(tables, *lists, beta1, beta2, eps, weight_decay, strict=True))
    row_ids = [None if ids is None else ids.contiguous() for ids in rows]  # copies live until the launch
    described = [
        _update_arguments(update, ids, whole, control.device)
        for update, ids, whole in zip(updates, row_ids, whole_grads, strict=True)
    ]
    flags = control.data_ptr(), _pointer(grad_scale), _pointer(found_inf), skip_nonfinite
    call("row_adamw_step", described, *flags)
    _mark_written(*tables, *exp_avgs, *exp_avg_sqs, *masters, control)
    for step in steps:
        if step.device == control.device:
            _mark_written(step)
        else:
            step += 1


def _update_arguments(update: Any, row_ids: Tensor | None, whole: bool, device: torch.device) -> tuple[Any, ...]:
    """One table's part of a step as csrc/bindings_cuda.cpp takes it: scalars by address or, from the CPU, by value."""
    table, _, grad, exp_avg, exp_avg_sq, master, step, lr, *hyper = update
    at = step.data_ptr() if step.device == device else 0, lr.data_ptr() if lr.device == device else 0
    count = 0 if at[0] else int(step) + 1
    rate = 0.0 if at[1] else float(lr)
    pointers = exp_avg.data_ptr(), exp_avg_sq.data_ptr()
    scalars = (*at, DTYPE_CODES[lr.dtype], whole), exp_avg.shape[0], (count, rate, *hyper)
    return (_matrix(table), _pointer(row_ids), _pointer(master), _matrix(grad), *pointers, *scalars)


def _update_on_the_cpu(
    grad_scale: Tensor | None,
    table: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    if grad_scale is not None:
        grad = grad.to(exp_avg.dtype) / grad_scale.to(exp_avg.dtype)
    hyper = {"lr": float(lr), "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    exact = master if master.numel() else None
    row_adamw_(table, rows, grad, exp_avg, exp_avg_sq, step=int(step) + 1, master=exact, **hyper)
    step += 1


def _left_out(grads: list[Tensor], control: Tensor, skip_nonfinite: bool, found_inf: Tensor | None) -> bool:
    if skip_nonfinite and not all(bool(grad.isfinite().all()) for grad in grads):
        control[LEFT_OUT] += 1
        return True
    return found_inf is not None and bool(found_inf)


def _mark_written(*tensors: Tensor | None) -> None:
    """Autograd must notice that these changed behind its back."""
    for tensor in tensors:
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


def all_finite(matrix: Tensor) -> bool:
    """Tell whether a floating matrix [m, n] on the CPU holds neither NaN nor infinity. No torch operator."""
    if (call := native.caller()) is None:
        return bool(torch.isfinite(matrix).all())
    return bool(call("all_finite", _matrix(matrix)))


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Native row_embedding."""
    if (call := native.caller(table.device)) is None:
        return reference.row_embedding(table, rows, slots, ids)
    out = schemas.row_embedding(table, rows, slots, ids)
    slots, ids = slots.contiguous(), ids.contiguous()
    pointers = slots.data_ptr(), ids.data_ptr(), ids.numel(), out.data_ptr()
    call("row_embedding", _matrix(table), _matrix(rows), *pointers)
    return out


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """Native row_embedding_backward."""
    if (call := native.caller(grad_out.device)) is None:
        return reference.row_embedding_backward(grad_out, slots, ids, k)
    grad_rows = schemas.row_embedding_backward(grad_out, slots, ids, k)
    grad_out, slots, ids = grad_out.reshape(ids.numel(), grad_out.shape[-1]), slots.contiguous(), ids.contiguous()
    workspace = []
    if call.offers("row_embedding_backward_workspace"):
        size = call("row_embedding_backward_workspace", ids.numel(), k)
        workspace = [grad_out.new_empty(size, dtype=torch.uint8)]
    call(
        "row_embedding_backward",
        _matrix(grad_out),
        slots.data_ptr(),
        slots.numel(),
        ids.data_ptr(),
        ids.numel(),
        k,
        *map(_pointer, workspace),
        grad_rows.data_ptr(),
        DTYPE_CODES[grad_rows.dtype],
    )
    return grad_rows


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _no_gradient(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    # The outputs step where an order changes: nobody wants that derivative, and torch would warn of a missing one.
    ctx.mark_non_differentiable(*output)


def _no_backward(ctx: Any, *_grads: Any) -> tuple[None, None]:
    return None, None


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


for _kernel in (
    ks_rows,
    ks_statistics,
    ks_decide,
    row_adamw_,
    row_adamw_step_,
    row_embedding,
    row_embedding_backward,
):
    LIBRARY.impl(_kernel.__name__, _kernel, "CPU")
    LIBRARY.impl(_kernel.__name__, _kernel, "CUDA")
    LIBRARY.impl(_kernel.__name__, getattr(reference, _kernel.__name__), "CompositeExplicitAutograd")

torch.library.register_autograd(f"{NAMESPACE}::ks_rows", _no_backward, setup_context=_no_gradient, lib=LIBRARY)
torch.library.register_autograd(f"{NAMESPACE}::row_embedding", _backward, setup_context=_setup_context, lib=LIBRARY)
