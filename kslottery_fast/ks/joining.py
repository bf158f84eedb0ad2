"""The option ``atol`` of ks_2samp: values that lie close together become ties."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .samples import Samples

_BATCH = 1 << 22  # values that are sorted at a time


def check_atol(atol: Any) -> float:
    """Return a tolerance as a float.

    Raises
    ------
    InputError
        A negative, infinite or undefined number.
    TypeError
        Not a number.

    Examples
    --------
    >>> check_atol(-1)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: atol is -1: expected a finite number of at least 0
    """
    if isinstance(atol, (bool, np.bool_)) or not isinstance(atol, numbers.Real):
        raise TypeError(f"atol is {shown(atol)}: expected a finite number of at least 0")
    tolerance = float(atol)
    if not 0 <= tolerance < math.inf:
        raise InputError(f"atol is {atol}: expected a finite number of at least 0")
    return tolerance


def join_close(samples: Samples, atol: float) -> Samples:
    """Replace each value by the largest of its group.

    The values of both samples of a row are sorted together. Neighbours whose difference, in float64, is at most
    ``atol`` > 0 belong to one group.

    Raises
    ------
    InputError
        Dates, long doubles, or integers beyond 2^53.
    """
    if samples.ranked_values is not None:
        raise InputError(
            f"atol is {atol:g}, but values of dtype {samples.ranked_values.dtype} are compared by rank: leave atol "
            "out, or convert both samples with .astype(float)"
        )
    x, y = (torch.empty(sample.shape, dtype=torch.float64, device=sample.device) for sample in (samples.x, samples.y))
    step = max(1, _BATCH // max(1, x.shape[1] + y.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        parts = [_counting(samples.x[rows], samples.keep_x, rows), _counting(samples.y[rows], samples.keep_y, rows)]
        x[rows], y[rows] = _joined(torch.cat(parts, dim=1), atol).split([x.shape[1], y.shape[1]], dim=1)
    return replace(samples, x=x, y=y)


def _counting(values: Tensor, keep: Tensor | None, rows: slice) -> Tensor:
    """The values as float64, and NaN for those that a mask hides."""
    values = values.double()
    return values if keep is None else values.masked_fill(~keep[rows], math.nan)


def _joined(values: Tensor, atol: float) -> Tensor:
    ordered, places = values.sort(dim=1)  # NaN comes last
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:, :-1] = (ordered[:, 1:] - ordered[:, :-1] > atol) | ordered[:, 1:].isnan()  # two infinities are one group
    largest = ordered.masked_fill(~ends | ordered.isnan(), math.inf)
    largest = largest.flip(1).cummin(dim=1).values.flip(1).masked_fill(ordered.isnan(), math.nan)
    return torch.empty_like(values).scatter_(1, places, largest)
