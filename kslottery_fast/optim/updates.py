"""The arguments of the kernels for one step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kslottery_fast.ops import row_adamw_step_
from kslottery_fast.ops.records import RowUpdate

from .gradients import as_matrix


class Update(NamedTuple):
    """What one step does to one parameter."""

    group: dict[str, Any]
    param: Tensor
    rows: Tensor | None  # int64 [k] on the parameter's device
    grad: Tensor  # [k, d], or [V, d] with rows


def row_update(update: Update, state: dict[str, Any], step: int) -> RowUpdate:
    """The arguments of the kernel for one parameter."""
    group, param, rows, grad = update
    beta1, beta2 = group["betas"]
    master = state.get("master")
    return RowUpdate(
        as_matrix(param),
        rows,
        grad,
        as_matrix(state["exp_avg"]),
        as_matrix(state["exp_avg_sq"]),
        step,
        float(group["lr"]),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(group["weight_decay"]),
        None if master is None else as_matrix(master),
        group["lazy"],
    )


def update_together(
    updates: list[Update], states: list[dict[str, Any]], lrs: list[Tensor], control: Tensor, **options: Any
) -> None:
    """Update several parameters on one device in one call."""
    row_adamw_step_(
        [as_matrix(update.param) for update in updates],
        [update.rows for update in updates],
        [update.grad for update in updates],
        [as_matrix(state["exp_avg"]) for state in states],
        [as_matrix(state["exp_avg_sq"]) for state in states],
        [as_matrix(state["master"]) if "master" in state else torch.empty(0) for state in states],
        [state["step"] for state in states],
        lrs,
        control,
        beta1=[float(update.group["betas"][0]) for update in updates],
        beta2=[float(update.group["betas"][1]) for update in updates],
        eps=[float(update.group["eps"]) for update in updates],
        weight_decay=[float(update.group["weight_decay"]) for update in updates],
        lazy=[update.group["lazy"] for update in updates],
        whole_grads=[update.grad is update.param.grad for update in updates],
        **options,
    )
