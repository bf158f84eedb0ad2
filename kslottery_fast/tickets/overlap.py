"""How far sets of rows agree."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def jaccard(first: AbstractSet[int], second: AbstractSet[int]) -> float:
    """Shared over all elements; 1 for two empty sets.

    >>> jaccard({1, 2}, {2, 3})
    0.3333333333333333
    """
    return len(first & second) / len(first | second) if first | second else 1.0


def overlap_matrix(sets: Sequence[Sequence[AbstractSet[int]]]) -> list[list[float]]:
    """Mean Jaccard overlap of every two ways to choose rows.

    Parameters
    ----------
    sets : sequence of sequences of sets of int
        The token ids that each of the n ways chose, one set for each training seed; sets of the same seed are compared.

    Returns
    -------
    list of lists of float
        [n][n], symmetric, 1 on the diagonal.

    Examples
    --------
    >>> overlap_matrix([[{1, 2}, {3}], [{2, 3}, {3}]])
    [[1.0, 0.6666666666666666], [0.6666666666666666, 1.0]]
    """
    return [[sum(map(jaccard, one, other)) / len(one) for other in sets] for one in sets]
