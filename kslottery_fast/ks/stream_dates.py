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
        Such as datetime64[us], in the byte order of this machine.
    zoned : bool
        Whether the dates have a time zone. Then they are in UTC.
    open : bool
        Whether no value has been counted in this unit yet, so that the first one may still change it.
    """

    unit: np.dtype[Any]
    zoned: bool
    open: bool = False

    def __str__(self) -> str:
        return f"{self.unit}{' with a time zone' if self.zoned else ''}"


Kind: TypeAlias = "np.dtype[Any] | Clock | None"
"""What the values so far are: numbers of a dtype, or dates. None before there are any."""


def read_chunk(chunk: Any, name: str, kind: Kind, counted: bool) -> tuple[Numbers, int, Kind]:
    """Return the numbers of a chunk, the number of NaT that were left out, and what the values are from now on.

    Nothing, and NaN alone, are of no kind: they may stand among dates.

    Parameters
    ----------
    chunk : array_like or tensor
        The values.
    name : str
        The name of the argument.
    kind : dtype, Clock or None
        What the values so far are.
    counted : bool
        Whether there was a number among them.

    Raises
    ------
    InputError
        A date that the unit of the first chunk cannot hold, or as :func:`read_numbers`.
    TypeError
        Dates with numbers, or as :func:`read_numbers`.
    """
    numbers = read_numbers(chunk, name)
    if numbers.dtype.kind in "Mm":
        if isinstance(kind, np.dtype) and counted and numbers.size:
            raise TypeError(f"{name} has dtype {numbers.dtype}, and earlier chunks numbers: expected all of one kind")
        clock = kind if isinstance(kind, Clock) else None
        if numbers.size:
            integers, missing, clock = clock_numbers(numbers, has_timezone(chunk), clock, name)
            return integers, missing, kind if clock is None else clock
        if kind is None and not _is_generic(numbers.dtype):  # it is known what the location is, if it is NaT
            kind = Clock(_native(numbers.dtype), has_timezone(chunk), open=True)
        return np.zeros(0), 0, kind
    if isinstance(kind, Clock) and not has_numbers(numbers):
        return numbers, 0, kind
    if isinstance(kind, Clock) and not kind.open:
        raise TypeError(f"{name} has dtype {numbers.dtype}, and earlier chunks {kind}: expected all of one kind")
    if not numbers.size:
        return numbers, 0, kind
    return numbers, 0, np.result_type(kind, numbers.dtype) if isinstance(kind, np.dtype) else numbers.dtype


def has_numbers(numbers: Numbers) -> bool:
    """Tell whether there is a value other than NaN."""
    if numbers.dtype.kind != "f" or not numbers.size:
        return bool(numbers.size)
    return not np.isnan(numbers[0]) or not bool(np.isnan(numbers).all())


def joined_kind(first: Kind, second: Kind, counted: tuple[bool, bool]) -> Kind:
    """Return what the values of two accumulators are together. ``counted`` tells which have seen a number or date.

    Raises
    ------
    InputError
        Dates with numbers, or dates of two units.
    """
    if second is None or (isinstance(second, Clock) and second.open):
        return second if first is None else first
    if first is None or (isinstance(first, Clock) and first.open):
        return second
    if isinstance(first, Clock) and (first == second or (isinstance(second, np.dtype) and not counted[1])):
        return first
    if isinstance(second, Clock) and isinstance(first, np.dtype) and not counted[0]:
        return second
    if isinstance(first, Clock) or isinstance(second, Clock):
        raise InputError(f"other has seen {second}, and this one {first}: give all chunks one dtype with .astype")
    return np.result_type(first, second)


def clock_of(collection: Any) -> Clock | None:
    """Return the clock of a collection whose dtype says that it holds dates, and of which unit."""
    unit, zoned = declared_clock(collection)
    return None if unit is None or _is_generic(unit) else Clock(_native(unit), zoned)


def common_clock(first: Clock | None, second: Clock | None) -> Clock | None:
    """Return the clock of the finer unit, if both are known and alike. Else what is known of the first.

    If the second one alone is known, the first values may still choose a finer unit.

    Raises
    ------
    InputError
        Durations in months or years, and in shorter units, which cannot be converted.
    """
    if first is None:
        return None if second is None else second._replace(open=True)
    if second is None or first.unit.kind != second.unit.kind or first.zoned != second.zoned:
        return first
    if (unit := _common_unit(first.unit, second.unit)) is None:
        raise InputError(
            f"x_chunks has dtype {first} and y_chunks {second}, which have no common unit: give both one with .astype"
        )
    return Clock(unit, first.zoned)


def clock_numbers(
    dates: npt.NDArray[Any], zoned: bool, clock: Clock | None, name: str
) -> tuple[npt.NDArray[np.int64], int, Clock | None]:
    """Return a chunk of dates or durations as integers without NaT, how many NaT there were, and the clock.

    NaT alone needs no unit. Then the clock stays as it was.

    Raises
    ------
    InputError
        A date that the unit of the clock cannot hold, or whose unit cannot be converted to it.
    TypeError
        Dates with durations, or dates with a time zone and without.

    Examples
    --------
    >>> numbers, missing, clock = clock_numbers(np.array(["2024-01-02", "NaT"], "datetime64[D]"), False, None, "x")
    >>> numbers.tolist(), missing, str(clock)
    ([19724], 1, 'datetime64[D]')
    """
    absent = np.isnat(dates)
    missing = int(absent.sum())
    there = dates[~absent] if missing else dates
    own = Clock(_native(dates.dtype), zoned)
    if _is_generic(own.unit) and not there.size:
        return np.zeros(0, np.int64), missing, clock
    if clock is None:
        clock = own
    elif clock.open:
        clock = _refined(own, clock)
    if clock.unit.kind != own.unit.kind or clock.zoned != zoned:
        raise TypeError(f"{name} has dtype {own}, and earlier chunks {clock}: expected all of one kind")
    if _common_unit(own.unit, clock.unit) is None:  # numpy makes 30 days of a duration of a month
        raise InputError(
            f"{name} has dtype {own}, and earlier chunks {clock}, which have no common unit: give all chunks one "
            "with .astype"
        )
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


def _refined(own: Clock, declared: Clock) -> Clock:
    """Return the clock of the first values, in the unit that another sample declares if it is alike and finer."""
    alike = own.unit.kind == declared.unit.kind and own.zoned == declared.zoned
    unit = _common_unit(own.unit, declared.unit) if alike else None
    return own if unit is None else Clock(unit, own.zoned)


def _common_unit(one: np.dtype[Any], other: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the finer unit, or None if one cannot be converted: durations of months to days, or those without unit."""
    if _is_generic(one) != _is_generic(other):
        return None  # numpy takes 5 for 5 s
    try:
        return np.promote_types(one, other)
    except (TypeError, OverflowError):
        return None


def _native(unit: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype in the byte order of this machine, so that the bytes of converted dates are integers."""
    return unit.newbyteorder("=")


def _is_generic(unit: np.dtype[Any]) -> bool:
    """Tell whether dates or durations have no unit, as numpy gives to NaT alone."""
    return np.datetime_data(unit)[0] == "generic"


def date_of(number: int, clock: Clock) -> Any:
    """Return the date or duration with this number."""
    return np.int64(number).view(clock.unit)
