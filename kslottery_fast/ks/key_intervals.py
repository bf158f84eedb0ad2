"""Intervals of keys, and the buckets that a pass over the data cuts them into."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from .value_keys import LOW_BITS, Keys

Integers: TypeAlias = npt.NDArray[np.int64]
Small: TypeAlias = npt.NDArray[np.uint8]

NOWHERE = -1
_CELL_BITS = 18  # the grid that narrows a search has up to 2^18 cells, as fine as the buckets of the first pass
_FEW, _FEW_CELL_BITS = 64, 12  # a few intervals are not worth the time that so many cells take


@dataclass(frozen=True, eq=False)
class Intervals:
    """Disjoint intervals of keys, and how many values of both samples are before and inside each.

    Interval i has the keys ``starts[i]`` to ``starts[i] + 2^widths[i] - 1``. All arrays have one entry per interval.
    """

    starts: Keys
    widths: Small
    x_before: Integers
    y_before: Integers
    x_inside: Integers
    y_inside: Integers

    @classmethod
    def line(cls) -> Self:
        """Return the one interval of all keys."""
        none = np.zeros(1, dtype=np.int64)
        return cls(np.zeros(1, dtype=np.uint64), np.full(1, 64, dtype=np.uint8), none, none, none, none)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: Any) -> Self:
        return type(self)(*(array[which] for array in vars(self).values()))

    def with_others(self, others: Intervals) -> Intervals:
        """Return these intervals and others, in the order of their keys."""
        joined = [np.concatenate(pair) for pair in zip(vars(self).values(), vars(others).values(), strict=True)]
        return Intervals(*joined)[np.argsort(joined[0])]

    @property
    def inside(self) -> Integers:
        """How many values of both samples are inside."""
        return self.x_inside + self.y_inside


class Partition:
    """Sorted intervals, each cut into ``2^bits`` buckets of equal width.

    An interval of width 0 has one key ``high``. It is cut by the values of ``low``.
    """

    def __init__(self, starts: Keys, widths: Small, bits: Small) -> None:
        self.starts, self.widths, self.bits = np.ascontiguousarray(starts), widths, bits

    def __reduce__(self) -> Any:
        return Partition, (self.starts, self.widths, self.bits)  # the rest is derived

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        pairs = zip(self.__reduce__()[1], other.__reduce__()[1], strict=True)
        return self is other or all(np.array_equal(mine, its) for mine, its in pairs)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def bases(self) -> Integers:
        """The first bucket of each interval, and the number of all buckets at the end."""
        return np.concatenate([[0], np.cumsum(np.int64(1) << self.bits.astype(np.int64))]).astype(np.int64)

    @cached_property
    def shifts(self) -> Small:
        """The width of the buckets of each interval."""
        return np.where(self.widths > 0, self.widths - np.minimum(self.bits, self.widths), 0).astype(np.uint8)

    @cached_property
    def lasts(self) -> Keys:
        """The offset of the last key of each interval."""
        # 2^64 - 1 has to come from a shift of ones to the right, since no shift to the left reaches it.
        ones = np.full(len(self.starts), np.iinfo(np.uint64).max)
        inside = ones >> (64 - np.maximum(self.widths, 1)).astype(np.uint64)
        return np.where(self.widths > 0, inside, np.uint64(0))

    @property
    def size(self) -> int:
        """How many buckets there are."""
        return int(self.bases[-1])

    @cached_property
    def grid(self) -> tuple[npt.NDArray[np.int32], int]:
        """The cells and their width, as csrc/ksl.h explains."""
        first, end = int(self.starts[0]), int(self.starts[-1]) + int(self.lasts[-1])
        shift = max(0, (end - first).bit_length() - (_CELL_BITS if len(self.starts) > _FEW else _FEW_CELL_BITS))
        cells = ((end - first) >> shift) + 1
        firsts = np.arange(cells, dtype=np.uint64) * np.uint64(1 << shift) + self.starts[0]
        ends = firsts + np.uint64((1 << shift) - 1)
        ends[-1] = np.iinfo(np.uint64).max  # all that follows; the sum may have wrapped around
        found = [np.searchsorted(self.starts, keys, side="right") - 1 for keys in (firsts, ends)]
        return np.ascontiguousarray(np.stack(found, axis=1).astype(np.int32)), shift

    def place(self, high: Keys, low: Keys | None) -> Integers:
        """Return the bucket of each key, and NOWHERE outside the intervals."""
        interval = np.maximum(np.searchsorted(self.starts, high, side="right") - 1, 0)
        offset = high - self.starts[interval]  # wraps around below the first start, and is too large then
        buckets = self.bases[interval] + (offset >> self.shifts[interval].astype(np.uint64)).astype(np.int64)
        if low is not None:
            buckets += np.where(self.widths[interval] == 0, low.astype(np.int64), 0)
        return np.where((offset <= self.lasts[interval]) & (high >= self.starts[interval]), buckets, NOWHERE)

    def place_of(self, buckets: Integers) -> tuple[Integers, Keys, Small, Keys, npt.NDArray[np.bool_]]:
        """Return the interval of each bucket, its first key, its width, its ``low``, and whether that is all it has."""
        interval = np.searchsorted(self.bases, buckets, side="right") - 1
        local = (buckets - self.bases[interval]).astype(np.uint64)
        single = self.widths[interval] == 0
        high = self.starts[interval] + np.where(single, np.uint64(0), local << self.shifts[interval].astype(np.uint64))
        return interval, high, self.shifts[interval], np.where(single, local, np.uint64(0)), single


def cut_bits(intervals: Intervals, wanted: npt.NDArray[np.float64]) -> Small:
    """Return into how many bits each interval is cut, where about ``wanted`` buckets are wanted. At least into two."""
    bits = np.ceil(np.log2(np.maximum(wanted, 2.0)))
    return np.where(intervals.widths == 0, LOW_BITS, np.minimum(bits, intervals.widths)).astype(np.uint8)
