"""The tests of pairs of columns: in batches if they fit into memory, in passes over the rows if they do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kslottery_fast.base.memory import available_memory_bytes

from .frame_columns import Measure, Values, beyond_float64, same_constant
from .frame_result import Alternative, KsMethod
from .frame_tables import Source
from .twosample import ks_2samp

_GROUP_BYTES = 1 << 28  # of the columns that are read from a file together, both tables
_BATCH_VALUES = 1 << 22  # that are copied into one batch of ks_2samp, both samples
_STREAMED = 16  # columns that are tested in passes together, which take about 7 MB each
_SHARE = 8  # of the memory that is free: reading, joining and sorting a column take a few times its size
_WIDTH = 8  # bytes of a value, at most


class Finding(NamedTuple):
    """The test of one column, before p-values are corrected."""

    n: int
    m: int
    missing: tuple[int, int]
    statistic: float
    location: Any
    sign: int
    pvalue: float
    log_pvalue: float


@dataclass
class Findings:
    """What was found so far, by the options of the test."""

    method: KsMethod
    alternative: Alternative
    tested: dict[str, Finding] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def in_memory(
        self, measures: Mapping[str, Measure], reference: Mapping[str, Any], current: Mapping[str, Any]
    ) -> None:
        """Test whole columns. Those of equal sizes and types are tested together."""
        pairs: dict[str, _Pair] = {}
        for name, measure in measures.items():
            try:
                x, y = _Sample(*measure.numbers(reference[name])), _Sample(*measure.numbers(current[name]))
            except (ArithmeticError, ValueError) as error:
                self.skipped[name] = cannot_hold(measure, error)
                continue
            reason = why_not(len(x.values), len(y.values)) or (CONSTANT if same_constant(x.values, y.values) else None)
            if reason is None:
                pairs[name] = _Pair(x, y, measure)
            else:
                self.skipped[name] = reason
        for names in _batches(pairs):
            self._test(names, pairs)

    def _test(self, names: list[str], pairs: Mapping[str, _Pair]) -> None:
        chosen = [pairs[name] for name in names]
        if len(names) == 1:
            x, y = chosen[0].x.values, chosen[0].y.values  # scalars keep the type of the location
        else:
            x, y = np.stack([pair.x.values for pair in chosen]), np.stack([pair.y.values for pair in chosen])
        result = ks_2samp(x, y, self.alternative, self.method, axis=-1)
        numbers = [result.statistic, result.statistic_location, result.statistic_sign, result.pvalue, result.log_pvalue]
        rows = zip(*map(np.atleast_1d, numbers), strict=True)
        own = np.result_type(x.dtype, y.dtype).type  # the locations of several rows are float64
        for name, pair, (statistic, location, sign, p, log_p) in zip(names, chosen, rows, strict=True):
            self.add(name, pair.measure, pair.sizes, (statistic, own(location), sign, p, log_p))

    def add(self, name: str, measure: Measure, sizes: tuple[int, int, int, int], numbers: tuple[Any, ...]) -> None:
        """Keep what a test gave. A p-value of NaN is none."""
        statistic, location, sign, p, log_p = numbers
        if np.isnan(p):
            self.skipped[name] = f"too few values for method={self.method!r}"
            return
        n, m, missing_x, missing_y = sizes
        self.tested[name] = Finding(
            n, m, (missing_x, missing_y), float(statistic), measure.value(location), int(sign), float(p), float(log_p)
        )


class _Sample(NamedTuple):
    values: Values
    missing: int


class _Pair(NamedTuple):
    x: _Sample
    y: _Sample
    measure: Measure

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return len(self.x.values), len(self.y.values), self.x.missing, self.y.missing


CONSTANT = "constant, with the same value in both tables"


def cannot_hold(measure: Measure, error: Exception) -> str:
    """Return the reason if a value does not fit into the type that both columns get."""
    return f"values that {measure.cast} cannot hold ({str(error).partition(chr(10))[0]})"


def why_not(n: int, m: int) -> str | None:
    """Return the reason why samples of these sizes cannot be tested, or None."""
    if n and m:
        return None
    where = "both tables" if n == m == 0 else "reference" if n == 0 else "current"
    return f"all values are missing in {where}"


def too_large(reference: Source, current: Source) -> bool:
    """Tell whether a column of both tables is too large to be read whole. That of a Dask dataframe may always be."""
    if reference.rows is None or current.rows is None:
        return True
    if not (reference.on_disk or current.on_disk):
        return False
    size = _WIDTH * (reference.rows + current.rows)
    return size > _GROUP_BYTES and size > available_memory_bytes() // _SHARE


def groups(measures: Mapping[str, Measure], reference: Source, current: Source) -> Iterator[dict[str, Measure]]:
    """Divide columns into groups that are read together."""
    most = _STREAMED
    if not too_large(reference, current):
        most = max(1, _GROUP_BYTES // (_WIDTH * ((reference.rows or 0) + (current.rows or 0))))
    names = list(measures)
    for start in range(0, len(names), most):
        yield {name: measures[name] for name in names[start : start + most]}


def _batches(pairs: Mapping[str, _Pair]) -> Iterator[list[str]]:
    """Group pairs by sizes and types. Integers beyond float64 are tested alone, which keeps their locations exact."""
    together: dict[Any, list[str]] = defaultdict(list)
    for name, (x, y, _) in pairs.items():
        alone = beyond_float64(x.values) or beyond_float64(y.values)
        together[len(x.values), len(y.values), x.values.dtype, y.values.dtype, name if alone else None].append(name)
    for (n, m, *_), names in together.items():
        most = max(1, _BATCH_VALUES // (n + m))
        for start in range(0, len(names), most):
            yield names[start : start + most]
