"""The gradient of the trained rows, and NaN in it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from kslottery_fast.base.dtensors import local, on_any_process
from kslottery_fast.ops.kernels import all_finite


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a view with two dimensions. Anything but a matrix is one row. For a DTensor it is this process's part."""
    part = local(tensor)
    return part if part.dim() == 2 else part.view(1, -1)


def row_gradient(param: Tensor, rows: Tensor | None) -> Tensor:
    """Return the gradient of the trained rows as a matrix [k, d] on the parameter's device."""
    grad = param.grad
    assert grad is not None
    if rows is None:
        grad = local(grad.to_dense() if grad.is_sparse else grad)
        return grad if grad.dim() == 2 else grad.reshape(1, -1)
    if not grad.is_sparse:
        return grad.index_select(0, rows)
    grad = grad.coalesce()
    ordered, order = rows.sort()
    found = grad.indices()[0]
    place = torch.searchsorted(ordered, found).clamp(max=len(rows) - 1)
    ours = ordered[place] == found
    dense = grad.values().new_zeros(len(rows), param.shape[1])
    return dense.index_copy_(0, order[place[ours]], grad.values()[ours])


def nonfinite_message(param: Tensor, rows: Tensor | None, grad: Tensor) -> str:
    """Write the error message for a gradient [k, d] that holds NaN or Inf."""
    bad = (~torch.isfinite(grad)).reshape(len(grad), -1).any(dim=1).nonzero().flatten()
    names = (
        [f"row {i} of the parameter" for i in bad.tolist()]
        if rows is None
        else [f"token {i}" for i in rows[bad].tolist()]
    )
    where = f"in {len(bad)} rows (first: {names[0]})" if names else "on another process"
    return (
        f"the gradient of a parameter {list(param.shape)} holds NaN or Inf {where}; nothing was updated. Training "
        "diverged: lower the learning rate, clip the gradient, or pass nonfinite='skip' to leave such steps out"
    )


def first_nonfinite(gradients: Iterable[tuple[Tensor, Tensor]]) -> int | None:
    """Return the index of the first (parameter, gradient) with NaN or Inf on any process. This waits for the device."""
    # On a device a sum is the cheapest look at every value. NaN and Inf come through, and an overflow is looked at more
    # closely. All sums are started before the first is waited for.
    looked = [(param, grad, None if grad.device.type == "cpu" else grad.sum()) for param, grad in gradients]
    for i, (param, grad, total) in enumerate(looked):
        finite = all_finite(grad) if total is None else math.isfinite(total) or bool(torch.isfinite(grad).all())
        if on_any_process(not finite, param):
            return i
    return None
