"""What numpy reads as objects, or not at all: nullable columns, objects that are numbers, tensors in lists."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

Array = npt.NDArray[Any]

_EXACT = 2**53  # every integer up to here is a float64
_DIGITS = 15  # decimal digits that survive a conversion to float64 and back
_LARGEST_EXPONENT = 307  # of decimals whose nearest float64 is neither infinite nor subnormal, which has fewer digits
_CONVERT = "convert it first, for example with .astype(float)"


def as_array(value: Any, name: str) -> Array:
    """Read numbers, booleans, dates or durations as an array. Missing numbers become NaN, and missing dates NaT.

    Pandas is known by its methods alone, and need not be installed.

    Raises
    ------
    InputError
        Ragged input, integers whose digits no float holds, beside missing ones, or decimals of more than 15 digits or
        beyond the range of floats.
    TypeError
        Objects that are not real numbers, or tensors of a dtype without numbers.

    Examples
    --------
    >>> as_array([1, None, 2.5], "data1").tolist()
    [1.0, nan, 2.5]
    """
    if isinstance(value, (list, tuple)):
        value = _without_tensors(value, name)
    kind: Any = getattr(value, "dtype", None)
    if hasattr(kind, "numpy_dtype") and hasattr(value, "isna") and kind.numpy_dtype.kind != "O":
        array = _of_nullable(value, kind.numpy_dtype, name)
    elif _timezone(value) is not None and hasattr(value, "to_numpy"):
        array = value.to_numpy(dtype=f"datetime64[{_unit(kind)}]")
    else:
        array = _asarray(value, name)
    return _of_objects(array, name) if array.dtype.kind == "O" else array


def check_same_clock(data1: Any, data2: Any) -> None:
    """Refuse to compare dates with a time zone and dates without one.

    Raises
    ------
    TypeError
        One of the two columns has a time zone.
    """
    if (_timezone(data1) is None) != (_timezone(data2) is None):
        with_zone, without = ("data1", "data2") if _timezone(data2) is None else ("data2", "data1")
        raise TypeError(
            f"{with_zone} has a time zone and {without} has none: give both one, or neither, with .dt.tz_localize"
        )


def has_timezone(value: Any) -> bool:
    """Tell whether a column has dates with a time zone."""
    return _timezone(value) is not None


def declared_clock(value: Any) -> tuple[np.dtype[Any] | None, bool]:
    """Return the numpy dtype of a collection of dates or durations, or None for others, and whether it has a time zone.

    >>> declared_clock(np.zeros(2, "timedelta64[s]")), declared_clock([1.0])
    ((dtype('<m8[s]'), False), (None, False))
    """
    if not hasattr(type(value), "dtype"):  # a Delayed of Dask has every attribute
        return None, False
    kind: Any = value.dtype
    if has_timezone(value):
        return np.dtype(f"datetime64[{_unit(kind)}]"), True
    kind = getattr(kind, "numpy_dtype", kind)
    return (kind if isinstance(kind, np.dtype) and kind.kind in "Mm" else None), False


def check_convertible(dtype: torch.dtype, name: str) -> None:
    """Refuse tensors that hold no plain numbers, such as two 4-bit floats per byte.

    Raises
    ------
    TypeError
        Torch does not convert this dtype.
    """
    try:
        torch.empty(1, dtype=dtype).to(torch.float64)
    except (NotImplementedError, RuntimeError):
        raise TypeError(
            f"{name} has dtype {dtype}, which torch does not convert: unpack it and pass the numbers as float32"
        ) from None


def _asarray(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} is not a rectangular array: {error}") from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} is {shown(value)}, which numpy cannot read: {error}") from None


def _without_tensors(value: Any, name: str) -> Any:
    """Replace tensors in nested lists by arrays. Numpy does not take those that require grad or lie on a GPU."""
    if isinstance(value, Tensor):
        check_convertible(value.dtype, name)
        wide = value.detach().to(torch.float32) if value.is_floating_point() and value.itemsize < 4 else value.detach()
        return wide.cpu().numpy()
    if isinstance(value, (list, tuple)) and any(isinstance(part, (list, tuple, Tensor)) for part in value):
        return [_without_tensors(part, name) for part in value]
    return value


def _timezone(value: Any) -> Any:
    kind = getattr(value, "dtype", None)
    return getattr(kind, "tz", None) or getattr(getattr(kind, "pyarrow_dtype", None), "tz", None)


def _unit(kind: Any) -> str:
    """Return the unit of dates with a time zone, of pandas or of pyarrow in pandas."""
    return str(getattr(getattr(kind, "pyarrow_dtype", kind), "unit", "ns"))


def _of_nullable(column: Any, dtype: np.dtype[Any], name: str) -> Array:
    missing = np.asarray(column.isna(), dtype=bool)
    if dtype.kind in "Mm":
        return np.asarray(column.to_numpy(dtype=dtype, na_value=np.array("NaT", dtype)[()]))
    array = np.asarray(column.to_numpy(dtype=dtype, na_value=dtype.type(0)))
    return _with_missing(array, missing, name) if missing.any() else array


def _of_objects(array: Array, name: str) -> Array:
    values = array.reshape(-1).tolist()
    missing = np.array([value is None or type(value).__name__ == "NAType" for value in values], dtype=bool)
    numbers = [0 if absent else value for value, absent in zip(values, missing, strict=True)]
    numbers = [_of_decimal(value, name) if isinstance(value, Decimal) else value for value in numbers]
    for value in numbers:
        if not isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
            raise TypeError(f"{name} has dtype object and holds {shown(value)}: expected real numbers; {_CONVERT}")
    found = np.array(numbers) if numbers else np.zeros(0)
    integers = [int(value) for value in numbers if isinstance(value, (int, np.integer))]
    if integers and found.dtype.kind not in "iub" and max(map(abs, integers)) > _EXACT:
        found = _long_doubles(numbers, max(map(abs, integers)), name)
    return (_with_missing(found, missing, name) if missing.any() else found).reshape(array.shape)


def _of_decimal(value: Decimal, name: str) -> float:
    """The nearest float64. Two decimals of up to 15 digits are equal, or in order, exactly where these floats are."""
    if value.is_nan():
        return math.nan
    digits = "".join(map(str, value.as_tuple().digits)).strip("0")
    if len(digits) > _DIGITS:
        raise InputError(
            f"{name} holds {value}, a decimal of {len(digits)} digits: decimals of up to {_DIGITS} digits are compared "
            "exactly, by their nearest floats; ks_frames compares decimals of up to 64 bits as integers"
        )
    if digits and abs(value.adjusted()) > _LARGEST_EXPONENT:
        raise InputError(
            f"{name} holds a decimal of about 1e{value.adjusted():+d}: floats tell decimals apart from "
            f"1e-{_LARGEST_EXPONENT} to below 1e+{_LARGEST_EXPONENT + 1}; scale all values first, as with .scaleb(-100)"
        )
    return float(value)


def _with_missing(array: Array, missing: npt.NDArray[np.bool_], name: str) -> Array:
    """Put NaN where a value is missing."""
    if array.dtype.kind != "f":
        largest = max(abs(int(array.max())), abs(int(array.min())))
        array = array.astype(np.float64) if largest <= _EXACT else _long_doubles(array, largest, name)
    return np.where(missing, np.array(np.nan, array.dtype), array)


def _long_doubles(integers: Any, largest: int, name: str) -> Array:
    if largest.bit_length() > np.finfo(np.longdouble).nmant + 1:
        raise InputError(
            f"{name} holds {largest}, and no float of this machine has so many digits beside missing or fractional "
            f"values: leave these out, or {_CONVERT}"
        )
    return np.array(integers, dtype=np.longdouble)
