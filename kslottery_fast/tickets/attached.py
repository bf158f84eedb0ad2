"""Tickets straight from attached rows: the KS test during Embed Tuning, without a merge and without V tests."""

import torch
from torch import nn

from kslottery_fast.base.dtensors import whole
from kslottery_fast.base.options import Correction, Method
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.ks.tables import counts_and_largest
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN
from kslottery_fast.rows.attach import get_rows
from kslottery_fast.rows.tables import base_rows, check_finite

from .model_tables import rows_in_memory
from .select import select_tickets
from .tickets import Tickets


class _AttachedTables:
    """The base table, and the table with the rows in use. All other rows are equal, so their h is 0."""

    names = ("the table", "the attached rows")

    def __init__(self, model: nn.Module) -> None:
        embedding = get_rows(model)
        rows = whole(rows_in_memory(embedding))  # where rows are sharded, every process gathers k rows
        self.ids = embedding.token_ids
        self.before = base_rows(embedding, self.ids).to(rows.device)
        # As the model reads them and a merge writes them: what a 16-bit table rounds away is not a change.
        self.after = rows.to(self.before.dtype)
        self.shape = (len(embedding.slots), self.after.shape[1])

    def counts(self, threshold: int = 0) -> torch.Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`."""
        h, flags = counts_and_largest(self.before, self.after, threshold)
        if bool((flags & (HAS_NAN | HAS_INF)).any()):
            check_finite(self.after, self.ids, f"training diverged, lower the learning rate ({self.after.dtype} table)")
            check_finite(self.before, self.ids, "the table itself is damaged, load the checkpoint again")
        counts = torch.zeros(self.shape[0], dtype=torch.int64, device=h.device)
        counts[self.ids] = h
        return counts


def ks_select_rows(
    model: nn.Module,
    alpha: float | None = 0.05,
    *,
    method: Method = "auto",
    correction: Correction | None = None,
    top_k: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Tickets:
    """Select tickets among the attached rows of a model.

    The tickets are those of ``ks_select(original table, table with the rows merged)``. But only k rows are tested,
    since all others are equal in both tables. Rows are rounded to the dtype of the table, as a merge rounds them. The
    model is not changed, so this may run in the middle of training.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows, wrapped or not. The rows in use are tested.
    alpha, method, correction, top_k, tokenizer
        As for :func:`kslottery_fast.ks_select`. Corrections count all V rows.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        No rows are attached or in use, a row has NaN or Inf in the dtype of the table, or an option is unknown.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        No row is selected, or fewer than ``top_k``. The message says why.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(torch.nn.Embedding(1000, 64), [5, 17, 30])
    >>> with torch.no_grad():
    ...     _ = model.rows[:2].add_(3.0)
    >>> sorted(ks_select_rows(model))
    [5, 17]
    """
    with torch.no_grad():
        return select_tickets(_AttachedTables(model), alpha, method, correction, top_k, tokenizer)
