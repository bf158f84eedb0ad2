"""What became of each row between two tables, in memory or on disk, in one pass."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast, get_args

from kslottery_fast.base.arguments import check_choice, check_tokenizer
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows, Correction, Method, ResolvedMethod, TableName, TicketTable
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.checkpoints.tensors import BLOCK_BYTES, check_reading, row_blocks
from kslottery_fast.ks.corrections import check_correction
from kslottery_fast.ks.decision import select_rows
from kslottery_fast.ks.significance import check_alpha, resolve_table_method
from kslottery_fast.ks.tables import table_pair

from .comparison_result import STATUSES, CountedTables, TableComparison, status_codes
from .model_tables import table_of_both
from .row_differences import Blocks, measure_rows, memory_blocks
from .stored import _matching_tables
from .tables import Table, numbers_of_both, shared_rows
from .texts import check_vocabulary

__all__ = ["STATUSES", "TableComparison", "compare_checkpoints", "compare_tables"]


def compare_tables(
    before: Table,
    after: Table,
    *,
    alpha: float = 0.05,
    method: Method = "auto",
    correction: Correction | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
    rows: ComparedRows = "all",
) -> TableComparison:
    """Tell what became of each row between two tables: identical, moved or significant, and how far it moved.

    :func:`kslottery_fast.ks_select` returns the significant rows alone. It is faster, because it needs no exact D of
    the others.

    Parameters
    ----------
    before, after : Tensor, array, nn.Embedding or model
        The original and the tuned table [V, d], as for :func:`kslottery_fast.ks_select`.
    alpha, method, correction
        The test of each row, as for :func:`kslottery_fast.ks_select`.
    tokenizer : transformers tokenizer, optional
        The comparison then keeps the text and the class of each token. If the tokenizer fails, a warning says so, and
        the comparison has no texts.
    table : {"input", "output"}
        Which table of a model is compared, as for :func:`kslottery_fast.ks_select`.
    rows : {"all", "shared"}
        With "shared", tables of different heights are compared too. The rows that only one of them has are "new" or
        "gone".

    Returns
    -------
    TableComparison

    Raises
    ------
    InputError
        The shapes differ or are not [V, d]. A table has NaN or Inf; the message names the table and its first rows. A
        model has no output head. An option is unknown. The tokenizer belongs to another model.
    TypeError
        A table does not hold floats, or an argument has a wrong type.

    Warns
    -----
    RuntimeWarning
        The tokenizer failed.

    Examples
    --------
    >>> import torch
    >>> before = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> after = before.clone()
    >>> after[[5, 17]] += 3.0
    >>> found = compare_tables(before, after)
    >>> found.rows("significant").tolist(), found.numbers["identical"]
    ([5, 17], 998)
    """
    test = _Test(alpha, method, correction)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    check_choice(table, get_args(TableName), "table")
    names = ("before", "after")
    check_choice(rows, get_args(ComparedRows), "rows")
    *tables, sizes = shared_rows(*numbers_of_both(before, after, names, table, rows), names, rows)
    first, second = table_pair(tables[0], tables[1], names)
    blocks = memory_blocks(first, second, BLOCK_BYTES)
    heights = sizes or (len(first), len(second))
    return _compared(blocks, names, heights, first.shape[1], test, table_of_both(before, after, table), tokenizer)


def compare_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    tensor: str | tuple[str, str] = "auto",
    alpha: float = 0.05,
    method: Method = "auto",
    correction: Correction | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
    rows: ComparedRows = "all",
    name_map: Mapping[str, str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> TableComparison:
    """Tell what became of each row between two checkpoints: :func:`compare_tables` on tables of any size.

    Parameters
    ----------
    before, after : str or path
        The original and the tuned model, as for :func:`kslottery_fast.ks_select_checkpoints`.
    tensor, table, rows, name_map, block_bytes, progress
        As for :func:`kslottery_fast.ks_select_checkpoints`.
    alpha, method, correction, tokenizer
        As for :func:`compare_tables`.

    Returns
    -------
    TableComparison

    Raises
    ------
    InputError, TypeError
        As :func:`kslottery_fast.ks_select_checkpoints`.

    Warns
    -----
    RuntimeWarning
        The tokenizer failed, or the two tables have different names.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> tuned = table.clone()
    >>> tuned[[5, 17]] += 3.0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"model.embed_tokens.weight": table}, f"{folder}/before.safetensors")
    ...     save_file({"model.embed_tokens.weight": tuned}, f"{folder}/after.safetensors")
    ...     found = compare_checkpoints(f"{folder}/before.safetensors", f"{folder}/after.safetensors")
    >>> found
    TableComparison(998 identical, 2 significant)
    """
    test = _Test(alpha, method, correction)
    check_reading(block_bytes, progress)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    first, second, found = _matching_tables(before, after, tensor, table, rows, name_map)
    blocks = _with_progress(row_blocks(first, second, block_bytes), min(first.height, second.height), progress)
    names, heights = (str(first), str(second)), (first.height, second.height)
    return _compared(blocks, names, heights, first.width, test, found, tokenizer)


@dataclass(frozen=True)
class _Test:
    """The options of the test, which are checked before anything is read."""

    alpha: float
    method: Method
    correction: Correction | None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_correction(self.correction)
        resolve_table_method(2, self.method)


def _compared(
    blocks: Blocks,
    names: tuple[str, str],
    heights: tuple[int, int],
    dimension: int,
    test: _Test,
    table: TicketTable,
    tokenizer: Tokenizer | None,
) -> TableComparison:
    resolve_table_method(dimension, test.method)  # refuses a method that rows of one number do not have
    if tokenizer is not None:
        check_vocabulary(tokenizer, max(heights))
    measured = measure_rows(blocks, min(heights), names)
    tables = CountedTables(measured.counts, dimension, names, measured.identical)
    selected = select_rows(tables, test.alpha, test.method, test.correction, top_k=None)
    found = TableComparison(
        before=names[0],
        after=names[1],
        rows_before=heights[0],
        rows_after=heights[1],
        dimension=dimension,
        table=table,
        alpha=float(test.alpha),
        method=cast(ResolvedMethod, selected.method),
        correction=test.correction,
        threshold_count=selected.threshold_count,
        counts=measured.counts,
        l2=measured.l2,
        relative_l2=measured.relative_l2,
        cosine=measured.cosine,
        status_codes=status_codes(measured, selected.token_ids, *heights),
    )
    if tokenizer is None:
        return found
    try:
        return found.with_tokens(tokenizer)
    except InputError as error:  # the pass over the tables may have taken minutes
        warn_caller(f"texts and classes of the tokens are left out: {error}")
        return found


def _with_progress(blocks: Blocks, V: int, progress: Callable[[int, int], None] | None) -> Blocks:
    """Report each block when it has been measured."""
    for start, x, y in blocks:
        yield start, x, y
        if progress is not None:
            progress(start + len(x), V)
