"""The state of a parameter: its shape, what it begins with, and which saved state fits it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError

ROW_STATE = ("exp_avg", "exp_avg_sq", "master")
"""The state of a parameter that has a row for each trained row."""


def state_shape(param: Tensor, rows: Tensor | None) -> torch.Size:
    """The shape of a moment: [k, d] with rows, otherwise that of the parameter, as in torch."""
    return param.shape if rows is None else torch.Size((len(rows), param.shape[1]))


def new_state(param: Tensor, rows: Tensor | None, *, capturable: bool) -> dict[str, Any]:
    """Return the state of a parameter before its first step."""
    shape, dtype = state_shape(param, rows), torch.promote_types(param.dtype, torch.float32)
    state: dict[str, Any] = {"step": torch.zeros((), device=param.device if capturable else "cpu")}
    for name in ("exp_avg", "exp_avg_sq"):
        # Moments of a DTensor are DTensors, which torch.distributed.checkpoint expects.
        moments: dict[str, Any] = {"dtype": dtype, "device": param.device}
        state[name] = torch.zeros_like(param, **moments) if is_dtensor(param) else torch.zeros(shape, **moments)
    if (master := master_rows(param, rows)) is not None:
        state["master"] = master
    return state


def matched_state(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Each parameter of these groups and its saved state.

    Raises
    ------
    InputError
        A state of other rows or shapes, or of another algorithm than AdamW.
    """
    pairs = []
    for group, saved in zip(groups, state_dict["param_groups"], strict=False):
        _refuse_other_algorithms(saved)
        ours, theirs = group["rows"], saved.get("rows")
        if (ours is None) != (theirs is None) or (ours is not None and not torch.equal(ours, theirs.cpu())):
            raise InputError("state_dict is of other rows than this optimizer trains")
        for param, key in zip(group["params"], saved["params"], strict=False):
            state, shape = state_dict["state"].get(key, {}), state_shape(param, ours)
            # Version 0.1 saved the state of a parameter that is not a matrix as one row.
            accepted = (shape,) if param.dim() == 2 else (shape, torch.Size((1, param.numel())))
            for name in ROW_STATE:
                if state.get(name) is not None and state[name].shape not in accepted:
                    raise InputError(f"state_dict has {name} {list(state[name].shape)}, expected {list(shape)}")
            pairs.append((param, state))
    return pairs


def _refuse_other_algorithms(saved: dict[str, Any]) -> None:
    """Refuse the state of an optimizer that saves under the same names but continues differently."""
    for option in ("amsgrad", "maximize"):
        if saved.get(option):
            raise InputError(f"state_dict is of an optimizer with {option}=True, which RowAdamW does not support")
    if saved.get("decoupled_weight_decay") is False and saved.get("weight_decay"):
        raise InputError(
            "state_dict is of torch.optim.Adam, whose weight decay is part of the gradient; RowAdamW decays the "
            "weights themselves, as torch.optim.AdamW does"
        )


def fitted_state(param: Tensor, rows: Tensor | None, saved: dict[str, Any]) -> dict[str, Tensor]:
    """Copy saved moments and master rows to the dtype, shape and device that the kernels take."""
    fitted = {}
    for name in ROW_STATE:
        if saved.get(name) is not None:
            value = saved[name].to(param.device, torch.promote_types(param.dtype, torch.float32), copy=True)
            fitted[name] = value.reshape(state_shape(param, rows)).contiguous()
    if fitted and "master" not in fitted and (master := master_rows(param, rows)) is not None:
        fitted["master"] = master  # torch's AdamW keeps none
    return fitted


def master_rows(param: Tensor, rows: Tensor | None) -> Tensor | None:
    """Return the trained rows in float32 for a float16 or bfloat16 parameter, and None for others."""
    if param.dtype not in (torch.float16, torch.bfloat16):
        return None
    values = param.detach()
    return (values if rows is None else values.index_select(0, rows)).float().contiguous()
