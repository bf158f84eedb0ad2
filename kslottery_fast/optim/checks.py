"""Checks of what RowAdamW takes: parameters, groups and their numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import check_flag, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.tables import TABLE_DTYPES

from .trained_rows import check_rows

_OPTIONS = ("params", "lr", "betas", "eps", "weight_decay", "lazy", "rows")
_UNSUPPORTED = ("amsgrad", "maximize", "differentiable")  # options of torch.optim.AdamW that change its result
_NOTES = (
    *("name", "param_names", "capturable", "foreach", "fused", "decoupled_weight_decay"),
    *("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"),  # of torch's schedulers
)
"""What groups of torch's optimizers also hold, so that they can be passed on."""


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Refuse a group whose numbers are out of range or of a wrong type.

    Raises
    ------
    InputError
        A number out of range.
    TypeError
        Not a number.
    """
    for name in ("lr", "eps", "weight_decay"):
        value = _number(group[name], name)
        if not 0 <= value < math.inf:
            raise InputError(f"{name} is {value}, expected a finite number of at least 0")
    check_flag(group.get("lazy", False), "lazy")
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)):
        raise TypeError(f"betas is {shown(betas)}: expected two numbers in [0, 1), such as (0.9, 0.999)")
    if len(betas) != 2 or not all(0 <= _number(beta, "betas") < 1 for beta in betas):
        raise InputError(f"betas is {betas}, expected two numbers in [0, 1)")


def _number(value: Any, name: str) -> float:
    number = isinstance(value, numbers.Real) or (torch.is_tensor(value) and value.numel() == 1)
    if not number or isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}: expected a number" + " or a scalar tensor" * (name == "lr"))
    return float(value)


def listed_params(params: Any) -> list[Any]:
    """Return the parameters or groups that the constructor was given, as a list. A generator is read once."""
    if isinstance(params, nn.Module):
        raise TypeError(f"params is {shown(params)}: expected parameters or groups; pass its .parameters()")
    listed = checked_params(params, dict)
    if not listed:
        raise InputError("params is empty: expected at least one parameter or group")
    return listed


def checked_params(params: Any, *others: type) -> list[Any]:
    """Return parameters, and entries of other types, as a list."""
    if isinstance(params, (str, Tensor, nn.Module, dict)) or not isinstance(params, Iterable):
        raise TypeError(f"params is {shown(params)}: expected a list of parameters, such as [model.rows]")
    listed = list(params)
    for entry in listed:
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Tensor)
        if not named and not isinstance(entry, (Tensor, *others)):
            raise TypeError(f"params holds {shown(entry)}: expected parameters")
    return listed


def checked_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group whose parameters are a list and whose rows are ids that fit them.

    Raises
    ------
    InputError
        A number out of range, a parameter of a wrong dtype or layout, or row ids that do not fit.
    TypeError
        Something of a wrong type.
    """
    check_hyperparameters(group)
    params = group["params"]
    params = [params] if torch.is_tensor(params) else checked_params(params)
    checked = {**group, "params": params}
    for entry in params:
        param = entry[1] if isinstance(entry, tuple) else entry  # named_parameters() has pairs
        if param.dtype not in TABLE_DTYPES:
            raise InputError(f"params holds a parameter of dtype {param.dtype}, expected floating point")
        if not param.is_contiguous() and param.dim() != 2:
            raise InputError(f"params holds a parameter of shape {list(param.shape)} that is not contiguous")
        if group["rows"] is not None:
            checked["rows"] = check_rows(group["rows"], param)
    return checked


def check_keys(group: dict[str, Any], *, capturable: bool) -> None:
    """Refuse what a group would otherwise keep and never use, such as a misspelt option.

    Raises
    ------
    InputError
        A key that neither RowAdamW nor torch knows, or an option that a group cannot have.
    """
    for key, value in group.items():
        if key == "nonfinite" or (key == "capturable" and value != capturable):
            raise InputError(f"param_group has {key!r}, which is for the whole optimizer; pass it to RowAdamW")
        if key in _UNSUPPORTED and value:
            raise InputError(f"param_group has {key}={value}, which RowAdamW does not support; leave it out")
        if key not in (*_OPTIONS, *_UNSUPPORTED, *_NOTES):
            near = get_close_matches(str(key), _OPTIONS, n=1)
            raise InputError(
                f"param_group has {shown(key)}, which is no option of RowAdamW; "
                + (f"did you mean {near[0]!r}? " if near else f"expected some of {', '.join(_OPTIONS)}; ")
                + "keys of your own can be added to optimizer.param_groups afterwards"
            )
