"""The overlap of sets of rows."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def jaccard(first: AbstractSet[int], second: AbstractSet[int]) -> float:
    """Divide the number of shared elements by the number of all elements. Two empty sets give 1.

    Parameters
    ----------
    first, second : set of int

    Returns
    -------
    float
        0 to 1.

    Examples
    --------
    >>> jaccard({1, 2}, {2, 3})
    0.3333333333333333
    """
    return len(first & second) / len(first | second) if first | second else 1.0


def overlap_matrix(sets: Sequence[Sequence[AbstractSet[int]]]) -> list[list[float]]:
    """Compute the mean Jaccard overlap of every two ways to choose rows.

    Parameters
    ----------
    sets : sequence of sequences of sets of int
        The token ids that each of the n ways chose. A way has one set for each training seed, and sets of the same
        seed are compared.

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
