"""What a test of two tables found: a line for each column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from kslottery_fast.base.options import Correction

from .frame_columns import Location
from .significance import pvalue_of_log

if TYPE_CHECKING:
    import pandas
    import polars

FORMAT = "kslottery-drift/1"
_SHOWN = 20  # lines of a repr

Alternative: TypeAlias = Literal["two-sided", "less", "greater"]
KsMethod: TypeAlias = Literal["auto", "exact", "asymp"]


@dataclass(frozen=True)
class ColumnTest:
    """The test of one column.

    Attributes
    ----------
    column : str
        The name.
    n, m : int
        The number of values in ``reference`` and ``current``, without missing ones.
    missing_reference, missing_current : int
        The number of missing values: nulls and NaN.
    statistic : float
        The KS statistic D, D+ or D-.
    statistic_location : float, int, bool or str
        The value at which the two distribution functions are farthest apart. Dates and times are ISO 8601, durations
        are seconds.
    statistic_sign : int
        +1 if more of ``reference`` lies at or below that value, and -1 if more of ``current`` does.
    pvalue, log_pvalue : float
        The p-value and its natural logarithm, which is right even where the p-value underflows to 0.
    adjusted_pvalue : float
        The p-value corrected for the number of columns. Without a correction it is ``pvalue``.
    drifted : bool
        Whether ``adjusted_pvalue`` is below alpha.
    """

    column: str
    n: int
    m: int
    missing_reference: int
    missing_current: int
    statistic: float
    statistic_location: Location
    statistic_sign: int
    pvalue: float
    log_pvalue: float
    adjusted_pvalue: float
    drifted: bool


@dataclass(frozen=True, repr=False)
class KsFrameResult(Sequence[ColumnTest]):
    """What :func:`ks_frames` returns: a sequence of :class:`ColumnTest`, in the order of the columns.

    Attributes
    ----------
    tests : tuple of ColumnTest
        One for each column that was tested.
    skipped : dict of str to str
        The columns that were left out, with the reason.
    alpha : float
        The significance level.
    correction : {None, "bonferroni", "bh"}
        The correction for the number of columns.
    method, alternative : str
        How p-values were computed, and against which alternative.

    Examples
    --------
    >>> import pandas, kslottery_fast
    >>> reference = pandas.DataFrame({"age": range(20, 60), "city": "Rome"})
    >>> result = kslottery_fast.ks_frames(reference, reference.assign(age=reference["age"] + 20))
    >>> result
    1 of 1 column drifted (p < 0.05)
    column   n   m  missing       D  location  sign       p  drifted
    age     40  40     0, 0  0.5000        39     +  6.6e-5  yes
    not tested: city (not numeric: text)
    >>> result["age"].statistic, result.drifted
    (0.5, ['age'])
    """

    tests: tuple[ColumnTest, ...]
    skipped: dict[str, str]
    alpha: float
    correction: Correction | None
    method: KsMethod
    alternative: Alternative

    @property
    def drifted(self) -> list[str]:
        """The names of the columns that drifted."""
        return [test.column for test in self.tests if test.drifted]

    def __len__(self) -> int:
        return len(self.tests)

    def __iter__(self) -> Iterator[ColumnTest]:
        return iter(self.tests)

    def __getitem__(self, key: Any) -> Any:
        """Return a test by the name of its column or by its position, or a tuple of tests by a slice."""
        if not isinstance(key, str):
            return self.tests[key]
        for test in self.tests:
            if test.column == key:
                return test
        raise KeyError(f"{key!r}: {self.skipped.get(key, 'no such column')}")

    def __repr__(self) -> str:
        return "\n".join([self.summary(), *_aligned(self.lines(_SHOWN)), *self.notes(_SHOWN)])

    def summary(self) -> str:
        """Return one sentence: how many columns drifted."""
        columns = "column" if len(self) == 1 else "columns"
        what = "p" if self.correction is None else f"p adjusted by {self.correction}"
        return f"{len(self.drifted):,} of {len(self):,} {columns} drifted ({what} < {self.alpha:g})"

    def lines(self, limit: int) -> list[list[str]]:
        """Return the cells of a table: a heading, and the columns with the smallest p-values first.

        Parameters
        ----------
        limit : int
            The number of columns.

        Returns
        -------
        list of list of str
        """
        heading = ["column", "n", "m", "missing", "D", "location", "sign", "p", "drifted"]
        if self.correction is not None:
            heading.insert(-1, "adjusted p")
        table = [heading]
        for test in sorted(self.tests, key=lambda test: test.log_pvalue)[:limit]:
            cells = [
                test.column,
                f"{test.n:,}",
                f"{test.m:,}",
                f"{test.missing_reference:,}, {test.missing_current:,}",
                f"{test.statistic:.4f}",
                f"{test.statistic_location:.6g}"
                if isinstance(test.statistic_location, float)
                else str(test.statistic_location),
                "+" if test.statistic_sign > 0 else "-",
                pvalue_of_log(test.log_pvalue),
                "yes" if test.drifted else "no",
            ]
            if self.correction is not None:
                adjusted = test.adjusted_pvalue
                cells.insert(-1, pvalue_of_log(math.log(adjusted)) if adjusted > 0 else "0")
            table.append(cells)
        return table if len(table) > 1 else []

    def notes(self, limit: int) -> list[str]:
        """Return lines about what the table of :meth:`lines` lacks.

        Parameters
        ----------
        limit : int
            The number of columns in the table, and of those named as not tested.

        Returns
        -------
        list of str
        """
        notes = [f"... and {len(self) - limit:,} more"] if len(self) > limit else []
        if self.skipped:
            named = [f"{name} ({reason})" for name, reason in list(self.skipped.items())[:limit]]
            more = f" and {len(self.skipped) - limit:,} more" if len(self.skipped) > limit else ""
            notes.append(f"not tested: {', '.join(named)}{more}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as a dict, which JSON can hold, of the format ``kslottery-drift/1``.

        An infinite location is the text "inf" or "-inf", and ``log_pvalue`` of -inf is None.
        """
        return {
            "format": FORMAT,
            "alpha": self.alpha,
            "correction": self.correction,
            "method": self.method,
            "alternative": self.alternative,
            "drifted": self.drifted,
            "columns": [_finite(asdict(test)) for test in self.tests],
            "skipped": dict(self.skipped),
        }

    def to_csv(self) -> str:
        """Return the tests as CSV: a line for each column that was tested, a column for each attribute."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(ColumnTest.__annotations__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(test) for test in self.tests)
        return buffer.getvalue()

    def to_pandas(self) -> pandas.DataFrame:
        """Return the tests as a DataFrame of pandas: a row for each column, a column for each attribute.

        Raises
        ------
        InputError
            Pandas is not installed.
        """
        _require("to_pandas()", "pandas")
        import pandas as pd

        return pd.DataFrame(self._attributes())

    def to_polars(self) -> polars.DataFrame:
        """Return the tests as a DataFrame of polars: a row for each column, a column for each attribute.

        Raises
        ------
        InputError
            Polars is not installed.
        """
        _require("to_polars()", "polars")
        import polars as pl

        return pl.DataFrame(self._attributes())

    def _attributes(self) -> dict[str, list[Any]]:
        """Return the attributes as columns of one type each. Locations of several types become floats or texts."""
        found: dict[str, list[Any]] = {
            name: [getattr(test, name) for test in self.tests] for name in ColumnTest.__annotations__
        }
        types = {type(value) for value in found["statistic_location"]}
        if len(types) > 1:
            common = float if types == {int, float} else str
            found["statistic_location"] = [common(value) for value in found["statistic_location"]]
        return found


def _require(what: str, package: str) -> None:
    from importlib.util import find_spec

    from kslottery_fast.base.errors import InputError

    if find_spec(package) is None:
        raise InputError(f"{what} needs {package}; pip install {package}, or use to_dict()")


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    location = entry["statistic_location"]
    if isinstance(location, float) and not math.isfinite(location):
        entry["statistic_location"] = str(location)
    if not math.isfinite(entry["log_pvalue"]):
        entry["log_pvalue"] = None
    return entry


def _aligned(table: list[list[str]]) -> list[str]:
    """Return the rows of a table as lines of text, with texts at the left and numbers at the right."""
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for row in table:
        first, *numbers, last = (
            cell.ljust(width) if at in (0, len(row) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *numbers, last]).rstrip())
    return lines
