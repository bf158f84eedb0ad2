"""The plan of the next pass: which intervals it looks into, and how finely."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .key_intervals import Intervals, Partition, Small, cut_bits
from .standing import Sizes, Standing, reaches


class Plan(NamedTuple):
    """The intervals that a pass cuts by its partition, whether it keeps their keys, and those that have to wait."""

    cut: Intervals
    partition: Partition
    keeps_keys: bool
    pending: Intervals


def first_plan(bits: int) -> Plan:
    """Return the plan of the first pass: all keys, cut by their highest bits."""
    line = Intervals.line()
    return Plan(line, Partition(line.starts, line.widths, np.full(1, bits, dtype=np.uint8)), False, line[:0])


def next_plan(standing: Standing, bits: int, keep: int) -> Plan:
    """Return the plan of the next pass: up to ``2^bits`` buckets, or up to ``keep`` values whose keys are kept."""
    left = standing.left
    assert left is not None
    most = 1 << bits
    if left.inside.sum() <= keep:
        return _keeping(left, left[:0])
    if len(left) > most // 4:  # so many that cutting them would not help: all values of some of them are looked at
        order = np.argsort(-_floats(reaches(left, standing.sizes, standing.sides)), kind="stable")
        order = order[left.inside[order] <= keep]
        taken = np.zeros(len(left), dtype=bool)
        taken[order[np.cumsum(left.inside[order]) <= keep]] = True
        if taken.any():
            return _keeping(left[taken], left[~taken])
    cut, pending = left[: most // 4], left[most // 4 :]
    return Plan(cut, Partition(cut.starts, cut.widths, _bits(cut, standing, most)), False, pending)


def _keeping(cut: Intervals, pending: Intervals) -> Plan:
    return Plan(cut, Partition(cut.starts, cut.widths, np.zeros(len(cut), dtype=np.uint8)), True, pending)


def _bits(cut: Intervals, standing: Standing, most: int) -> Small:
    """Return into how many bits each interval is cut, so that there are about as many buckets as there may be.

    A bucket can be put aside if it holds less than what is missing from the difference before it to the lower bound of
    D. So an interval is cut into its own share of the samples over what is missing. Inside, the difference wanders by
    about the square root of the number of values, which is added to what is missing.
    """
    sizes = standing.sizes
    share = cut.x_inside / sizes.n + cut.y_inside / sizes.m
    wandering = np.sqrt(cut.x_inside) / sizes.n + np.sqrt(cut.y_inside) / sizes.m
    missing = np.maximum(standing.low / sizes.lcm - _nearest(cut, sizes, standing.sides), 0.0)
    wanted = share / (missing + wandering / 2)
    least, largest = -40.0, 40.0  # logarithms of a common factor
    for _ in range(40):
        middle = (least + largest) / 2
        size = (np.int64(1) << cut_bits(cut, wanted * 2.0**middle).astype(np.int64)).sum()
        least, largest = (middle, largest) if size <= most else (least, middle)
    return cut_bits(cut, wanted * 2.0**least)


def _nearest(cut: Intervals, sizes: Sizes, sides: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the larger difference at the two ends of each interval."""
    before = cut.x_before / sizes.n - cut.y_before / sizes.m
    after = before + cut.x_inside / sizes.n - cut.y_inside / sizes.m
    return np.max([side * gap for side in sides for gap in (before, after)], axis=0)


def _floats(values: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
