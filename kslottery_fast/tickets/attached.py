"""Tickets straight from attached rows: the KS test during Embed Tuning, without a merge and without V tests."""

from typing import get_args

import torch
from torch import nn

from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.dtensors import whole
from kslottery_fast.base.options import Correction, Method, TableName
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.ks.order import reordered_rows
from kslottery_fast.ks.tables import counts_and_largest
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN
from kslottery_fast.rows.attach import get_output_rows, get_rows, output_role
from kslottery_fast.rows.heads import head_rows
from kslottery_fast.rows.overlay import Overlay, RowHead
from kslottery_fast.rows.tables import base_rows, check_finite

from .model_tables import rows_in_memory
from .select import select_tickets
from .tickets import Tickets


class _AttachedTables:
    """The base table, and the table with the rows in use. All other rows are equal, so their h is 0."""

    names = ("the table", "the attached rows")

    def __init__(self, module: Overlay) -> None:
        rows = whole(rows_in_memory(module))  # where rows are sharded, every process gathers k rows
        self.ids = module.token_ids
        read = head_rows if isinstance(module, RowHead) else base_rows
        self.before = read(module, self.ids).to(rows.device)
        # As the model reads them and a merge writes them: what a 16-bit table rounds away is not a change.
        self.after = rows.to(self.before.dtype)
        self.shape = (len(module.slots), self.after.shape[1])
        self._identical: torch.Tensor | None = None

    def counts(self, threshold: int = 0) -> torch.Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`."""
        h, flags, self._identical = counts_and_largest(self.before, self.after, threshold)
        if bool((flags & (HAS_NAN | HAS_INF)).any()):
            check_finite(self.after, self.ids, f"training diverged, lower the learning rate ({self.after.dtype} table)")
            check_finite(self.before, self.ids, "the table itself is damaged, load the checkpoint again")
        counts = torch.zeros(self.shape[0], dtype=torch.int64, device=h.device)
        counts[self.ids] = h
        return counts

    def reordered(self) -> torch.Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`."""
        return self.ids.cpu()[reordered_rows(self.before, self.after, identical=self._identical)].sort().values


def ks_select_rows(
    model: nn.Module,
    alpha: float | None = 0.05,
    *,
    method: Method = "auto",
    correction: Correction | None = None,
    top_k: int | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
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
    table : {"input", "output"}
        Which rows are tested: those of the input embedding, or those of the output head, which was attached with
        ``output="own"``. If the head follows the rows of the input (``output="tied"``), "output" tests these rows, and
        the tickets say "shared".

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        No rows are attached or in use, the output head has none, a row has NaN or Inf in the dtype of the table, or an
        option is unknown.
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
    check_choice(table, get_args(TableName), "table")
    shared = table == "output" and output_role(model) == "tied"
    rows = get_output_rows(model) if table == "output" and not shared else get_rows(model)
    with torch.no_grad():
        tables = _AttachedTables(rows)
        return select_tickets(tables, alpha, method, correction, top_k, tokenizer, "shared" if shared else table)
