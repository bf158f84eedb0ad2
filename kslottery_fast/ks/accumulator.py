"""``KsAccumulator``: the KS statistic of samples that come in chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from typing_extensions import Self

from kslottery_fast.base.arguments import check_choice, check_integer, shown
from kslottery_fast.base.errors import InputError

from .bucket_counts import BucketCounts, CollectedKeys, X, Y
from .key_intervals import Intervals
from .samples import Sample
from .standing import SIDES, Sizes, Standing, advance
from .stream_dates import Clock, Kind, has_numbers, joined_kind, read_chunk
from .stream_result import KsStreamResult, empty_result, make_result
from .zoom import Plan, first_plan, next_plan

Alternative = Literal["two-sided", "less", "greater"]
NanPolicy = Literal["propagate", "omit", "raise"]
METHODS = ("auto", "exact", "asymp")


class KsAccumulator:
    """Two samples that come in chunks of any size and order. It bounds D after one pass, and finds it in a few.

    A pass counts how many values fall into each of 2^18 ranges of numbers. This gives the difference of the
    distribution functions at the ends of the ranges, and bounds between them. :meth:`refined` returns the accumulator
    of the next pass, which cuts only those ranges where D can still be found. It has to see the same values again, in
    any order. The memory is a few megabytes, however many values there are. :func:`kslottery_fast.ks_stream` drives the
    passes.

    Parameters
    ----------
    alternative : {"two-sided", "less", "greater"}
        As for :func:`kslottery_fast.ks_2samp`.
    nan_policy : {"propagate", "omit", "raise"}
        As for :func:`kslottery_fast.ks_2samp`: what a NaN does.
    buckets : int
        How many ranges a pass counts. It is rounded up to a power of two, and takes 25 bytes each.
    keep : int
        If at most so many values are left in question, the next pass keeps them, and is the last one. They take 8 bytes
        each, and a few times as much while they are sorted.

    Raises
    ------
    InputError
        An unknown option, or a number out of range.
    TypeError
        A number that is not an integer.

    Notes
    -----
    Accumulators can be pickled and merged, so that each process or machine counts its own chunks. Values are compared
    exactly, integers beyond 2^53 included. D is the same as that of :func:`kslottery_fast.ks_2samp`, bit for bit.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> chunks = [(rng.normal(size=1000), rng.normal(loc=0.1, size=900)) for _ in range(10)]
    >>> seen = KsAccumulator(keep=1000)
    >>> for x, y in chunks:
    ...     _ = seen.update(x=x, y=y)
    >>> low, high = seen.bounds()
    >>> more = seen.refined()
    >>> for x, y in chunks:
    ...     _ = more.update(x=x, y=y)
    >>> D = more.result().statistic
    >>> bool(low <= D <= high), round(float(D), 4)
    (True, 0.0508)
    """

    def __init__(
        self,
        alternative: Alternative = "two-sided",
        *,
        nan_policy: NanPolicy = "propagate",
        buckets: int = 1 << 18,
        keep: int = 1 << 20,
    ) -> None:
        check_choice(alternative, tuple(SIDES), "alternative")
        check_choice(nan_policy, ("propagate", "omit", "raise"), "nan_policy")
        self._alternative, self._nan_policy = alternative, nan_policy
        self._bits = (check_integer(buckets, "buckets", 16) - 1).bit_length()
        if self._bits > 26:
            raise InputError(f"buckets is {buckets}: expected at most 2^26")
        self._keep = check_integer(keep, "keep", 16)
        self._kind: Kind = None  # of the values so far: the dtype of numbers, or what dates are measured in
        self._start(None, first_plan(self._bits), 1)

    def _start(self, earlier: Standing | None, plan: Plan, passes: int) -> None:
        self._earlier, self._plan, self._passes = earlier, plan, passes
        self._found: Any = (CollectedKeys if plan.keeps_keys else BucketCounts)(plan.partition)
        self._seen, self._nans = [0, 0], [0, 0]
        self._now: Standing | None = None  # what is known, until another value comes

    def __repr__(self) -> str:
        return f"KsAccumulator(pass {self._passes}: {self._seen[X]:,} values of x and {self._seen[Y]:,} of y)"

    @property
    def passes(self) -> int:
        """Which pass this is, counted from 1."""
        return self._passes

    @property
    def sizes(self) -> tuple[int, int]:
        """How many values of x and of y this pass has seen, without NaN."""
        return self._seen[X], self._seen[Y]

    @property
    def missing(self) -> tuple[int, int]:
        """How many NaN this pass has seen in x and in y."""
        return self._nans[X], self._nans[Y]

    def update(self, x: Sample | None = None, y: Sample | None = None) -> Self:
        """Count a chunk of one sample, or one of each.

        Parameters
        ----------
        x, y : array_like or tensor, optional
            Real numbers, dates or durations in any shape. Masked values are left out, and missing ones count as NaN.
            Chunks of dates may differ in their units, as long as that of the first chunk holds all values.

        Returns
        -------
        KsAccumulator
            Itself.

        Raises
        ------
        InputError
            NaN with ``nan_policy="raise"``, or a date that the unit of the first chunk does not hold.
        TypeError
            Not real numbers, a type wider than float64, or dates with numbers. Nothing was counted.

        Examples
        --------
        >>> KsAccumulator().update(x=[1.0, 2.0], y=[3])
        KsAccumulator(pass 1: 2 values of x and 1 of y)
        """
        given = ((X, "x", x), (Y, "y", y))
        kind, counted, chunks = self._kind, any(self._seen), []
        for side, name, chunk in given:
            if chunk is None:
                continue
            numbers, nats, kind = read_chunk(chunk, name, kind, counted)
            counted = counted or has_numbers(numbers)
            if self._nan_policy == "raise" and (nats or (numbers.dtype.kind == "f" and bool(np.isnan(numbers).any()))):
                raise InputError(f"{name} contains nan values")
            chunks.append((side, numbers, nats))
        self._now, self._kind = None, kind
        for side, numbers, nats in chunks:
            nans = self._found.add(side, numbers)
            self._nans[side] += nans + nats
            self._seen[side] += numbers.size - nans
        return self

    def merge(self, other: KsAccumulator) -> Self:
        """Add what another accumulator of the same pass has counted.

        Parameters
        ----------
        other : KsAccumulator
            One with the same options, and of the same :meth:`refined` accumulator or both of the first pass.

        Returns
        -------
        KsAccumulator
            Itself.

        Raises
        ------
        InputError
            The other one is of another pass, or has other options.
        TypeError
            Not an accumulator.

        Examples
        --------
        >>> KsAccumulator().update(x=[1, 2]).merge(KsAccumulator().update(y=[1]))
        KsAccumulator(pass 1: 2 values of x and 1 of y)
        """
        if not isinstance(other, KsAccumulator):
            raise TypeError(f"other is {shown(other)}: expected a KsAccumulator")
        if other._options() != self._options() or other._plan.partition != self._plan.partition:
            raise InputError(
                f"other is of pass {other._passes}, or has other options: expected one that counts the same "
                "ranges, such as one made by empty()"
            )
        if other is self:
            raise InputError("other is the accumulator itself: expected another one")
        self._kind = joined_kind(self._kind, other._kind, (any(self._seen), any(other._seen)))
        self._now = None
        self._found.merge(other._found)
        for side in (X, Y):
            self._seen[side] += other._seen[side]
            self._nans[side] += other._nans[side]
        return self

    def _options(self) -> tuple[Any, ...]:
        return self._alternative, self._nan_policy, self._bits, self._keep, self._passes

    def empty(self) -> KsAccumulator:
        """Return an accumulator of the same pass that has seen nothing, for another process to count with.

        Returns
        -------
        KsAccumulator

        Examples
        --------
        >>> KsAccumulator().update(x=[1, 2]).empty()
        KsAccumulator(pass 1: 0 values of x and 0 of y)
        """
        other = KsAccumulator.__new__(KsAccumulator)
        other._alternative, other._nan_policy = self._alternative, self._nan_policy
        other._bits, other._keep = self._bits, self._keep
        other._kind = self._kind if isinstance(self._kind, Clock) else None  # all chunks of dates need one unit
        other._start(self._earlier, self._plan, self._passes)
        return other

    def bounds(self) -> tuple[float, float]:
        """Return bounds of D, or of D+ or D-.

        Returns
        -------
        low, high : float
            D is at least ``low`` and at most ``high``. In the first pass, this is D of the values so far. In a later
            pass that has not seen all values yet, the bounds are those of the pass before. NaN where the result is NaN.

        Examples
        --------
        >>> KsAccumulator().update(x=[1, 2], y=[2, 3]).bounds()
        (0.5, 0.5)
        """
        if self._is_nan():
            return float("nan"), float("nan")
        standing = self._earlier
        if standing is None or self.sizes == tuple(standing.sizes):
            standing = self._standing()
        return standing.low / standing.sizes.lcm, standing.high / standing.sizes.lcm

    def refined(self) -> KsAccumulator | None:
        """Return the accumulator of the next pass, or None if D and its place are known.

        Returns
        -------
        KsAccumulator or None
            It has seen nothing yet. Show it the same values again.

        Raises
        ------
        InputError
            A later pass has seen other values than the first one.

        Examples
        --------
        >>> KsAccumulator().update(x=[1, 2], y=[2, 3]).refined() is None
        True
        """
        if self._is_nan() or (standing := self._standing()).left is None:
            return None
        plan = next_plan(standing, self._bits, self._keep)
        other = self.empty()
        other._start(replace(standing, left=None), plan, self._passes + 1)  # the plan has what is left
        return other

    def result(self, method: Literal["auto", "exact", "asymp"] = "auto") -> KsStreamResult:
        """Return the test's result from what is known after this pass.

        Parameters
        ----------
        method : {"auto", "exact", "asymp"}
            As for :func:`kslottery_fast.ks_2samp`.

        Returns
        -------
        KsStreamResult
            If :meth:`refined` does not return None, it has ``exact=False``, and its statistic is the lower bound of D.

        Raises
        ------
        InputError
            An unknown method, or a later pass has seen other values than the first one.

        Examples
        --------
        >>> KsAccumulator().update(x=[1, 2, 3], y=[4, 5, 6]).result().statistic
        np.float64(1.0)
        """
        check_choice(method, METHODS, "method")
        if self._is_nan():
            return empty_result(self, self._nan_policy == "omit" and any(self._nans), self._kind)
        return make_result(self, self._standing(), self._alternative, method, self._kind)

    def _is_nan(self) -> bool:
        if self._earlier is not None:
            return False  # then there would be no later pass
        return 0 in self._seen or (self._nan_policy == "propagate" and any(self._nans))

    def _standing(self) -> Standing:
        if self._now is None:
            self._now = self._look()
        return self._now

    def _look(self) -> Standing:
        sizes = Sizes(*self._seen)
        if self._earlier is not None and self._earlier.sizes != sizes:
            raise InputError(
                f"pass {self._passes} has seen {sizes.n:,} values of x and {sizes.m:,} of y, and the first pass "
                f"{self._earlier.sizes.n:,} and {self._earlier.sizes.m:,}: every pass needs the same values"
            )
        points = self._found.points()
        if self._earlier is not None and not _same_counts(points, self._plan.cut):
            raise InputError(
                f"pass {self._passes} has seen other values than the first pass: every pass needs the same"
            )
        cut = self._plan.cut
        return advance(self._earlier, sizes, SIDES[self._alternative], points, cut, self._plan.pending)


def _same_counts(points: Any, cut: Intervals) -> bool:
    """Tell whether a pass has found as many values in each interval as the pass before."""
    counts = [np.bincount(points.interval, side, minlength=len(cut)) for side in points.counts]
    return np.array_equal(counts[X], cut.x_inside) and np.array_equal(counts[Y], cut.y_inside)
