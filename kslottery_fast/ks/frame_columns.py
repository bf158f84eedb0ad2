"""Columns of tables as samples: which types are tested, and as which numbers their values are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Values: TypeAlias = npt.NDArray[Any]
Location: TypeAlias = "bool | int | float | str"

_UNITS = ("s", "ms", "us", "ns")
_EXACT = 2**53  # every integer up to here is a float64


@dataclass(frozen=True)
class Measure:
    """How the values of two columns become numbers, and how a number becomes a value again.

    Attributes
    ----------
    kind : {"number", "boolean", "decimal", "date", "timestamp", "time", "duration"}
        Columns are compared within a kind.
    cast : pyarrow type or None
        The type that both columns get before their integers are read. None keeps the numbers of each.
    suffix : str
        What is added to the text of a location, such as "Z" for UTC.
    """

    kind: str
    cast: pa.DataType | None = None
    suffix: str = ""

    def numbers(self, column: Any) -> tuple[Values, int]:
        """Return the values of an array or a chunked array that are there, and the number of missing ones.

        Nulls and NaN are missing. Numbers are not copied if none is missing and the array is in one piece.

        Raises
        ------
        pyarrow.ArrowException
            A value that the common type cannot hold.
        OverflowError
            A decimal that 64 bits cannot hold.
        """
        import pyarrow as pa

        if self.cast is not None:
            column = column.cast(self.cast)
        missing = column.null_count
        if missing:
            column = column.drop_null()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if self.kind == "decimal":
            return _decimal_words(column), missing
        if self.cast is not None and self.kind != "boolean":
            column = column.view(pa.int32() if self.cast.bit_width == 32 else pa.int64())
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "f" and (absent := np.isnan(values)).any():
            values = values[~absent]
            missing += int(absent.sum())
        return values, missing

    def value(self, number: Any) -> Location:
        """Return what a table calls a number that :meth:`numbers` gave. Dates and times are ISO 8601."""
        if self.kind == "number":
            return int(number) if isinstance(number, (int, np.integer)) else float(number)
        if self.kind == "boolean":
            return bool(number)
        assert self.cast is not None
        if self.kind == "decimal":
            return float(number) / 10.0**self.cast.scale
        unit: Any = "D" if self.kind == "date" else self.cast.unit
        if self.kind == "duration":
            return float(number) / 1000 ** _UNITS.index(unit)
        text = str(np.datetime64(int(number), unit))
        return (text.partition("T")[2] if self.kind == "time" else text) + self.suffix


def common_measure(first: pa.DataType, second: pa.DataType) -> Measure | str:
    """Return the measure of two columns of these types, or the reason why they cannot be compared.

    Parameters
    ----------
    first, second : pyarrow type
        The types in the two tables.

    Returns
    -------
    Measure or str

    Examples
    --------
    >>> import pyarrow as pa
    >>> common_measure(pa.int64(), pa.float32()).kind
    'number'
    >>> common_measure(pa.string(), pa.string()), common_measure(pa.bool_(), pa.int8())
    ('not numeric: text', 'different types: bool and int8')
    """
    import pyarrow as pa

    kinds = _kind(first), _kind(second)
    if "missing" in kinds:
        return "all values are missing"
    if kinds[0] != kinds[1] or (kinds[0] is None and _name(first) != _name(second)):
        return f"different types: {_name(first)} and {_name(second)}"
    kind = kinds[0]
    if kind is None:
        return f"not numeric: {_name(first)}"
    if kind == "number":
        return Measure(kind)
    if kind == "boolean":
        return Measure(kind, pa.uint8())
    if kind == "decimal":
        return Measure(kind, pa.decimal128(38, max(first.scale, second.scale)))
    if kind == "date":
        return Measure(kind, pa.date32())
    unit = max(first.unit, second.unit, key=_UNITS.index)
    if kind == "duration":
        return Measure(kind, pa.duration(unit))
    if kind == "time":
        return Measure(kind, pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit))
    if (first.tz is None) != (second.tz is None):
        return f"different types: {_name(first)} and {_name(second)}, of which one has a time zone"
    return Measure(kind, pa.timestamp(unit, None if first.tz is None else "UTC"), "" if first.tz is None else "Z")


def why_other_kind(kind: pa.DataType, measure: Measure) -> str | None:
    """Return the reason why a piece of a column of this type does not fit its measure, or None."""
    own = _kind(kind)
    if own in (measure.kind, "missing"):
        return None
    return f"different types in its pieces: {measure.kind} and {_name(kind)}"


def beyond_float64(values: Values) -> bool:
    """Tell whether float64 cannot hold some of these integers. Then a location in float64 would be rounded."""
    if values.dtype.kind not in "iu" or values.itemsize < 8:
        return False
    return max(abs(int(values.min())), int(values.max())) > _EXACT


def same_constant(x: Values, y: Values) -> bool:
    """Tell whether both samples hold one value, the same. Neither is empty."""
    # Integers and floats of Python are compared exactly, and those of numpy in float64.
    return x[0].item() == y[0].item() and bool((x == x[0]).all() and (y == y[0]).all())


def _kind(kind: pa.DataType) -> str | None:
    """Return the kind of numbers that a type holds, "missing" if it holds nothing, or None if it holds no numbers."""
    from pyarrow import types

    tests = (
        ("missing", types.is_null),
        ("number", types.is_integer),
        ("number", types.is_floating),
        ("boolean", types.is_boolean),
        ("decimal", types.is_decimal),
        ("date", types.is_date),
        ("timestamp", types.is_timestamp),
        ("time", types.is_time),
        ("duration", types.is_duration),
    )
    return next((name for name, test in tests if test(kind)), None)


def _name(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        return f"categories of {_name(kind.value_type)}"
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return "text" if texts else str(kind)


def _decimal_words(column: Any) -> Values:
    """Return the integers behind 128-bit decimals. They have to fit into 64 bits."""
    words = np.frombuffer(column.buffers()[1], dtype="<i8").reshape(-1, 2)[column.offset : column.offset + len(column)]
    low, high = words[:, 0], words[:, 1]
    if not np.array_equal(high, low >> 63):  # the upper half repeats the sign of the lower one
        raise OverflowError("a decimal needs more than 64 bits")
    return low.astype(np.int64)
