"""What Embed Tuning shows about each row, and the ways to choose rows by it: D, frequency, size of the change, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.ks.significance import critical_count, resolve_table_method
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets

from .trained_table import TrainedTable
from .training import TrainedRows

_TENSORS = ("token_ids", "counts", "l2", "gradient", "frequency")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Facts about the A active rows, each tensor [A], by ascending token id.

    ``token_ids`` int64; ``counts`` int64, h = d * D of the KS test; ``l2`` float64, length of the change of the row;
    ``gradient`` float64, the norms of its gradients (clipped, as the optimizer saw them) summed over the updates;
    ``frequency`` int64, occurrences in the training examples. ``trajectory``: (updates done, h of every row) int64 [A]
    on the way.
    """

    token_ids: Tensor
    counts: Tensor
    l2: Tensor
    gradient: Tensor
    frequency: Tensor
    vocab_size: int
    dimension: int
    trajectory: tuple[tuple[int, Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def significant(self, alpha: float, method: str, correction: str | None, counts: Tensor | None = None) -> int:
        """How many rows :func:`kslottery_fast.ks_select` selects at alpha; the rows that did not train count as tests.

        ``counts``: h at another time of the trajectory.
        """
        h = self.counts if counts is None else counts
        return len(
            TrainedTable(self.token_ids, h, (self.vocab_size, self.dimension)).significant(alpha, method, correction)
        )

    def tickets(self, k: int, alpha: float | None, method: str, correction: str | None) -> Tickets:
        """The first k rows by D as Tickets; with ``alpha`` they must be those that it selects."""
        places = ks_order(self, 0)[:k]
        d, method = self.dimension, resolve_table_method(self.dimension, method)
        if alpha is not None and correction != "bh":
            threshold = critical_count(d, alpha if correction is None else alpha / self.vocab_size, method)
        else:
            threshold = int(self.counts[places].min()) if k else d + 1
        return Tickets.from_counts(
            self.token_ids[places],
            self.counts[places],
            vocab_size=self.vocab_size,
            dimension=d,
            threshold_count=threshold,
            alpha=alpha,
            method=method,
            correction=correction if alpha is not None else None,
            selected_by="top_k" if alpha is None else "alpha",
        )

    def save(self, folder: Path) -> None:
        """Write ``evidence.safetensors`` and ``evidence.json`` into a stage's folder."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        steps = [step for step, _ in self.trajectory]
        if steps:
            tensors["trajectory"] = torch.stack([counts for _, counts in self.trajectory])
        write_safetensors(folder / "evidence.safetensors", tensors)
        facts = {"vocab_size": self.vocab_size, "dimension": self.dimension, "trajectory_steps": steps}
        write_json(folder / "evidence.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read what :meth:`save` wrote."""
        tensors: dict[str, Any] = dict(read_safetensors(folder / "evidence.safetensors"))
        facts = read_json(folder / "evidence.json")
        trajectory = tensors.pop("trajectory", torch.empty(0, 0))
        steps = facts.pop("trajectory_steps")
        return cls(**tensors, **facts, trajectory=tuple(zip(steps, trajectory, strict=True)))


class Witness:
    """Collects the evidence while Embed Tuning trains; :meth:`watch` is its ``before_update``."""

    def __init__(self, before: Tensor, steps: int, looks: int = 8) -> None:
        self.before = before  # [V, d] float32
        self.looks = {round(steps * look / looks) for look in range(1, looks)}
        self.gradient: Tensor | None = None
        self.trajectory: list[tuple[int, Tensor]] = []

    def watch(self, step: int, embedding: RowEmbedding) -> None:
        """Add up gradients; now and then take the KS statistics of the rows as they are."""
        rows, ids = embedding.rows, embedding.token_ids.cpu()
        assert rows.grad is not None, "called before an update"
        norms = rows.grad.double().norm(dim=1).cpu()
        order = ids.argsort()
        self.gradient = norms[order] if self.gradient is None else self.gradient + norms[order]
        if step in self.looks:
            current = rows.detach().float().cpu()
            self.trajectory.append((step, ks_statistics(self.before[ids[order]], current[order])))

    def evidence(self, tuned: TrainedRows, frequency: Tensor, steps: int) -> Evidence:
        """What was seen, with the final rows; ``frequency`` int64 [V]."""
        assert self.gradient is not None, "training has at least one step"
        before = self.before[tuned.token_ids]
        counts = ks_statistics(before, tuned.rows)
        return Evidence(
            token_ids=tuned.token_ids,
            counts=counts,
            l2=(tuned.rows.double() - before.double()).norm(dim=1),
            gradient=self.gradient,
            frequency=frequency[tuned.token_ids],
            vocab_size=len(self.before),
            dimension=self.before.shape[1],
            trajectory=(*self.trajectory, (steps, counts)),
        )


def _largest(values: Tensor) -> Tensor:
    """Places by falling value; of equal values the lower token id, as ``ks_select(top_k=...)`` does it."""
    return torch.sort(values, descending=True, stable=True).indices


def ks_order(evidence: Evidence, _seed: int) -> Tensor:
    """Places of the rows by falling D; a row that did not move is never a ticket."""
    places = _largest(evidence.counts)
    return places[evidence.counts[places] > 0]


def _random_order(evidence: Evidence, seed: int) -> Tensor:
    return torch.randperm(len(evidence), generator=torch.Generator().manual_seed(seed))


SELECTORS: dict[str, Callable[[Evidence, int], Tensor]] = {
    "ks": ks_order,
    "frequency": lambda evidence, _: _largest(evidence.frequency),
    "random": _random_order,
    "l2": lambda evidence, _: _largest(evidence.l2),
    "gradient": lambda evidence, _: _largest(evidence.gradient),
}
"""From evidence and training seed to the order in which rows are taken: places, int64, into the active rows."""
