"""Dates and durations as samples: exact, by their ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kslottery_fast.base.errors import InputError

Array = npt.NDArray[Any]


def rank_dates(x: Any, y: Any) -> tuple[Any, Any, Array | None]:
    """Replace two samples of dates, or two of durations, by float64 ranks. NaT becomes NaN.

    Returns
    -------
    x, y : array or tensor
        The ranks. Samples of numbers are returned as they are.
    values : array or None
        The date of each rank, or None for numbers.

    Raises
    ------
    InputError
        Dates that do not fit into 64 bits in the finer unit of the two, or units that cannot be converted.
    TypeError
        Dates with durations or with numbers.

    Examples
    --------
    >>> day = np.array(["2024-01-02", "NaT"], dtype="datetime64[D]")
    >>> rank_dates(day, day[:1])[0].tolist()
    [0.0, nan]
    """
    kinds = [_kind(x), _kind(y)]
    if "M" not in kinds and "m" not in kinds:
        return x, y, None
    if kinds[0] != kinds[1]:
        raise TypeError(f"data1 has dtype {x.dtype} and data2 has dtype {y.dtype}: expected both of one kind")
    try:
        unit = np.result_type(x.dtype, y.dtype)
    except (TypeError, OverflowError):  # durations in months and in days, for example
        raise InputError(
            f"data1 has dtype {x.dtype} and data2 has dtype {y.dtype}, which have no common unit: give both one "
            "with .astype"
        ) from None
    both = np.concatenate([_in_unit(sample, unit, name) for sample, name in ((x, "data1"), (y, "data2"))])
    values, ranks = np.unique(both, return_inverse=True)
    found = np.where(np.isnat(both), np.nan, ranks.reshape(-1))
    return found[: x.size].reshape(x.shape), found[x.size :].reshape(y.shape), values


def _kind(sample: Any) -> str:
    return sample.dtype.kind if isinstance(sample, np.ndarray) else ""


def _in_unit(sample: Array, unit: np.dtype[Any], name: str) -> Array:
    with np.errstate(all="ignore"):
        try:
            converted = sample.reshape(-1).astype(unit)
            same = bool((converted.astype(sample.dtype) == sample.reshape(-1))[~np.isnat(sample.reshape(-1))].all())
        except OverflowError:
            same = False
    if not same:
        raise InputError(f"{name} holds dates that {unit} cannot hold: give both samples the coarser unit with .astype")
    return converted
