"""``ks_frames``: the two-sample KS test of every numeric column of two tables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, cast

import torch

from kslottery_fast.base.arguments import check_choice, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab
from kslottery_fast.base.options import Correction

from .corrections import adjust, check_correction
from .dask_stream import is_dask
from .frame_columns import Measure, common_measure
from .frame_dask import DaskTable, dask_table
from .frame_files import open_file
from .frame_passes import find_in_passes
from .frame_result import Alternative, ColumnTest, KsFrameResult, KsMethod
from .frame_tables import ReadableSource, Source, Table, memory_table, no_rows
from .frame_testing import Finding, Findings, groups, too_large
from .significance import check_alpha


def ks_frames(
    reference: Table,
    current: Table,
    columns: Sequence[str] | None = None,
    alpha: float = 0.05,
    correction: Correction | None = None,
    method: KsMethod = "auto",
    *,
    alternative: Alternative = "two-sided",
    progress: Callable[[int, int], None] | None = None,
) -> KsFrameResult:
    """Two-sample Kolmogorov-Smirnov test of every numeric column of two tables.

    Each test is that of :func:`ks_2samp` on the values of a column that are not missing. A column that cannot be tested
    is named in :attr:`KsFrameResult.skipped` with the reason, and the others are tested.

    Parameters
    ----------
    reference, current : table, str or path
        DataFrames of pandas, polars or Dask, tables of pyarrow, any other table that hands over Arrow data, or paths: a
        parquet, feather or CSV file, or a folder of parquet files. The two may be of different sorts and lengths. Files
        and Dask dataframes may be larger than memory.
    columns : sequence of str, optional
        The columns to test. By default all columns that both tables have.
    alpha : float
        A column drifted if its p-value, after correction, is below alpha.
    correction : {None, "bonferroni", "bh"}
        The correction for the number of columns that are tested, as :func:`kslottery_fast.ks.adjust` explains.
    method : {"auto", "exact", "asymp"}
        How p-values are computed, as in :func:`ks_2samp`.
    alternative : {"two-sided", "less", "greater"}
        As in :func:`ks_2samp`, with the reference as ``data1``.
    progress : callable(done, total), optional
        Called with the number of columns that are done, and of all.

    Returns
    -------
    KsFrameResult
        One test for each column, in the order of the reference.

    Raises
    ------
    InputError
        Pyarrow is not installed, a file that cannot be read, a table without rows, a name in ``columns`` that a table
        lacks, tables without a common column, or an unknown option.
    TypeError
        An argument of a wrong type, or a lazy table.

    Warns
    -----
    RuntimeWarning
        The exact p-value cannot be computed.

    Notes
    -----
    Columns are compared if both are of the same kind: numbers (integers and floats), booleans, decimals, dates,
    timestamps (both with a time zone, or both without), times or durations. Null and NaN are missing values, and
    infinities are values. All values are compared exactly. Decimals and times are compared as integers in the finer of
    their two units, and the unit of a timestamp may differ. Texts and categories are not numeric. An object column of
    pandas is tested if all its values are numbers of one type.

    A column that holds one value, the same in both tables, is left out. If the two values differ, D is 1.

    Columns of equal sizes are tested in one batch. Columns of files are read in groups of up to 256 MiB. If a single
    column of both tables takes more than that, and more than an eighth of the free memory, the files are read in
    pieces, in a few passes, as :func:`kslottery_fast.ks_stream` does. The results are the same. The partitions of a
    Dask dataframe are always counted in passes, by its workers, up to 16 columns at a time.

    Examples
    --------
    >>> import pyarrow as pa
    >>> reference = pa.table({"age": range(20, 60), "income": range(40), "city": ["Rome"] * 40})
    >>> current = pa.table({"age": range(20, 60), "income": range(25, 65), "city": ["Oslo"] * 40})
    >>> result = ks_frames(reference, current, correction="bonferroni")
    >>> result.drifted, result.skipped
    (['income'], {'city': 'not numeric: text'})
    >>> result["income"].statistic, result["income"].statistic_location
    (0.625, 24)
    """
    alpha = check_alpha(alpha)
    check_correction(correction)
    check_choice(method, ("auto", "exact", "asymp"), "method")
    check_choice(alternative, ("two-sided", "less", "greater"), "alternative")
    # Models and tokenizers can be called too, but not with two numbers. Tokenizers have a length, functions have none.
    if progress is not None and (not callable(progress) or isinstance(progress, (torch.nn.Module, Sized))):
        raise TypeError(f"progress is {shown(progress)}: expected a function progress(done, total), or None")
    chosen = _check_columns(columns)
    tables = _open(reference, "reference"), _open(current, "current")
    findings = Findings(method, alternative)
    measures = _measures(*tables, chosen, findings.skipped)
    done, passes = 0, too_large(*tables)
    for group in groups(measures, *tables):
        if passes:
            find_in_passes(findings, group, *tables)
        else:
            # Whatever cannot be read whole, such as a Dask dataframe, is too large.
            findings.in_memory(group, *(cast("ReadableSource", table).read(list(group)) for table in tables))
        done += len(group)
        if progress is not None:
            progress(done, len(measures))
    order = [name for name in measures if name in findings.tested]
    adjusted = adjust([findings.tested[name].pvalue for name in order], correction).tolist()
    tests = tuple(_line(name, findings.tested[name], p, alpha) for name, p in zip(order, adjusted, strict=True))
    names = dict.fromkeys([*tables[0].types, *tables[1].types])
    skipped = {name: findings.skipped[name] for name in names if name in findings.skipped}
    return KsFrameResult(tests, skipped, alpha, correction, method, alternative)


def _check_columns(columns: Any) -> list[str] | None:
    if columns is None:
        return None
    if isinstance(columns, (str, bytes, Mapping)) or not hasattr(columns, "__iter__") or hasattr(columns, "parameters"):
        raise TypeError(f"columns is {shown(columns)}: expected a list of names, or None for all columns")
    names = list(columns)
    if not names:
        raise InputError("columns is empty: expected at least one name, or None for all columns")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"columns holds {shown(name)}: expected names, as str")
    return list(dict.fromkeys(names))


def _open(table: Any, name: str) -> Source:
    require_lab("ks_frames", "pyarrow", extra="frames")
    source: Source
    if isinstance(table, (str, os.PathLike)):
        source = open_file(table, name)
    else:
        source = dask_table(table, name) if is_dask(table) else memory_table(table, name)
    if source.rows == 0:
        raise no_rows(source.label)
    return source


def _measures(
    reference: Source, current: Source, chosen: list[str] | None, skipped: dict[str, str]
) -> dict[str, Measure]:
    """Return how each column is tested, in the order of the reference. The others are added to ``skipped``."""
    if chosen is None:
        chosen = list(dict.fromkeys([*reference.types, *current.types]))
        if not set(reference.types) & set(current.types):
            raise InputError(
                f"{reference.label} and {current.label} have no column in common: the first has "
                f"{_some(reference.types)}, the second {_some(current.types)}"
            )
    else:
        for source in (reference, current):
            for name in chosen:
                if name not in source.types:
                    raise InputError(f"columns names {name!r}, which {source.label} lacks{_nearest(name, source)}")
    both = [name for name in chosen if name in reference.types and name in current.types]
    for source in (reference, current):
        if isinstance(source, DaskTable):
            source.settle(both)
    found = {}
    for name in chosen:
        measure = _measure(reference.types.get(name), current.types.get(name))
        if isinstance(measure, str):
            skipped[name] = measure
        else:
            found[name] = measure
    return found


def _measure(first: Any, second: Any) -> Measure | str:
    if first is None or second is None:
        return f"only in {'current' if first is None else 'reference'}"
    for known in (first, second):
        if isinstance(known, str):
            return known
    return common_measure(first, second)


def _nearest(name: str, source: Source) -> str:
    near = difflib.get_close_matches(name, source.types, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {_some(source.types)}"


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


def _line(name: str, found: Finding, adjusted: float, alpha: float) -> ColumnTest:
    return ColumnTest(
        column=name,
        n=found.n,
        m=found.m,
        missing_reference=found.missing[0],
        missing_current=found.missing[1],
        statistic=found.statistic,
        statistic_location=found.location,
        statistic_sign=found.sign,
        pvalue=found.pvalue,
        log_pvalue=found.log_pvalue,
        adjusted_pvalue=adjusted,
        drifted=adjusted < alpha,
    )
