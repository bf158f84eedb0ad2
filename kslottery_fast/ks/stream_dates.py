"""What the chunks of a sample hold: numbers, or dates and durations as integers of the unit of the first chunk."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kslottery_fast.base.errors import InputError

from .columns import declared_clock, has_timezone
from .value_keys import Numbers, read_numbers


class Clock(NamedTuple):
    """What the integers of dates or durations mean.

    Attributes
    ----------
    unit : numpy dtype
        Such as datetime64[us].
    zoned : bool
        Whether the dates have a time zone. Then they are in UTC.
    """

    unit: np.dtype[Any]
    zoned: bool

    def __str__(self) -> str:
        return f"{self.unit}{' with a time zone' if self.zoned else ''}"


Kind: TypeAlias = "np.dtype[Any] | Clock | None"
"""What the values so far are: numbers of a dtype, or dates. None before there are any."""


def read_chunk(chunk: Any, name: str, kind: Kind) -> tuple[Numbers, int, Kind]:
    """Return the numbers of a chunk, the number of NaT that were left out, and what the values are from now on.

    Raises
    ------
    InputError
        A date that the unit of the first chunk cannot hold, or as :func:`read_numbers`.
    TypeError
        Dates with numbers, or as :func:`read_numbers`.
    """
    numbers = read_numbers(chunk, name)
    if numbers.dtype.kind in "Mm":
        if isinstance(kind, np.dtype):
            raise TypeError(f"{name} has dtype {numbers.dtype}, and earlier chunks numbers: expected all of one kind")
        return clock_numbers(numbers, has_timezone(chunk), kind, name)
    if isinstance(kind, Clock):
        raise TypeError(f"{name} has dtype {numbers.dtype}, and earlier chunks {kind}: expected all of one kind")
    return numbers, 0, numbers.dtype if kind is None else np.result_type(kind, numbers.dtype)


def joined_kind(first: Kind, second: Kind) -> Kind:
    """Return what the values of two accumulators are together.

    Raises
    ------
    InputError
        Dates with numbers, or dates of two units.
    """
    if first is None or second is None or first == second:
        return first or second
    if isinstance(first, Clock) or isinstance(second, Clock):
        raise InputError(f"other has seen {second}, and this one {first}: give all chunks one dtype with .astype")
    return np.result_type(first, second)


def clock_of(collection: Any) -> Clock | None:
    """Return the clock of a collection whose dtype says that it holds dates."""
    unit, zoned = declared_clock(collection)
    return None if unit is None else Clock(unit, zoned)


def common_clock(first: Clock | None, second: Clock | None) -> Clock | None:
    """Return the clock of the finer unit, if both are known and alike. Else what is known of the first."""
    if first is None or second is None:
        return first or second
    if first.unit.kind != second.unit.kind or first.zoned != second.zoned:
        return first
    return Clock(np.promote_types(first.unit, second.unit), first.zoned)


def clock_numbers(
    dates: npt.NDArray[Any], zoned: bool, clock: Clock | None, name: str
) -> tuple[npt.NDArray[np.int64], int, Clock]:
    """Return a chunk of dates or durations as integers without NaT, how many NaT there were, and the clock.

    Raises
    ------
    InputError
        A date that the unit of the clock cannot hold.
    TypeError
        Dates with durations, or dates with a time zone and without.

    Examples
    --------
    >>> numbers, missing, clock = clock_numbers(np.array(["2024-01-02", "NaT"], "datetime64[D]"), False, None, "x")
    >>> numbers.tolist(), missing, str(clock)
    ([19724], 1, 'datetime64[D]')
    """
    if clock is None:
        clock = Clock(dates.dtype, zoned)
    if clock.unit.kind != dates.dtype.kind or clock.zoned != zoned:
        own = Clock(dates.dtype, zoned)
        raise TypeError(f"{name} has dtype {own}, and earlier chunks {clock}: expected all of one kind")
    absent = np.isnat(dates)
    missing = int(absent.sum())
    there = dates[~absent] if missing else dates
    with np.errstate(all="ignore"):
        try:
            converted = there.astype(clock.unit)
            same = bool((converted.astype(there.dtype) == there).all() and not np.isnat(converted).any())
        except OverflowError:
            same = False
    if not same:
        raise InputError(
            f"{name} holds values of dtype {dates.dtype} that {clock.unit}, the unit of the first chunk, cannot hold: "
            "give all chunks one unit with .astype"
        )
    return converted.view(np.int64), missing, clock


def date_of(number: int, clock: Clock) -> Any:
    """Return the date or duration with this number."""
    return np.int64(number).view(clock.unit)
