"""Empirical distribution functions, for figures."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .samples import Sample


class Gap(NamedTuple):
    """Where two empirical distribution functions are furthest apart. D is the distance of ``first`` and ``second``."""

    location: float
    first: float
    second: float


def largest_gap(first: Sample, second: Sample) -> Gap:
    """Find where D is attained, and both distribution functions there. The leftmost of several places is returned.

    Parameters
    ----------
    first, second : array_like
        Samples of one number or more, in any order.

    Returns
    -------
    Gap
        The place, and both distribution functions there.

    Raises
    ------
    InputError
        An empty sample, or one of several dimensions.
    TypeError
        Not numbers.

    Examples
    --------
    >>> largest_gap([1.0, 2.0, 3.0], [2.0, 3.0])
    Gap(location=1.0, first=0.3333333333333333, second=0.0)
    """
    samples = [np.sort(_numbers(first, "first")), np.sort(_numbers(second, "second"))]
    points = np.sort(np.concatenate(samples))
    before, after = (np.searchsorted(sample, points, side="right") / len(sample) for sample in samples)
    at = int(np.abs(before - after).argmax())
    return Gap(float(points[at]), float(before[at]), float(after[at]))


def _numbers(sample: Any, name: str) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(sample.detach().cpu().double() if isinstance(sample, Tensor) else sample)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shown(sample)}: expected a list of numbers") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} is {shown(sample)}: expected a list of numbers")
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {list(array.shape)}: expected one dimension and at least one number")
    return array.astype(np.float64)
