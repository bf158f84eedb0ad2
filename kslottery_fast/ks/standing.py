"""What is certain about two samples after a pass: bounds of D, its place as far as known, and where it may still be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .bucket_counts import Points, X, Y
from .key_intervals import Integers, Intervals

PLUS, MINUS = 1, -1
SIDES = {"two-sided": (PLUS, MINUS), "greater": (PLUS,), "less": (MINUS,)}
_INT64 = 1 << 62  # differences below this are int64, and Python's integers from here on


class Sizes(NamedTuple):
    """How many values the samples have. Differences of the distribution functions are integers in units of 1 / lcm."""

    n: int
    m: int

    @property
    def lcm(self) -> int:
        """The unit: the difference F - G is ``(i * lcm / n - j * lcm / m) / lcm``."""
        return math.lcm(self.n, self.m)

    def difference(self, i: Integers, j: Integers) -> Any:
        """Return lcm * (i / n - j / m). Exact for samples of any size."""
        if self.lcm >= _INT64:
            i, j = i.astype(object), j.astype(object)
        return i * (self.lcm // self.n) - j * (self.lcm // self.m)


class Place(NamedTuple):
    """A number of the samples, and the difference there. Places are compared as csrc/cpu/ks_kernels.h does it."""

    scaled: int  # the difference times lcm and the side, exactly
    rounded: float  # the same in float64, where rounding may separate what is equal
    in_x: bool
    before: tuple[int, int]  # -high and -low: the smaller number is better
    gap: float  # F - G rounded as in scipy

    @property
    def key(self) -> tuple[int, int]:
        """The key of the number."""
        return -self.before[0], -self.before[1]


@dataclass(frozen=True)
class Standing:
    """What is known. ``lows`` are the largest differences found, by side, and ``high`` is an upper bound of D."""

    sizes: Sizes
    sides: tuple[int, ...]
    lows: dict[int, int]
    high: int
    places: dict[int, Place] = field(default_factory=dict)
    left: Intervals | None = None  # where more may be found; None if nothing more

    @property
    def low(self) -> int:
        """A lower bound of D."""
        return max(self.lows[side] for side in self.sides)


def advance(
    earlier: Standing | None, sizes: Sizes, sides: tuple[int, ...], points: Points, cut: Intervals, pending: Intervals
) -> Standing:
    """Return what is known after a pass that has cut some intervals into points. Others are still pending."""
    start_i, start_j, end_i, end_j = _walk(points, cut)
    ends = sizes.difference(end_i, end_j)
    lows = dict(earlier.lows) if earlier else dict.fromkeys(sides, 0)
    for side in sides:
        if len(ends):
            lows[side] = max(lows[side], int((side * ends).max()))
    low = max(lows.values())
    places = dict(earlier.places) if earlier else {}
    for side in sides:
        if (place := _best_place(points, side * ends, end_i, end_j, sizes, side, low)) is not None:
            places[side] = max(place, places.get(side, place))
    inexact = ~points.exact
    opened = Intervals(
        points.high[inexact],
        points.widths[inexact],
        start_i[inexact],
        start_j[inexact],
        points.counts[X][inexact],
        points.counts[Y][inexact],
    ).with_others(pending)
    reach = reaches(opened, sizes, sides)
    still = np.asarray(reach >= low, dtype=bool)
    high = max([low, *([int(reach[still].max())] if still.any() else [])])
    return Standing(sizes, sides, lows, high, places, opened[still] if still.any() else None)


def reaches(intervals: Intervals, sizes: Sizes, sides: tuple[int, ...]) -> Any:
    """Return how large the difference can be at a number inside each interval, on one of the sides."""
    start = sizes.difference(intervals.x_before, intervals.y_before)
    one = np.ones_like(intervals.x_inside)
    none = np.zeros_like(one)
    found = []
    for side in sides:
        rising, falling = (intervals.x_inside, intervals.y_inside)[::side]
        # At best all that raises the difference comes first. If there is nothing, the first number lowers it.
        up, down = rising, np.where(rising > 0, none, np.minimum(one, falling))
        i, j = (up, down)[::side]
        found.append(side * (start + sizes.difference(i, j)))
    return found[0] if len(found) == 1 else np.maximum(*found)


def _walk(points: Points, cut: Intervals) -> tuple[Integers, Integers, Integers, Integers]:
    """Return how many values of x and of y are before each point, and how many up to its end."""
    totals = np.cumsum(points.counts, axis=1)
    firsts = np.searchsorted(points.interval, np.arange(len(cut)))
    before = np.concatenate([np.zeros((2, 1), dtype=np.int64), totals], axis=1)[:, firsts]
    ends = totals + (np.stack([cut.x_before, cut.y_before]) - before)[:, points.interval]
    starts = ends - points.counts
    return starts[X], starts[Y], ends[X], ends[Y]


def _best_place(
    points: Points, counts: Any, i: Integers, j: Integers, sizes: Sizes, side: int, low: int
) -> Place | None:
    """Return the best number among the exact points, if it reaches the lower bound."""
    best = np.flatnonzero(points.exact & np.asarray(counts >= low, dtype=bool))
    if not len(best):
        return None
    counts = counts[best]
    best = best[np.asarray(counts == counts.max(), dtype=bool)]
    gaps: npt.NDArray[np.float64] = i[best] / sizes.n - j[best] / sizes.m
    best = best[side * gaps == (side * gaps).max()]
    in_x = points.counts[X][best] > 0
    at = int(best[np.argmax(in_x)])  # the first one in x, or the first one
    count = int(side * sizes.difference(i[at : at + 1], j[at : at + 1])[0])
    gap = float(i[at] / sizes.n - j[at] / sizes.m)
    return Place(count, side * gap, bool(in_x.any()), (-int(points.high[at]), -int(points.low[at])), gap)
