"""Which rows of a table did fine-tuning shift? The door: two tables in, tickets out."""

from __future__ import annotations

import warnings

from kslottery_fast.ks.decision import Selection, Tables, select_in_memory, select_rows

from .tables import Table, numbers_of
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
    names = ("emb_before", "emb_after")
    before, after = numbers_of(emb_before, names[0]), numbers_of(emb_after, names[1])
    found = select_in_memory(before, after, names, alpha, method, correction, top_k)
    return _tickets(found, correction, top_k, stacklevel=3)


def select_tickets(
    tables: Tables, alpha: float | None, method: str, correction: str | None, top_k: int | None
) -> Tickets:
    """:func:`ks_select` for a pair of tables that are not in memory; a warning names the caller's caller."""
    return _tickets(select_rows(tables, alpha, method, correction, top_k), correction, top_k, stacklevel=4)


def _tickets(found: Selection, correction: str | None, top_k: int | None, *, stacklevel: int) -> Tickets:
    if found.note:
        warnings.warn(found.note, RuntimeWarning, stacklevel=stacklevel)
    return Tickets._of_selection(
        token_ids=found.token_ids,
        counts=found.counts,
        vocab_size=found.shape[0],
        dimension=found.shape[1],
        threshold_count=found.threshold_count,
        alpha=found.alpha,
        method=found.method,
        correction=correction,
        selected_by="alpha" if top_k is None else "top_k",
    )
