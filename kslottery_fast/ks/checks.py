"""Checks of arguments that several files of this package share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown


def as_tensor(value: Any, name: str, expected: str, dtype: torch.dtype | None = None) -> Tensor:
    """Read a tensor of numbers. Torch's own errors about None, texts and modules name no argument."""
    if isinstance(value, torch.nn.Module) or (isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"):
        raise TypeError(f"{name} is {shown(value)}: expected {expected}")
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {shown(value)}: expected {expected}") from None
