"""The tests of pairs of columns that are too large to be read whole: a few passes over the rows of both tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Self

from .accumulator import KsAccumulator
from .frame_columns import Measure, Values, why_other_kind
from .frame_result import Alternative
from .frame_tables import Source, no_rows
from .frame_testing import CONSTANT, Findings, cannot_hold, why_not

_MOST_PASSES = 16


def find_in_passes(findings: Findings, measures: Mapping[str, Measure], reference: Source, current: Source) -> None:
    """Test columns in pieces. The results are those of :meth:`Findings.in_memory`.

    Parameters
    ----------
    findings : Findings
        Where the results go.
    measures : mapping of str to Measure
        The columns, which are read together. Each takes a few megabytes.
    reference, current : Source
        The tables. They are read once for each pass.
    """
    columns = {name: PassColumn(measure, findings.alternative) for name, measure in measures.items()}
    while columns:
        for side, source in enumerate((reference, current)):
            if columns:
                source.count(columns, side)
            if source.rows is None and any(_rows(column, side) == 0 for column in columns.values()):
                raise no_rows(source.label)
            for name in [name for name, column in columns.items() if column.reason is not None]:
                findings.skipped[name] = str(columns.pop(name).reason)
        columns = {name: column for name, column in columns.items() if _goes_on(column, findings, name)}


class PassColumn:
    """What the passes have seen of one column so far. It can be pickled, and merged with what others have seen.

    Attributes
    ----------
    reason : str or None
        Why the column cannot be tested.
    """

    def __init__(self, measure: Measure, alternative: Alternative) -> None:
        self.measure = measure
        self.seen = KsAccumulator(alternative)
        self.missing = [0, 0]
        self.firsts: list[Any] = [None, None]  # the first value of each sample
        self.constant = True
        self.reason: str | None = None

    def empty(self) -> PassColumn:
        """Return a column of the same pass that has seen nothing."""
        other = PassColumn.__new__(PassColumn)
        other.measure, other.seen = self.measure, self.seen.empty()
        other.missing, other.firsts, other.constant, other.reason = [0, 0], [None, None], True, None
        return other

    def add(self, side: int, piece: Any) -> None:
        """Count the values of a piece of one of the two columns. After a failure, nothing is counted."""
        if self.reason is None and not isinstance(piece, str) and piece.null_count == len(piece):
            # Its type says nothing, and must not change that of a location.
            self.missing[side] += len(piece) if self.seen.passes == 1 else 0
            return
        if self.reason is None:
            self.reason = piece if isinstance(piece, str) else why_other_kind(piece.type, self.measure)
        if self.reason is not None:
            return
        try:
            values, missing = self.measure.numbers(piece)
        except (ArithmeticError, ValueError) as error:
            self.reason = cannot_hold(self.measure, error)
            return
        self.seen.update(**{"xy"[side]: values})
        if self.seen.passes == 1:
            self.missing[side] += missing
            self._look(side, values)

    def merge(self, other: Self) -> None:
        """Add what another column of the same pass has seen."""
        self.reason = self.reason or other.reason
        self.seen.merge(other.seen)
        for side in (0, 1):
            self.missing[side] += other.missing[side]
            if self.firsts[side] is None:
                self.firsts[side] = other.firsts[side]
        known = [first.item() for first in (*self.firsts, *other.firsts) if first is not None]
        self.constant = self.constant and other.constant and all(value == known[0] for value in known)

    def _look(self, side: int, values: Values) -> None:
        """Notice whether all values so far are the same."""
        if not self.constant or not values.size:
            return
        if self.firsts[side] is None:
            self.firsts[side] = values[0]
        other = self.firsts[1 - side]
        # Integers and floats of Python are compared exactly, and those of numpy in float64.
        alike = other is None or values[0].item() == other.item()
        self.constant = alike and bool((values == self.firsts[side]).all())


def _rows(column: PassColumn, side: int) -> int | None:
    """How many rows the first pass has seen of a column, or None if it is not known."""
    if column.reason is not None or column.seen.passes > 1:
        return None
    return column.seen.sizes[side] + column.missing[side]


def _goes_on(column: PassColumn, findings: Findings, name: str) -> bool:
    """Tell whether there is another pass, which ``column`` is made ready for. If there is none, the result is kept."""
    n, m = column.seen.sizes
    reason = why_not(n, m) or (CONSTANT if column.constant else None)
    if reason is not None:
        findings.skipped[name] = reason
        return False
    if (following := column.seen.refined()) is None:
        found = column.seen.result(findings.method)
        numbers = (found.statistic, found.statistic_location, found.statistic_sign, found.pvalue, found.log_pvalue)
        findings.add(name, column.measure, (n, m, column.missing[0], column.missing[1]), numbers)
        return False
    if column.seen.passes == _MOST_PASSES:
        low, high = column.seen.bounds()
        findings.skipped[name] = (
            f"after {_MOST_PASSES} passes, D is known to be between {low:.9g} and {high:.9g}; "
            "test this column in memory"
        )
        return False
    column.seen = following
    return True
