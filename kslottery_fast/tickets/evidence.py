"""What training shows about each row (D, frequency, size of the change, gradients), and selectors that use it."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.content import check_tensors, checked_content
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.ks.decision import select_rows
from kslottery_fast.rows.overlay import RowEmbedding

from .row_differences import l2_shifts
from .select import select_tickets
from .tables import ks_statistics
from .tickets import Tickets

_FORMS = {"token_ids": "int k", "counts": "int k", "l2": "float k", "gradient": "float k", "frequency": "int k"}
_TENSORS = tuple(_FORMS)


class TrainedTable:
    """The counts of two tables, without the tables themselves.

    It is a :class:`kslottery_fast.ks.decision.Tables`, so rows are selected from it as from two tables.

    Parameters
    ----------
    token_ids : Tensor
        int64 [A], the rows that trained. Every other row did not move. It has h = 0, and still counts as a test.
    counts : Tensor
        int64 [A], their h = d * D.
    shape : (int, int)
        V and d.
    differs : Tensor, optional
        bool [A], which of them hold other numbers than before or the same in another order. By default those of h > 0.
    """

    names = ("the original table", "the tuned table")

    def __init__(
        self, token_ids: Tensor, counts: Tensor, shape: tuple[int, int], differs: Tensor | None = None
    ) -> None:
        self.token_ids, self.trained_counts, self.shape = token_ids, counts, shape
        self.differs = counts > 0 if differs is None else differs

    def counts(self, threshold: int = 0) -> Tensor:
        """Return h of every row, int64 [V]."""
        every = torch.zeros(self.shape[0], dtype=torch.int64)
        every[self.token_ids] = self.trained_counts
        return every

    def reordered(self) -> Tensor:
        """Return the rows that hold the same values in another order, int64 [k], ascending."""
        return self.token_ids[self.differs & (self.trained_counts == 0)].sort().values

    def significant(self, alpha: float, method: str, correction: str | None) -> tuple[int, ...]:
        """Return the token ids that the test selects at alpha, ascending. There may be none."""
        found = select_rows(self, alpha, method, correction, None)
        return tuple(sorted(found.token_ids.tolist()))

    def tickets(
        self,
        alpha: float,
        method: str,
        correction: str | None,
        top_k: int,
        note: Callable[[str], None] = lambda _: None,
    ) -> Tickets:
        """Return the rows that alpha selects, or the ``top_k`` rows of largest D if it selects none.

        Warnings of the selection are not raised. ``note`` is called with the text of each.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            found = select_tickets(self, alpha, method, correction, None)
            if len(found) == 0:
                found = select_tickets(self, alpha, method, None, top_k)
        for text in dict.fromkeys(str(warning.message) for warning in caught):
            note(text)
        return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """Facts about the A rows that trained.

    Attributes
    ----------
    token_ids : Tensor
        int64 [A], ascending. All other tensors are in the same order.
    counts : Tensor
        int64 [A], h = d * D of the KS test.
    l2 : Tensor
        float64 [A], the L2 norm of the change of the row.
    gradient : Tensor
        float64 [A], the norms of the gradients of the row, summed over the updates. The gradients are those that the
        optimizer saw, after clipping.
    frequency : Tensor
        int64 [A], occurrences in the training examples.
    vocab_size, dimension : int
        V and d of the table.
    trajectory : tuple of (int, Tensor)
        Numbers of updates, each with h of every row after so many updates, int64 [A].
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
        """Return what the KS test sees.

        Parameters
        ----------
        counts : Tensor, optional
            h at another point of the trajectory.
        """
        shape = self.vocab_size, self.dimension
        if counts is not None:
            return TrainedTable(self.token_ids, counts, shape)
        return TrainedTable(self.token_ids, self.counts, shape, self.l2 > 0)

    def significant(self, alpha: float, method: str, correction: str | None, counts: Tensor | None = None) -> int:
        """Count the rows that :func:`kslottery_fast.ks_select` selects at alpha. ``counts`` is as for :meth:`table`."""
        return len(self.table(counts).significant(alpha, method, correction))

    def save(self, folder: Path) -> None:
        """Write ``evidence.safetensors`` and ``evidence.json``."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        steps = [step for step, _ in self.trajectory]
        if steps:
            tensors["trajectory"] = torch.stack([counts for _, counts in self.trajectory])
        write_safetensors(folder / "evidence.safetensors", tensors)
        facts = {"vocab_size": self.vocab_size, "dimension": self.dimension, "trajectory_steps": steps}
        write_json(folder / "evidence.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            A file is missing or damaged.
        """
        path = folder / "evidence.safetensors"
        tensors: dict[str, Any] = dict(read_safetensors(path))
        check_tensors(path, tensors, _FORMS | ({"trajectory": "int steps k"} if "trajectory" in tensors else {}))
        trajectory = tensors.pop("trajectory", torch.empty(0, 0))
        with checked_content(folder / "evidence.json"):
            facts = dict(read_json(folder / "evidence.json"))
            steps = facts.pop("trajectory_steps")
            if not all(type(number) is int and number >= 0 for number in (*steps, *facts.values())):
                raise ValueError("expected counts")
            return cls(**tensors, **facts, trajectory=tuple(zip(steps, trajectory, strict=True)))


class Witness:
    """Collects the evidence while rows train.

    Parameters
    ----------
    before : Tensor
        float32 [V, d], the original table.
    steps : int
        The number of updates of the training.
    looks : int
        How often the KS statistics are taken, spread evenly over the training. The last time is at the end, from the
        final rows.
    """

    def __init__(self, before: Tensor, steps: int, looks: int = 8) -> None:
        self.before = before
        self.looks = {round(steps * look / looks) for look in range(1, looks)}
        self.gradient: Tensor | None = None
        self.trajectory: list[tuple[int, Tensor]] = []

    def watch(self, step: int, embedding: RowEmbedding) -> None:
        """Add the gradients of this update. At some updates, also take the KS statistics of the current rows."""
        rows, ids = embedding.rows, embedding.token_ids.cpu()
        assert rows.grad is not None, "called before an update"
        norms = rows.grad.double().norm(dim=1).cpu()
        order = ids.argsort()
        self.gradient = norms[order] if self.gradient is None else self.gradient + norms[order]
        if step in self.looks:
            current = rows.detach().float().cpu()
            self.trajectory.append((step, ks_statistics(self.before[ids[order]], current[order])))

    def state(self) -> dict[str, Tensor]:
        """Return all that was seen so far, for a checkpoint."""
        assert self.gradient is not None, "asked for after an update"
        looks = {f"trajectory.{step}": counts for step, counts in self.trajectory}
        return {"gradient": self.gradient, **looks}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a :meth:`state`."""
        self.gradient = state["gradient"]
        looks = ((int(name.partition(".")[2]), counts) for name, counts in state.items() if name != "gradient")
        self.trajectory = sorted(looks, key=lambda look: look[0])

    def evidence(self, token_ids: Tensor, rows: Tensor, frequency: Tensor, steps: int) -> Evidence:
        """Return the evidence of a finished training.

        Parameters
        ----------
        token_ids : Tensor
            int64 [A], ascending.
        rows : Tensor
            [A, d], their rows at the end.
        frequency : Tensor
            int64 [V], occurrences of every token in the training examples.
        steps : int
            The number of updates.
        """
        assert self.gradient is not None, "training has at least one step"
        before = self.before[token_ids]
        counts = ks_statistics(before, rows)
        return Evidence(
            token_ids=token_ids,
            counts=counts,
            l2=l2_shifts(before, rows),
            gradient=self.gradient,
            frequency=frequency[token_ids],
            vocab_size=len(self.before),
            dimension=self.before.shape[1],
            trajectory=(*self.trajectory, (steps, counts)),
        )


def _largest(values: Tensor) -> Tensor:
    """Indices by falling value. Among equal values the lower token id comes first, as in ``ks_select(top_k=...)``."""
    return torch.sort(values, descending=True, stable=True).indices


def ks_order(evidence: Evidence, _seed: int) -> Tensor:
    """Return the indices of the rows by falling D. Rows that did not move are left out: they are never tickets."""
    order = _largest(evidence.counts)
    return order[evidence.counts[order] > 0]


def _random_order(evidence: Evidence, seed: int) -> Tensor:
    return torch.randperm(len(evidence), generator=torch.Generator().manual_seed(seed))


SELECTORS: dict[str, Callable[[Evidence, int], Tensor]] = {
    "ks": ks_order,
    "frequency": lambda evidence, _: _largest(evidence.frequency),
    "random": _random_order,
    "l2": lambda evidence, _: _largest(evidence.l2),
    "gradient": lambda evidence, _: _largest(evidence.gradient),
}
"""For each way to choose rows, a function of evidence and seed.

It returns the order in which rows are taken, as int64 indices into the rows that trained.
"""


def token_counts(features: Iterable[Mapping[str, Sequence[int]]], vocab_size: int, *, last: bool = True) -> Tensor:
    """Count how often each token id occurs in ``input_ids``.

    The prompt counts too, since training reads its rows.

    Parameters
    ----------
    features : iterable of mapping
        Encoded examples.
    vocab_size : int
        The number of rows of the table.
    last : bool
        Whether the last token of an example counts. No token is predicted from it, so it gets a gradient only if the
        head follows the rows.

    Returns
    -------
    Tensor
        int64 [V].

    Examples
    --------
    >>> token_counts([{"input_ids": [2, 0, 2]}], 4).tolist()
    [1, 0, 2, 0]
    >>> token_counts([{"input_ids": [2, 0, 2]}], 4, last=False).tolist()
    [1, 0, 1, 0]
    """
    end = None if last else -1
    ids = torch.tensor([i for feature in features for i in feature["input_ids"][:end]], dtype=torch.int64)
    return torch.bincount(ids, minlength=vocab_size)


def frequency_ranks(counts: Tensor) -> Tensor:
    """Rank tokens by frequency: 1 is the most frequent one. Among equally frequent tokens the lower id comes first.

    Parameters
    ----------
    counts : Tensor
        int64 [V], as from :func:`token_counts`.

    Returns
    -------
    Tensor
        int64 [V].

    Examples
    --------
    >>> frequency_ranks(torch.tensor([1, 0, 5, 1])).tolist()
    [2, 4, 1, 3]
    """
    order = _largest(counts)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return ranks
