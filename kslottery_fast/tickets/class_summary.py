"""What became of the tokens of a class: counts and means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.options import RowStatus


@dataclass(frozen=True)
class ClassSummary:
    """What became of the rows of one class of tokens.

    Attributes
    ----------
    name : str
        The class, such as "Latin". See :class:`kslottery_fast.tickets.token_classes.TokenClasses`.
    rows : int
        The number of rows.
    identical, reordered, moved, significant, new, gone : int
        How many of them have each status, see :class:`kslottery_fast.tickets.TableComparison`.
    mean_d, mean_l2, mean_relative_l2, mean_cosine : float, optional
        Means over the rows that both tables have. None if there are none.
    """

    name: str
    rows: int
    identical: int
    reordered: int
    moved: int
    significant: int
    new: int
    gone: int
    mean_d: float | None
    mean_l2: float | None
    mean_relative_l2: float | None
    mean_cosine: float | None

    @property
    def changed(self) -> int:
        """The rows that both tables have and that are not identical."""
        return self.reordered + self.moved + self.significant


def summarize_classes(
    names: Sequence[str | None],
    numbers: Mapping[str, Tensor],
    status: Tensor,
    statuses: Sequence[RowStatus],
) -> list[ClassSummary]:
    """Summarize rows class by class, those with most changed rows first.

    Parameters
    ----------
    names : sequence of (str or None)
        The class of each of V rows. Rows with None are left out.
    numbers : mapping of str to Tensor
        The numbers whose means are wanted, float64 [n] each, of the first n rows, which both tables have.
    status : Tensor
        uint8 [V], indices into ``statuses``.
    statuses : sequence of str
        The statuses.

    Returns
    -------
    list of ClassSummary
    """
    found = sorted({name for name in names if name is not None})
    places = {name: place for place, name in enumerate(found)}
    group = torch.tensor([places.get(name, -1) for name in names], dtype=torch.int64)  # type: ignore[arg-type]
    kept = group >= 0
    counts = torch.zeros(len(found), len(statuses), dtype=torch.int64)
    counts.index_put_((group[kept], status[kept].long()), torch.tensor(1), accumulate=True)
    means = {name: _means(values, group[: len(values)], len(found)) for name, values in numbers.items()}
    summaries = []
    for place, name in enumerate(found):
        fields: dict[str, Any] = dict(zip(statuses, counts[place].tolist(), strict=True))
        fields |= {f"mean_{key}": values[place] for key, values in means.items()}
        summaries.append(ClassSummary(name, int(counts[place].sum()), **fields))
    return sorted(summaries, key=lambda each: (-each.changed, -each.rows, each.name))


def _means(values: Tensor, group: Tensor, groups: int) -> list[float | None]:
    """The mean of each group over the values that exist."""
    known = values.isfinite() & (group >= 0)
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, group[known], values[known])
    sizes = torch.bincount(group[known], minlength=groups)
    return [total / size if size else None for total, size in zip(sums.tolist(), sizes.tolist(), strict=True)]
