"""Empirical distribution functions, to be looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gap(NamedTuple):
    """Where two empirical distribution functions are furthest apart: D is the distance of ``first`` and ``second``."""

    location: float
    first: float
    second: float


def largest_gap(first: ArrayLike, second: ArrayLike) -> Gap:
    """Where D is attained, the leftmost place if there are several, and both distribution functions there.

    Parameters
    ----------
    first, second : array_like
        Samples of one number or more, in any order.

    Examples
    --------
    >>> largest_gap([1.0, 2.0, 3.0], [2.0, 3.0])
    Gap(location=1.0, first=0.3333333333333333, second=0.0)
    """
    samples = [np.sort(np.asarray(sample, dtype=np.float64)) for sample in (first, second)]
    points = np.sort(np.concatenate(samples))
    before, after = (np.searchsorted(sample, points, side="right") / len(sample) for sample in samples)
    at = int(np.abs(before - after).argmax())
    return Gap(float(points[at]), float(before[at]), float(after[at]))
