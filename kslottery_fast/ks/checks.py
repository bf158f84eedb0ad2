"""Checks of arguments that several files of this package share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown


def option_shown(value: object) -> str:
    """A wrong option for an error message: texts and numbers as they are, anything else by its type.

    >>> option_shown("fast"), option_shown(0.5), option_shown([1, 2])
    ("'fast'", '0.5', 'the list [1, 2]')
    """
    return repr(value) if isinstance(value, (str, int, float, np.generic)) else shown(value)


def as_tensor(value: Any, name: str, expected: str, dtype: torch.dtype | None = None) -> Tensor:
    """Read a tensor of numbers. Torch's own errors about None, texts and modules name no argument."""
    if isinstance(value, torch.nn.Module) or (isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"):
        raise TypeError(f"{name} is {shown(value)}: expected {expected}")
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {shown(value)}: expected {expected}") from None
