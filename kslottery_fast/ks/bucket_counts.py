"""What one pass over two samples finds out: how many values each bucket holds, or the keys themselves."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from kslottery_fast.ops import native

from .key_intervals import Integers, Partition, Small
from .value_keys import Keys, Numbers, blocks_of, float_keys

X, Y = 0, 1
NO_KEY, ONE_KEY, SEVERAL_KEYS = 0, 1, 2  # as in csrc/ksl.h
_DTYPES = {np.dtype(np.float64): 0, np.dtype(np.float32): 1}
_SLICE = 1 << 20  # numbers that are handed to the native library at a time
_NUMPY_SLICE = 1 << 16


class Found(Protocol):
    """What both kinds of passes have in common."""

    partition: Partition

    def add(self, side: int, numbers: Numbers) -> int:
        """Add values of one sample, and return how many of them are NaN."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another one has found."""
        ...

    def points(self) -> Points:
        """Return the buckets that hold values."""
        ...


class Points:
    """Buckets that hold values, in the order of their keys, with their counts. ``exact`` ones hold a single number."""

    def __init__(
        self, counts: Integers, interval: Integers, high: Keys, low: Keys, widths: Small, exact: npt.NDArray[np.bool_]
    ) -> None:
        self.counts, self.interval, self.high, self.low = counts, interval, high, low
        self.widths, self.exact = widths, exact


