"""The code that runs each operator: native kernels on the CPU and on CUDA, pure torch everywhere else.

``CPU`` and ``CUDA`` get the native library, or the reference if the library has no kernels for the device.
``CompositeExplicitAutograd`` gets the reference, for every other device. Gradients are registered here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kslottery_fast.base.errors import InputError

from . import native, reference, schemas
from .records import RowUpdate, StepUpdate
from .schemas import DTYPE_CODES, INTEGER_CODES, LEFT_OUT, LIBRARY, NAMESPACE, SIDES

_Matrix = tuple[int, int, int, int, int, int]
_CODES = DTYPE_CODES | INTEGER_CODES


def _matrix(tensor: Tensor) -> _Matrix:
    """Return a matrix as csrc/bindings.cpp takes it, with any strides and without a copy."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride(), _CODES[tensor.dtype])


def ks_rows(x: Tensor, y: Tensor, sides: str = "both") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run ks_rows natively: on CUDA both sides of floating types, of which those that are asked for are shown."""
    if (call := native.caller(x.device)) is None:
        return reference.ks_rows(x, y, sides)
    outputs = schemas.ks_rows(x, y, sides)
    pointers = [output.data_ptr() for output in outputs]
    if call.offers("ks_sides"):
        call("ks_sides", _matrix(x), _matrix(y), SIDES[sides], *pointers)
    elif x.dtype in INTEGER_CODES:
        return reference.ks_rows(x, y, sides)
    else:
        workspace = _sort_workspace(call, x, y)
        call("ks_rows", _matrix(x), _matrix(y), *pointers, workspace.data_ptr(), workspace.numel())
        reference.show_sides(x, y, sides, outputs)
    return outputs


def _sort_workspace(call: native.Caller, x: Tensor, y: Tensor) -> Tensor:
    """The device memory in which ks_rows sorts rows that are too long for shared memory, from torch's allocator."""
    least, best = call("ks_rows_workspace", _matrix(x), _matrix(y))
    try:
        return _device_bytes(best, x)
    except torch.OutOfMemoryError:
        pass  # a row at a time, then
    try:
        return _device_bytes(least, x)
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"rows of {x.shape[1]:,} and {y.shape[1]:,} values take {least:,} bytes of device memory to sort, which "
            f"{x.device} does not have; free some of it, or compare the rows on the CPU: x.cpu(), y.cpu()"
        ) from error


def _device_bytes(size: int, like: Tensor) -> Tensor:
    return like.new_empty(size, dtype=torch.uint8)


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """Run ks_statistics natively."""
    if (call := native.caller(before.device)) is None:
        return reference.ks_statistics(before, after, threshold)
    h, flags = schemas.ks_statistics(before, after, threshold)
    pointers = h.data_ptr(), flags.data_ptr()
    call("ks_statistics", _matrix(before), _matrix(after), threshold, *pointers)
    return h, flags


