"""Types of the arguments of operators.

For a wrong type torch's dispatcher would raise RuntimeError, with the schema in place of the reason.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown

_INTEGERS = (int, np.integer, torch.SymInt)
NUMBERS = (*_INTEGERS, float, np.floating, torch.SymFloat, Tensor)


def require_tensors(**arguments: object) -> None:
    """Refuse a value that is not a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {shown(value)}: expected a torch.Tensor")


def require_tensors_or_none(**arguments: object) -> None:
    """Refuse a value that is neither a tensor nor None."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} is {shown(value)}: expected a torch.Tensor or None")


def require_integers(**arguments: object) -> None:
    """Refuse a value that is not an integer."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, _INTEGERS):
            raise TypeError(f"{name} is {shown(value)}: expected an integer")


def require_numbers(**arguments: object) -> None:
    """Refuse a value that is not a number."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, NUMBERS):
            raise TypeError(f"{name} is {shown(value)}: expected a number")


def require_lists(kinds: Any, expected: str, **arguments: object) -> None:
    """Refuse a value that is not a list of these kinds."""
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} is {shown(values)}: expected a list of {expected}")
        for value in values:
            if not isinstance(value, kinds):
                raise TypeError(f"{name} holds {shown(value)}: expected a list of {expected}")
