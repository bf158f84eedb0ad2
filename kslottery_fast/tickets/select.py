"""Which rows of a table did fine-tuning shift? The door: two tables in, tickets out."""

from __future__ import annotations

import warnings

from kslottery_fast.ks.significance import resolve_table_method

from .decision import Tables, TablesInMemory, check_options, select_rows
from .tables import Table, same_memory, table_pair
from .tickets import Tickets


def ks_select(
    emb_before: Table,
    emb_after: Table,
    alpha: float | None = 0.05,
    *,
    method: str = "auto",
    correction: str | None = None,
    top_k: int | None = None,
) -> Tickets:
    """Select the winning tickets: the rows whose numbers were significantly redistributed by fine-tuning.

    Row by row, the d numbers before and the d numbers after are taken as two samples for a two-sided KS test.
    One pass over the tables gives the exact statistics; without ``top_k`` and "bh" only from the threshold
    on, which spares most of the work for the rows below it.

    Parameters
    ----------
    emb_before, emb_after : tensor, nn.Embedding or array [V, d]
        The input embedding of the original and of the tuned model: float64, float32, float16 or bfloat16, any
        strides.
    alpha : float
        Significance level in (0, 1). The paper uses 0.05 for each row on its own. May be None with ``top_k``.
    method : {"auto", "exact", "asymp", "paper"}
        How p is computed, see :func:`kslottery_fast.ks.significance.pvalues`; "paper" selects D > tau(alpha).
    correction : {None, "bonferroni", "bh"}
        Correct for V tests, see :func:`kslottery_fast.ks.significance.adjust`. All V rows count, also those that never
        moved. Not with ``top_k``, where it would change nothing.
    top_k : int, optional
        Take the k rows with the largest D instead, whatever alpha says; of equal rows the lower ids. Rows
        with D = 0 are never tickets. The number of tickets at a fixed alpha depends on learning rate and
        steps; this does not.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        Shapes that differ or are not [V, d]; NaN or Inf, naming the table and its first rows; masked numbers;
        an unknown option; both ``correction`` and ``top_k``.
    TypeError
        Not tables of floats; options of a wrong type.

    Warns
    -----
    RuntimeWarning
        No row is selected, or fewer than ``top_k``: the message says why and what to do.

    Examples
    --------
    >>> import torch
    >>> before = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> after = before.clone()
    >>> after[[5, 17]] += 3.0
    >>> tickets = ks_select(before, after)
    >>> sorted(tickets.token_ids.tolist()), tickets.method
    ([5, 17], 'exact')
    """
    before, after = table_pair(emb_before, emb_after, ("emb_before", "emb_after"))
    note = None
    if same_memory(before, after):
        note = "emb_before and emb_after are the same memory: clone the table before tuning it"
    return select_tickets(TablesInMemory(before, after), alpha, method, correction, top_k, note=note)


def select_tickets(
    tables: Tables,
    alpha: float | None,
    method: str,
    correction: str | None,
    top_k: int | None,
    *,
    note: str | None = None,
) -> Tickets:
    """What every ``ks_select`` does once it has its tables; ``note`` is warned of in place of what was found.

    Errors and warnings are those of :func:`ks_select`; a warning names the caller of the function that calls this.
    """
    alpha, method = check_options(alpha, correction, top_k), resolve_table_method(tables.shape[1], method)
    found = select_rows(tables, alpha, method, correction, top_k)
    if note or found.note:
        warnings.warn(note or found.note or "", RuntimeWarning, stacklevel=3)
    return Tickets._of_selection(
        token_ids=found.token_ids,
        counts=found.counts,
        vocab_size=tables.shape[0],
        dimension=tables.shape[1],
        threshold_count=found.threshold_count,
        alpha=alpha,
        method=method,
        correction=correction,
        selected_by="alpha" if top_k is None else "top_k",
    )
