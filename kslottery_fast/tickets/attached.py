"""Tickets straight from attached rows: the KS test during Embed Tuning, without a merge and without V tests."""

from __future__ import annotations

import torch
from torch import nn

from kslottery_fast import ops
from kslottery_fast.base.dtensors import whole
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN
from kslottery_fast.rows.attach import get_rows
from kslottery_fast.rows.tables import base_rows, check_finite

from .select import select_tickets
from .tickets import Tickets


class _AttachedTables:
    """The base table and the table with the rows in use; all other rows are equal, so h = 0 for them."""

    names = ("the table", "the attached rows")

    def __init__(self, model: nn.Module) -> None:
        embedding = get_rows(model)
        rows = whole(embedding.rows)  # where rows are sharded every process gathers k rows
        self.ids = embedding.token_ids
        self.before = base_rows(embedding, self.ids).to(rows.device)
        # As the model reads them and a merge writes them: what a 16-bit table rounds away is no change.
        self.after = rows.to(self.before.dtype)
        self.shape = (len(embedding.slots), self.after.shape[1])

    def counts(self, threshold: int = 0) -> torch.Tensor:
        """As decision.Tables says."""
        h, flags = ops.ks_statistics(self.before, self.after, threshold)
        if bool((flags & (HAS_NAN | HAS_INF)).any()):
            check_finite(self.after, self.ids, f"training diverged, lower the learning rate ({self.after.dtype} table)")
            check_finite(self.before, self.ids, "the table itself is damaged, load the checkpoint anew")
        counts = torch.zeros(self.shape[0], dtype=torch.int64, device=h.device)
        counts[self.ids] = h
        return counts


@torch.no_grad()
def ks_select_rows(
    model: nn.Module,
    alpha: float | None = 0.05,
    *,
    method: str = "auto",
    correction: str | None = None,
    top_k: int | None = None,
) -> Tickets:
    """Select tickets among the attached rows: ``ks_select(original table, table with the rows merged)``.

    The same tickets, from k row tests in place of V: the other rows are those of the table, bit for bit. Rows are
    rounded to the dtype of the table, as a merge does it. The model is not changed, so this may run in the middle of
    training.

    Parameters
    ----------
    model : a model with attached rows, wrapped or not.
    alpha, method, correction, top_k : as for :func:`kslottery_fast.ks_select`. Corrections count all V rows.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError : no rows attached or in use; NaN or Inf in a row, in the dtype of the table; an unknown option.

    Warns
    -----
    RuntimeWarning : no row is selected, or fewer than ``top_k``.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(torch.nn.Embedding(1000, 64), [5, 17, 30])
    >>> with torch.no_grad():
    ...     _ = model.rows[:2].add_(3.0)
    >>> sorted(ks_select_rows(model).token_ids.tolist())
    [5, 17]
    """
    return select_tickets(_AttachedTables(model), alpha, method, correction, top_k)
