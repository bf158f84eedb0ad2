"""What Embed Tuning shows about each row, and the ways to choose rows by it: D, frequency, size of the change, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.tickets.tables import ks_statistics

from .trained import TrainedRows, TrainedTable

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

    def table(self, counts: Tensor | None = None) -> TrainedTable:
        """What the KS test sees; ``counts``: h at another time of the trajectory."""
        h = self.counts if counts is None else counts
        return TrainedTable(self.token_ids, h, (self.vocab_size, self.dimension))

    def significant(self, alpha: float, method: str, correction: str | None, counts: Tensor | None = None) -> int:
        """How many rows :func:`kslottery_fast.ks_select` selects at alpha; ``counts`` as for :meth:`table`."""
        return len(self.table(counts).significant(alpha, method, correction))

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
    """Collects the evidence while Embed Tuning trains."""

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

    def state(self) -> dict[str, Tensor]:
        """What was seen so far, for a checkpoint."""
        assert self.gradient is not None, "asked for after an update"
        looks = {f"trajectory.{step}": counts for step, counts in self.trajectory}
        return {"gradient": self.gradient, **looks}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.gradient = state["gradient"]
        looks = ((int(name.partition(".")[2]), counts) for name, counts in state.items() if name != "gradient")
        self.trajectory = sorted(looks, key=lambda look: look[0])

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
