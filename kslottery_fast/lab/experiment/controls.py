"""How often the training corpus shows each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch


def token_counts(
    features: Iterable[Mapping[str, Sequence[int]]], vocab_size: int, *, last: bool = True
) -> torch.Tensor:
    """How often each token id occurs in ``input_ids``, prompt included, since these are the rows that training reads.

    ``last`` : whether the last token of an example counts. It is predicted, but nothing is predicted after it, so only
    a head that follows the rows sends a gradient to its row.

    Returns
    -------
    Tensor : int64 [V].

    >>> token_counts([{"input_ids": [2, 0, 2]}], 4).tolist()
    [1, 0, 2, 0]
    >>> token_counts([{"input_ids": [2, 0, 2]}], 4, last=False).tolist()
    [1, 0, 1, 0]
    """
    end = None if last else -1
    ids = torch.tensor([i for feature in features for i in feature["input_ids"][:end]], dtype=torch.int64)
    return torch.bincount(ids, minlength=vocab_size)


def frequency_ranks(counts: torch.Tensor) -> torch.Tensor:
    """1 for the most frequent token, and so on; ties go to the lower id.

    >>> frequency_ranks(torch.tensor([1, 0, 5, 1])).tolist()
    [2, 4, 1, 3]
    """
    order = torch.argsort(counts, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return ranks
