"""Selecting tickets: the rows of a table that fine-tuning shifted significantly."""

from typing import get_args

from kslottery_fast.base.arguments import check_choice, check_tokenizer
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.options import ComparedRows, Correction, Method, TableName, TicketTable
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.ks.decision import Selection, Tables, select_in_memory, select_rows

from .model_tables import table_of_both
from .tables import Table, numbers_of_both, shared_rows
from .texts import check_vocabulary
from .tickets import Tickets


def ks_select(
    emb_before: Table,
    emb_after: Table,
    alpha: float | None = 0.05,
    *,
    method: Method = "auto",
    correction: Correction | None = None,
    top_k: int | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
    rows: ComparedRows = "all",
) -> Tickets:
    """Select the tickets: the rows whose values fine-tuning shifted significantly.

    Row by row, the d numbers before and the d numbers after are compared as two samples by a two-sided KS test. One
    pass over the tables gives the exact statistics. Without ``top_k`` and "bh" only those that reach the threshold are
    computed, which saves most of the work for all other rows.

    Parameters
    ----------
    emb_before, emb_after : Tensor, array, nn.Embedding or model
        The original and the tuned table [V, d]: float64, float32, float16 or bfloat16, with any strides. Of a model, it
        is the table that ``table`` names. Attached rows in use are read as part of it, in a copy of the table.
    alpha : float, optional
        Significance level in (0, 1). The paper uses 0.05 for each row on its own. It may be None with ``top_k``.
    method : {"auto", "exact", "asymp", "paper"}
        How p is computed. See :func:`kslottery_fast.ks.significance.pvalues`. "paper" selects D > tau(alpha).
    correction : {None, "bonferroni", "bh"}
        The correction for V tests. See :func:`kslottery_fast.ks.significance.adjust`. All V rows count, also those that
        never moved. It cannot be combined with ``top_k``, where it would change nothing.
    top_k : int, optional
        Take the k rows with the largest D instead, whatever alpha says. Of equal rows those with the lower ids are
        taken. Rows with D = 0 are never tickets. The number of tickets at a fixed alpha depends on the learning rate
        and the number of steps; this one does not.
    tokenizer : transformers tokenizer, optional
        The tickets then keep the text of each token, see :meth:`Tickets.with_texts`.
    table : {"input", "output"}
        Which table of a model is compared: the input embedding, or the weight of the output head. The tickets remember
        it. If both models are tied, "output" is the same table as "input", and the tickets say "shared". For tensors
        and arrays it says which table they are.
    rows : {"all", "shared"}
        What happens to tables of different heights, such as after tokens were added. With "all" they are refused. With
        "shared" the first rows are compared, those that both have, and only they count as tests. The tickets remember
        both heights.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        The shapes differ (with ``rows="shared"``, the lengths of the rows) or are not [V, d]. A table has NaN or Inf;
        the message names the table and its first rows. An array is masked. A model has no output head. An option is
        unknown. Both ``correction`` and ``top_k`` are given. The tokenizer belongs to another model.
    TypeError
        A table does not hold floats, or an argument has a wrong type.

    Warns
    -----
    RuntimeWarning
        No row is selected, or fewer than ``top_k``. The message says why and what to do.

    Examples
    --------
    >>> import torch
    >>> before = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> after = before.clone()
    >>> after[[5, 17]] += 3.0
    >>> tickets = ks_select(before, after)
    >>> sorted(tickets), tickets.method
    ([5, 17], 'exact')
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    check_choice(table, get_args(TableName), "table")
    names = ("emb_before", "emb_after")
    check_choice(rows, get_args(ComparedRows), "rows")
    before, after = numbers_of_both(emb_before, emb_after, names, table, rows)
    before, after, sizes = shared_rows(before, after, names, rows)
    found = select_in_memory(before, after, names, alpha, method, correction, top_k)
    return _tickets(found, correction, top_k, tokenizer, table_of_both(emb_before, emb_after, table), sizes)


def select_tickets(
    tables: Tables,
    alpha: float | None,
    method: str,
    correction: str | None,
    top_k: int | None,
    tokenizer: Tokenizer | None = None,
    table: TicketTable = "input",
    sizes: tuple[int, int] | None = None,
) -> Tickets:
    """:func:`ks_select` for a pair of tables that are not in memory. ``sizes`` are their heights where these differ."""
    if tokenizer is not None:
        check_vocabulary(tokenizer, max(sizes or tables.shape[:1]))
    found = select_rows(tables, alpha, method, correction, top_k)
    return _tickets(found, correction, top_k, tokenizer, table, sizes)


def _tickets(
    found: Selection,
    correction: str | None,
    top_k: int | None,
    tokenizer: Tokenizer | None,
    table: TicketTable,
    sizes: tuple[int, int] | None,
) -> Tickets:
    if found.note:
        warn_caller(found.note)
    tickets = Tickets._of_selection(
        token_ids=found.token_ids,
        counts=found.counts,
        vocab_size=sizes[0] if sizes else found.shape[0],
        vocab_size_after=sizes[1] if sizes else None,
        dimension=found.shape[1],
        threshold_count=found.threshold_count,
        alpha=found.alpha,
        method=found.method,
        correction=correction,
        selected_by="alpha" if top_k is None else "top_k",
        table=table,
    )
    return tickets if tokenizer is None else tickets.with_texts(tokenizer)