class BucketCounts:
    """Counts of both samples in the buckets of a partition, and whether a bucket holds a single number."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.counts = np.zeros((2, partition.size), dtype=np.int64)
        self.first_keys = np.zeros(partition.size, dtype=np.uint64)
        self.states = np.zeros(partition.size, dtype=np.uint8)

    def add(self, side: int, numbers: Numbers) -> int:
        """Add values of one sample, and return how many of them are NaN."""
        return sum(self._add(side, block, low) for block, low in blocks_of(numbers))

    def _add(self, side: int, block: Numbers, low: Keys | None) -> int:
        call = native.caller() if low is None else None
        if call is None:
            return _in_slices(block, low, lambda keys, rest: self._add_keys(side, keys, rest))
        targets = (self.counts[side].ctypes.data, self.first_keys.ctypes.data, self.states.ctypes.data)
        return sum(
            call("ks_stream_count", *_pointer(part), _interval_arguments(self.partition), *targets)
            for part in _slices(block, _SLICE)
        )

    def _add_keys(self, side: int, keys: Keys, low: Keys | None) -> None:
        buckets = self.partition.place(keys, low)
        inside = buckets >= 0
        buckets, keys = buckets[inside], keys[inside]
        if buckets.size < self.partition.size // 16:
            np.add.at(self.counts[side], buckets, 1)
        else:
            self.counts[side] += np.bincount(buckets, minlength=self.partition.size)
        new = self.states[buckets] == NO_KEY
        self.first_keys[buckets[new]] = keys[new]
        self.states[buckets[new]] = ONE_KEY
        other = self.first_keys[buckets] != keys
        if low is not None:
            other |= low[inside] != 0  # the bucket of a single low, where this does not matter, has a single number
        self.states[buckets[other]] = SEVERAL_KEYS

    def merge(self, other: Self) -> None:
        """Add what another one has found."""
        both = (self.states == ONE_KEY) & (other.states == ONE_KEY)
        several = both & (self.first_keys != other.first_keys)
        self.counts += other.counts
        self.first_keys = np.where(self.states == NO_KEY, other.first_keys, self.first_keys)
        self.states = np.where(several, SEVERAL_KEYS, np.maximum(self.states, other.states)).astype(np.uint8)

    def points(self) -> Points:
        """Return the buckets that hold values."""
        used = np.flatnonzero(self.counts.any(axis=0))
        interval, high, widths, low, single = self.partition.place_of(used)
        exact = single | (self.states[used] == ONE_KEY)
        high = np.where(exact & ~single, self.first_keys[used], high)
        return Points(self.counts[:, used], interval, high, low, widths, exact)

    def __getstate__(self) -> dict[str, Any]:
        used = np.flatnonzero(self.counts.any(axis=0))
        parts = {name: getattr(self, name)[..., used] for name in ("counts", "first_keys", "states")}
        return {"partition": self.partition, "used": used, **parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["partition"])  # type: ignore[misc]
        for name in ("counts", "first_keys", "states"):
            getattr(self, name)[..., state["used"]] = state[name]


class CollectedKeys:
    """The keys of both samples in the intervals of a partition. They are few."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.keys: tuple[list[Keys], list[Keys]] = ([], [])
        self.lows: tuple[list[Keys], list[Keys]] = ([], [])

    def add(self, side: int, numbers: Numbers) -> int:
        """Add values of one sample, and return how many of them are NaN."""
        return sum(self._add(side, block, low) for block, low in blocks_of(numbers))

    def _add(self, side: int, block: Numbers, low: Keys | None) -> int:
        call = native.caller() if low is None else None
        if call is None:
            return _in_slices(block, low, lambda keys, rest: self._add_keys(side, keys, rest))
        nans = 0
        buffer = np.empty(min(block.size, _NUMPY_SLICE), dtype=np.uint64)
        for part in _slices(block, _NUMPY_SLICE):
            arguments = (*_pointer(part), _interval_arguments(self.partition), buffer.ctypes.data)
            more_nans, count = call("ks_stream_collect", *arguments)
            nans += more_nans
            self._keep(side, buffer[:count].copy(), None)
        return nans

    def _add_keys(self, side: int, keys: Keys, low: Keys | None) -> None:
        inside = self.partition.place(keys, low) >= 0
        self._keep(side, keys[inside], None if low is None else low[inside])

    def _keep(self, side: int, keys: Keys, low: Keys | None) -> None:
        if keys.size:
            self.keys[side].append(keys)
            self.lows[side].append(np.zeros_like(keys) if low is None else low)

    def merge(self, other: Self) -> None:
        """Add what another one has found."""
        for mine, its in ((self.keys, other.keys), (self.lows, other.lows)):
            for side in (X, Y):
                mine[side].extend(its[side])

    def points(self) -> Points:
        """Return each distinct number."""
        none = [np.zeros(0, dtype=np.uint64)]
        x, y = (np.concatenate(none + keys) for keys in self.keys)
        high = np.concatenate([x, y])
        low = np.concatenate(none + self.lows[X] + self.lows[Y])
        order = np.lexsort((low, high)) if low.any() else np.argsort(high, kind="stable")
        high, low = high[order], low[order]
        first = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])[: high.size]
        number = np.cumsum(first) - 1
        from_y = order >= x.size
        distinct = int(first.sum())
        counts = np.stack([np.bincount(number[from_y == side], minlength=distinct) for side in (False, True)])
        high, low = high[first], low[first]
        interval = np.searchsorted(self.partition.starts, high, side="right") - 1
        widths = np.zeros(distinct, dtype=np.uint8)
        return Points(counts.astype(np.int64), interval, high, low, widths, np.ones(distinct, dtype=bool))


def _in_slices(block: Numbers, low: Keys | None, add: Any) -> int:
    """Call ``add(keys, low)`` without NaN, and return how many NaN there are."""
    if low is not None:
        add(block, low)
        return 0
    nans = 0
    for part in _slices(block, _NUMPY_SLICE):
        nan = np.isnan(part)
        nans += int(nan.sum())
        add(float_keys(part[~nan]), None)
    return nans


def _slices(block: Numbers, size: int) -> list[Numbers]:
    return [block[start : start + size] for start in range(0, block.size, size)]


def _pointer(block: Numbers) -> tuple[int, int, int]:
    return block.ctypes.data, block.size, _DTYPES[block.dtype]


def _interval_arguments(partition: Partition) -> tuple[int, int, int, int, int, int, int]:
    cells, cell_shift = partition.grid
    arrays = (partition.starts, partition.lasts, partition.shifts, partition.bases, cells)
    return (*(array.ctypes.data for array in arrays), len(partition.starts), cell_shift)  # type: ignore[return-value]