def statistics_and_identity(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Run ks_statistics, and tell which rows are known to hold the same finite numbers in the same order.

    The kernel of the CPU finds that first of all. Where another kernel runs, no row is known to be identical.

    Returns
    -------
    h, flags : Tensor
        As from ks_statistics.
    identical : Tensor
        bool [V]. Rows of which it is False may be identical too: those with Inf, or with zeros of both signs.
    """
    if (call := native.caller(before.device)) is None or not call.offers("ks_statistics_and_identity"):
        h, flags = ks_statistics(before, after, threshold)
        return h, flags, torch.zeros_like(flags, dtype=torch.bool)
    h, flags = schemas.ks_statistics(before, after, threshold)
    identical = torch.empty_like(flags, dtype=torch.bool)
    pointers = h.data_ptr(), flags.data_ptr(), identical.data_ptr()
    call("ks_statistics_and_identity", _matrix(before), _matrix(after), threshold, *pointers)
    return h, flags, identical


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """Run ks_decide natively."""
    if (call := native.caller(before.device)) is None:
        return reference.ks_decide(before, after, threshold)
    decided, flags = schemas.ks_decide(before, after, threshold)
    pointers = decided.data_ptr(), flags.data_ptr()
    call("ks_decide", _matrix(before), _matrix(after), threshold, *pointers)
    return decided, flags


def reached_rows(h: Tensor, flags: Tensor, threshold: int, bits: int) -> tuple[Tensor, Tensor, bool] | None:
    """Return the rows with ``h >= threshold`` in any order, their h, and whether any flags have one of the bits.

    The rows are on the CPU. One kernel writes them into pinned memory, and the host waits once. The result is None
    where there is no such kernel.
    """
    if (call := native.caller(h.device)) is None or not call.offers("ks_reached"):
        return None
    state = torch.zeros(3, dtype=torch.int64, device=h.device)
    found = torch.empty(2 + 2 * len(h), dtype=torch.int64, pin_memory=h.is_cuda)
    call("ks_reached", h.data_ptr(), flags.data_ptr(), len(h), threshold, bits, state.data_ptr(), found.data_ptr())
    if h.is_cuda:
        torch.cuda.current_stream(h.device).synchronize()
    number, flagged = found[:2].tolist()
    ids, counts = found[2 : 2 + 2 * number].view(number, 2).T
    return ids, counts, bool(flagged)


def row_adamw_(*tensors: Any, **options: Any) -> None:
    """Run row_adamw_ natively."""
    update_rows(RowUpdate(*tensors, **options))


def update_rows(update: RowUpdate) -> None:
    """Make an update without torch's dispatcher, which takes as long as the update of a few rows."""
    table, rows, _, exp_avg, exp_avg_sq, step, *_, master, _ = update
    reason = ""
    if (call := native.caller(table.device)) is None:
        reference.update_rows(update)
    else:
        schemas.check_row_update(update)
        row_ids = None if rows is None else rows.contiguous()
        if call.offers("row_adamw_step"):
            marks = _marks(exp_avg) if update.lazy else None
            reason = call("row_adamw_step", [_described(call, update, row_ids, marks)], 0, 0, 0, False)
        else:
            pointers = exp_avg.data_ptr(), exp_avg_sq.data_ptr()
            call("row_adamw", *_matrices(update, row_ids), *pointers, step, *update.numbers, update.lazy)
    _mark_written(table, exp_avg, exp_avg_sq, master)
    native.warn_of_launches(reason)


def update_rows_if_finite(update: RowUpdate, step: Tensor) -> bool:
    """Make an update on the CPU unless the gradient holds NaN or Inf. Return whether it was made.

    ``step`` is a float32 tensor with the number of updates made so far. It goes up by one. No torch operator is used,
    because those take longer than the update of a few rows.
    """
    table, rows, grad, exp_avg, exp_avg_sq, *_, master, _ = update
    if (call := native.caller()) is None:
        if not all_finite(grad):
            return False
        reference.update_rows(update._replace(step=int(step) + 1))
        step += 1
    else:
        schemas.check_row_update(update)
        schemas.check_step(step)
        row_ids = None if rows is None else rows.contiguous()
        pointers = exp_avg.data_ptr(), exp_avg_sq.data_ptr(), step.data_ptr()
        if not call("row_adamw_if_finite", *_matrices(update, row_ids), *pointers, *update.numbers, update.lazy):
            return False
    _mark_written(table, exp_avg, exp_avg_sq, master, step)
    return True


def _matrices(update: RowUpdate, row_ids: Tensor | None) -> tuple[_Matrix, int, int, int, _Matrix]:
    """The tensors of an update as the native functions take them. ``row_ids`` must live until they have returned."""
    table, _, grad, *_, master, _ = update
    return _matrix(table), _pointer(row_ids), grad.shape[0], _pointer(master), _matrix(grad)


def row_adamw_step_(*tensors: Any, **options: Any) -> None:
    """Run row_adamw_step_ natively: on CUDA in one launch, on the CPU with one row_adamw_ after the other."""
    update = StepUpdate(*tensors, **options)
    control = update.control
    if (call := native.caller(control.device)) is None:
        reference.update_tables(update)
        return
    schemas.check_step_update(update)
    if not call.offers("row_adamw_step"):
        _update_in_turn(update)
        return
    row_ids = [None if ids is None else ids.contiguous() for ids in update.rows]  # copies live until the launch
    lazy = update.lazy or [False] * len(row_ids)
    marks = [_marks(moment) if rests else None for moment, rests in zip(update.exp_avgs, lazy, strict=True)]
    described = [_part_of_step(call, update, i, *each) for i, each in enumerate(zip(row_ids, marks, strict=True))]
    flags = control.data_ptr(), _pointer(update.grad_scale), _pointer(update.found_inf), update.skip_nonfinite
    reason = call("row_adamw_step", described, *flags)
    _mark_written(*update.tables, *update.exp_avgs, *update.exp_avg_sqs, *update.masters, control)
    for step in update.steps:
        if step.device == control.device:
            _mark_written(step)
        else:
            step += 1
    native.warn_of_launches(reason)


def _marks(exp_avg: Tensor) -> Tensor:
    """The workspace in which the CUDA kernel of a lazy update marks the rows with a gradient."""
    return exp_avg.new_zeros(len(exp_avg), dtype=torch.uint8)


def _described(
    call: native.Caller, update: RowUpdate, row_ids: Tensor | None, marks: Tensor | None, **on_device: int
) -> Any:
    """A table's update as the RowUpdate of csrc/bindings_cuda.cpp, with fields that stand for others ``on_device``."""
    lr, beta1, beta2, eps, weight_decay = update.numbers
    fields = {"whole_grad": False, "step_at": 0, "lr_at": 0, "lr_dtype": 0} | on_device
    return call.make(
        "RowUpdate",
        table=_matrix(update.table),
        row_ids=_pointer(row_ids),
        k=len(update.exp_avg),
        master=_pointer(update.master),
        grad=_matrix(update.grad),
        exp_avg=update.exp_avg.data_ptr(),
        exp_avg_sq=update.exp_avg_sq.data_ptr(),
        read=_pointer(marks),
        step=update.step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        **fields,
    )


def _part_of_step(call: native.Caller, update: StepUpdate, i: int, row_ids: Tensor | None, marks: Tensor | None) -> Any:
    """One table's part of a step. A step's number and a learning rate that are on the CPU are passed by value."""
    step, lr, device = update.steps[i], update.lrs[i], update.control.device
    step_at, lr_at = (scalar.data_ptr() if scalar.device == device else 0 for scalar in (step, lr))
    count = 0 if step_at else int(step) + 1
    part = update.part(i, grad=update.grads[i], step=count, lr=0.0 if lr_at else float(lr))
    scalars = {"step_at": step_at, "lr_at": lr_at, "lr_dtype": DTYPE_CODES[lr.dtype]}
    return _described(call, part, row_ids, marks, whole_grad=update.whole_grads[i], **scalars)


def _update_in_turn(update: StepUpdate) -> None:
    grads = reference.gradients_of_rows(update)
    if _left_out(grads, update.control, update.skip_nonfinite, update.found_inf):
        return
    for i, grad in enumerate(grads):
        if update.grad_scale is not None:
            dtype = update.exp_avgs[i].dtype
            grad = grad.to(dtype) / update.grad_scale.to(dtype)
        update_rows(update.part(i, grad=grad, step=int(update.steps[i]) + 1, lr=float(update.lrs[i])))
        update.steps[i] += 1


def _left_out(grads: list[Tensor], control: Tensor, skip_nonfinite: bool, found_inf: Tensor | None) -> bool:
    if skip_nonfinite and not all(bool(grad.isfinite().all()) for grad in grads):
        control[LEFT_OUT] += 1
        return True
    return found_inf is not None and bool(found_inf)


def _mark_written(*tensors: Tensor | None) -> None:
    """Let autograd notice that native code has written into these."""
    for tensor in tensors:
        if tensor is not None:
            increment_version(tensor)


def all_finite(matrix: Tensor) -> bool:
    """Tell whether a floating matrix [m, n] on the CPU is free of NaN and infinity, without a torch operator."""
    if (call := native.caller()) is None:
        return bool(torch.isfinite(matrix).all())
    return bool(call("all_finite", _matrix(matrix)))


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Run row_embedding natively."""
    if (call := native.caller(table.device)) is None:
        return reference.row_embedding(table, rows, slots, ids)
    out = schemas.row_embedding(table, rows, slots, ids)
    slots, ids = slots.contiguous(), ids.contiguous()
    pointers = slots.data_ptr(), ids.data_ptr(), ids.numel(), out.data_ptr()
    call("row_embedding", _matrix(table), _matrix(rows), *pointers)
    return out


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """Run row_embedding_backward natively."""
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


def _no_gradient(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, ...]) -> None:
    # The outputs jump where the order of values changes. That derivative is of no use, and torch would warn of a
    # missing one.
    ctx.mark_non_differentiable(*output)


def _no_backward(ctx: Any, *_grads: Any) -> tuple[None, None, None]:
    return None, None, None


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


for _name in schemas.SCHEMAS:
    LIBRARY.impl(_name, globals()[_name], "CPU")
    LIBRARY.impl(_name, globals()[_name], "CUDA")
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")

torch.library.register_autograd(f"{NAMESPACE}::ks_rows", _no_backward, setup_context=_no_gradient, lib=LIBRARY)
torch.library.register_autograd(f"{NAMESPACE}::row_embedding", _backward, setup_context=_setup_context, lib=LIBRARY)
