"""Rows after training, and a table of which some rows trained, known by the KS statistics of those."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.ks.significance import resolve_table_method
from kslottery_fast.tickets.select import select_rows, select_tickets
from kslottery_fast.tickets.tickets import Tickets

from .settings import RunSettings


@dataclass(frozen=True)
class TrainedRows:
    """``token_ids`` int64 [k], their trained ``rows`` float32 [k, d], and the loss of every step in nats per token."""

    token_ids: Tensor
    rows: Tensor
    losses: list[float]

    def only(self, token_ids: Tensor) -> TrainedRows:
        """The rows of some of the tokens, in the order of ``token_ids``; ours must be ascending."""
        return TrainedRows(token_ids, self.rows[torch.searchsorted(self.token_ids, token_ids)], [])

    def save(self, folder: Path) -> None:
        """Write ``rows.safetensors`` and ``losses.json`` into a stage's folder."""
        write_safetensors(folder / "rows.safetensors", {"token_ids": self.token_ids, "rows": self.rows})
        write_json(folder / "losses.json", self.losses)

    @classmethod
    def load(cls, folder: Path) -> TrainedRows:
        """Read what :meth:`save` wrote."""
        tensors = read_safetensors(folder / "rows.safetensors")
        return cls(tensors["token_ids"], tensors["rows"], read_json(folder / "losses.json"))


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

    def tickets(self, settings: RunSettings) -> Tickets:
        """The tickets of an experiment: the rows that alpha selects, or top_k of largest D where it selects none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = select_tickets(self, settings.alpha, settings.method, settings.correction, None)
            return found if len(found) else select_tickets(self, settings.alpha, settings.method, None, settings.top_k)
