"""What tickets hold: the selected rows, the evidence for each, and the settings of the selection."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.options import Correction, ResolvedMethod, SelectedBy, TicketTable
from kslottery_fast.ks.significance import log_pvalues, pvalues

from . import ticket_fields


@dataclass(frozen=True, eq=False, repr=False)
class TicketData:
    """The attributes of :class:`kslottery_fast.Tickets`, which describes them."""

    token_ids: Tensor
    counts: Tensor
    vocab_size: int
    dimension: int
    threshold_count: int
    alpha: float | None
    method: ResolvedMethod = "exact"
    correction: Correction | None = None
    selected_by: SelectedBy = "alpha"
    token_texts: tuple[str, ...] | None = None
    table: TicketTable = "input"
    vocab_size_after: int | None = None

    def __post_init__(self) -> None:
        ticket_fields.check_fields(vars(self))

    @cached_property
    def statistic(self) -> Tensor:
        """D of each ticket, float64 [k]."""
        return self.counts.to(torch.float64) / self.dimension

    @cached_property
    def pvalue(self) -> Tensor:
        """Two-sided p-value of each ticket, float64 [k], without correction."""
        return pvalues(self.counts, self.dimension, self.method)

    @cached_property
    def log_pvalue(self) -> Tensor:
        """Natural logarithm of :attr:`pvalue`, exact even if that underflows to 0."""
        return log_pvalues(self.counts, self.dimension, self.method)

    @property
    def compared_rows(self) -> int:
        """How many rows were compared: those that both tables have."""
        return self.vocab_size if self.vocab_size_after is None else min(self.vocab_size, self.vocab_size_after)

    @property
    def threshold(self) -> float:
        """The smallest significant D. It is above 1 if no D would be significant."""
        return self.threshold_count / self.dimension

    def __len__(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.token_ids.tolist())

    def __eq__(self, other: object) -> bool:
        """Same rows, evidence and settings. Token texts do not matter."""
        return (
            isinstance(other, TicketData)
            and self._settings() == other._settings()
            and torch.equal(self.token_ids, other.token_ids)
            and torch.equal(self.counts, other.counts)
        )

    def __hash__(self) -> int:
        values = tuple(self._settings().values())
        return hash((values, self.token_ids.numpy().tobytes(), self.counts.numpy().tobytes()))

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ticket_fields.SETTINGS}
