"""What RowAdamW asks of a parameter: the gradient of the trained rows, NaN in it, and the state that fits it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.dtensors import is_dtensor, local, on_any_process
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops.kernels import all_finite

ROW_STATE = ("exp_avg", "exp_avg_sq", "master")
"""The state of a parameter that has a row for each trained row."""


def state_shape(param: Tensor, rows: Tensor | None) -> torch.Size:
    """The shape of a moment: [k, d]; a whole parameter of other than two dimensions is one row."""
    if rows is not None:
        return torch.Size((len(rows), param.shape[1]))
    return param.shape if param.dim() == 2 or is_dtensor(param) else torch.Size((1, param.numel()))


def as_matrix(tensor: Tensor) -> Tensor:
    """A view with two dimensions, of a DTensor of this process's part; a parameter of other than two is one row."""
    part = local(tensor)
    return part if part.dim() == 2 else part.view(1, -1)


def row_gradient(param: Tensor, rows: Tensor | None) -> Tensor:
    """The gradient of the trained rows, on the parameter's device: [k, d], shaped as the state is."""
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
    """What is wrong with a gradient [k, d] that holds NaN or Inf, and what to do."""
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
    """The index of the first (parameter, gradient) with NaN or Inf on any process. Waits for the device."""
    # Elsewhere than on the CPU a sum is the cheapest look at every value: NaN and Inf come through, an overflow gets a
    # closer look. All sums are on their way before the first is waited for.
    looked = [(param, grad, None if grad.device.type == "cpu" else grad.sum()) for param, grad in gradients]
    for i, (param, grad, total) in enumerate(looked):
        finite = all_finite(grad) if total is None else math.isfinite(total) or bool(torch.isfinite(grad).all())
        if on_any_process(not finite, param):
            return i
    return None


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Refuse a group whose numbers are out of range."""
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise InputError(f"{name} is {float(group[name])}, expected a finite number of at least 0")
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= float(beta) < 1 for beta in betas):
        raise InputError(f"betas is {betas}, expected two numbers in [0, 1)")


def matched_state(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Each parameter of these groups and its saved state; refuse one of other rows or shapes."""
    pairs = []
    for group, saved in zip(groups, state_dict["param_groups"], strict=False):
        ours, theirs = group["rows"], saved.get("rows")
        if (ours is None) != (theirs is None) or (ours is not None and not torch.equal(ours, theirs.cpu())):
            raise InputError("the optimizer state is of other rows than this optimizer trains")
        for param, key in zip(group["params"], saved["params"], strict=False):
            state, shape = state_dict["state"].get(key, {}), state_shape(param, ours)
            for name in ROW_STATE:
                if state.get(name) is not None and state[name].shape != shape:
                    raise InputError(
                        f"the optimizer state has {name} {list(state[name].shape)}, expected {list(shape)}"
                    )
            pairs.append((param, state))
    return pairs
