"""A table of which some rows trained, known by the KS statistics of those: all that selecting tickets needs."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kslottery_fast.ks.significance import resolve_table_method
from kslottery_fast.tickets.select import select_rows, select_tickets
from kslottery_fast.tickets.tickets import Tickets


class TrainedTable:
    """What ``ks_select`` sees of two tables, without them: as :class:`~kslottery_fast.tickets.decision.Tables`.

    ``token_ids`` int64 [A], the rows that trained, and their ``counts`` h int64 [A]; every other row did not move and
    has h = 0, but counts as a test.
    """

    names = ("the original table", "the tuned table")

    def __init__(self, token_ids: Tensor, counts: Tensor, shape: tuple[int, int]) -> None:
        self.token_ids, self.trained_counts, self.shape = token_ids, counts, shape

    def counts(self, threshold: int = 0) -> Tensor:
        """H of every row, int64 [V]."""
        every = torch.zeros(self.shape[0], dtype=torch.int64)
        every[self.token_ids] = self.trained_counts
        return every

    def significant(self, alpha: float, method: str, correction: str | None) -> tuple[int, ...]:
        """Token ids that the test selects at alpha, ascending; none is a possible answer."""
        found = select_rows(self, alpha, resolve_table_method(self.shape[1], method), correction, None)
        return tuple(sorted(found.token_ids.tolist()))

    def tickets(self, alpha: float | None, method: str, correction: str | None, top_k: int | None = None) -> Tickets:
        """What ``ks_select`` returns, without its warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return select_tickets(self, alpha, method, correction, top_k)
