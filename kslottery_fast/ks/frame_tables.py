"""Tables as sources of columns: DataFrames of pandas and polars, tables of pyarrow, and what hands over Arrow data."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

EXPECTED = (
    "expected a DataFrame of pandas, polars or Dask, a pyarrow table, or the path of a parquet, CSV or feather file"
)
TWICE = "the name occurs more than once"
_LAZY = ("collect", "compute")  # what makes a table of a lazy one


class SupportsArrow(Protocol):
    """A table that hands over its data by the PyCapsule interface of Apache Arrow, as most DataFrames do."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Table: TypeAlias = "SupportsArrow | str | os.PathLike[str]"


class Countable(Protocol):
    """What the passes have seen of a column. See :class:`~.frame_passes.PassColumn`."""

    def empty(self) -> Countable:
        """Return a column of the same pass that has seen nothing."""

    def add(self, side: int, piece: Any) -> None:
        """Count a piece of one side: a pyarrow array, or the reason why it cannot be one."""

    def merge(self, other: Any) -> None:
        """Add what another column of the same pass has seen."""


class Source(Protocol):
    """Where the columns of a table come from.

    Attributes
    ----------
    label : str
        What a message calls the table.
    types : dict of str to pyarrow type or str
        The columns. A text says why a column cannot be read.
    rows : int or None
        The number of rows. None if it takes a pass over all of them to know it: then it is counted in passes.
    on_disk : bool
        Whether reading a column takes memory that is not taken yet.
    """

    label: str
    types: dict[str, Any]
    on_disk: bool

    @property
    def rows(self) -> int | None: ...

    def count(self, columns: Mapping[str, Countable], side: int) -> None:
        """Go through the rows once, and add the columns of these names to what is known of them."""


class ReadableSource(Source, Protocol):
    """A source that this process can read itself."""

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return whole columns, each as a pyarrow Array or ChunkedArray."""

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Go through the rows once, and return the columns in pieces."""


def count_batches(source: ReadableSource, columns: Mapping[str, Countable], side: int) -> None:
    """Count the columns of a source batch by batch, in this process."""
    for batch in source.batches(list(columns)):
        for name, piece in batch.items():
            columns[name].add(side, piece)


@dataclass
class MemoryTable:
    """A table in memory. See :class:`ReadableSource`."""

    label: str
    columns: dict[str, Any]
    types: dict[str, Any]
    rows: int
    on_disk: bool = False

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the columns without a copy."""
        return {name: self.columns[name] for name in names}

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Return all rows at once: they are in memory already."""
        yield self.read(names)

    def count(self, columns: Mapping[str, Countable], side: int) -> None:
        """Count all rows at once."""
        count_batches(self, columns, side)


def arrow_table(table: Any, label: str) -> MemoryTable:
    """Return the source of a pyarrow table."""
    names = [str(name) for name in table.schema.names]
    columns = [table.column(at) for at in range(len(names))]
    return _named(label, names, columns, table.num_rows)


def memory_table(table: Any, name: str) -> MemoryTable:
    """Return the source of a table in memory.

    Parameters
    ----------
    table : DataFrame or pyarrow table
        The table.
    name : str
        The name of the argument.

    Returns
    -------
    MemoryTable

    Raises
    ------
    InputError
        A table that Arrow cannot take.
    TypeError
        No table, or one that is lazy.
    """
    import pyarrow as pa

    if isinstance(table, (pa.Table, pa.RecordBatch)):
        return arrow_table(table, name)
    kind = type(table)
    for method in _LAZY:
        if hasattr(kind, method) and not hasattr(kind, "__arrow_c_stream__"):
            raise TypeError(
                f"{name} is {shown(table)}, which is lazy: expected a table in memory, {name}.{method}(), or a path"
            )
    if hasattr(kind, "iloc") and hasattr(kind, "columns"):
        return _of_pandas(table, name)
    if not hasattr(kind, "__arrow_c_stream__") or not hasattr(kind, "columns"):
        raise TypeError(f"{name} is {shown(table)}: {EXPECTED}")
    try:
        return arrow_table(pa.table(table), name)
    except pa.ArrowException as error:
        if hasattr(kind, "get_columns"):
            return _of_polars(table, name)
        raise InputError(f"{name} cannot be read as an Arrow table ({error}); convert it to one of pyarrow") from None


@contextlib.contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turn an error of pyarrow into one line that names the file.

    Parameters
    ----------
    path : str
        The file.
    kind : str
        What it should be, such as "CSV".

    Raises
    ------
    InputError
        Pyarrow cannot read the file.
    """
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        text = str(error).strip().partition("\n")[0]
        if "UTF8" in text.upper().replace("-", ""):
            raise InputError(not_utf8(path)) from None
        raise InputError(f"{path} cannot be read as {kind} ({text}); write it again") from None


def no_rows(label: str) -> InputError:
    """Say that a table is empty."""
    return InputError(f"{label} has no rows: expected a table with at least one")


def not_utf8(path: str, where: str = "") -> str:
    """Say that a file of text holds bytes of another encoding."""
    return f"{path} is not UTF-8{where}; save it as UTF-8, in one encoding throughout"


def _of_pandas(frame: Any, name: str) -> MemoryTable:
    """Return a DataFrame column by column, so that a column which Arrow does not take leaves the others alone."""
    return _named(name, [str(column) for column in frame.columns], column_arrays(frame), len(frame))


def column_arrays(frame: Any) -> list[Any]:
    """Return the columns of a DataFrame of pandas, each as an Arrow array or as the reason why it cannot be one."""
    return [_of_series(frame.iloc[:, at]) for at in range(frame.shape[1])]


def _of_polars(frame: Any, name: str) -> MemoryTable:
    """Return a DataFrame column by column, if Arrow does not take one of the columns, such as 128-bit integers."""
    import pyarrow as pa

    def of_series(series: Any) -> Any:
        with contextlib.suppress(pa.ArrowException):
            return pa.chunked_array(series)
        return f"not numeric for Arrow: {series.dtype}"

    return _named(name, list(frame.columns), [of_series(series) for series in frame.get_columns()], len(frame))


def _of_series(series: Any) -> Any:
    """Return a Series as an Arrow array, or the reason why it cannot be one."""
    import pyarrow as pa

    refusals = pa.ArrowException, ArithmeticError, TypeError, ValueError, NotImplementedError
    with contextlib.suppress(*refusals):
        return pa.array(series, from_pandas=True)
    with contextlib.suppress(*refusals):  # a sparse column
        return pa.array(series.to_numpy(), from_pandas=True)
    mixed = " of mixed values; convert it with astype(float)" if series.dtype == object else ""
    return f"not numeric: {series.dtype}{mixed}"


def _named(label: str, names: list[str], columns: list[Any], rows: int) -> MemoryTable:
    counts = Counter(names)
    types = {
        name: TWICE if counts[name] > 1 else column if isinstance(column, str) else column.type
        for name, column in zip(names, columns, strict=True)
    }
    return MemoryTable(label, dict(zip(names, columns, strict=True)), types, rows)
