"""The tests of pairs of columns that are too large to be read whole: a few passes over the rows of both files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .accumulator import KsAccumulator
from .frame_columns import Measure, Values
from .frame_tables import Source
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
    columns = {name: _Column(measure, findings) for name, measure in measures.items()}
    while columns:
        for side, source in enumerate((reference, current)):
            for batch in source.batches(list(columns)):
                for name, piece in batch.items():
                    if name not in findings.skipped:
                        _count(columns[name], findings, name, side, piece)
        columns = {
            name: column
            for name, column in columns.items()
            if name not in findings.skipped and column.goes_on(findings, name)
        }


def _count(column: _Column, findings: Findings, name: str, side: int, piece: Any) -> None:
    try:
        column.add(side, piece)
    except (ArithmeticError, ValueError) as error:
        findings.skipped[name] = cannot_hold(column.measure, error)


class _Column:
    """What the passes have seen of one column so far."""

    def __init__(self, measure: Measure, findings: Findings) -> None:
        self.measure = measure
        self.seen = KsAccumulator(findings.alternative)
        self.missing = [0, 0]
        self.firsts: list[Any] = [None, None]  # the first value of each sample
        self.constant = True

    def add(self, side: int, piece: Any) -> None:
        values, missing = self.measure.numbers(piece)
        self.seen.update(**{"xy"[side]: values})
        if self.seen.passes == 1:
            self.missing[side] += missing
            self._look(side, values)

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

    def goes_on(self, findings: Findings, name: str) -> bool:
        """Tell whether there is another pass. If there is none, the result is kept."""
        n, m = self.seen.sizes
        reason = why_not(n, m) or (CONSTANT if self.constant else None)
        if reason is not None:
            findings.skipped[name] = reason
            return False
        if (following := self.seen.refined()) is None:
            found = self.seen.result(findings.method)
            numbers = (found.statistic, found.statistic_location, found.statistic_sign, found.pvalue, found.log_pvalue)
            findings.add(name, self.measure, (n, m, self.missing[0], self.missing[1]), numbers)
            return False
        if self.seen.passes == _MOST_PASSES:
            low, high = self.seen.bounds()
            findings.skipped[name] = (
                f"after {_MOST_PASSES} passes, D is known to be between {low:.9g} and {high:.9g}; "
                "test this column in memory"
            )
            return False
        self.seen = following
        return True
