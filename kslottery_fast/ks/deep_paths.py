"""Logarithms of exact p-values that underflow, for samples of different sizes.

On each level j of the lattice the outside begins at one point b_j. A path that meets the outside has a first outside
point, which is one of these. With F_j the number of paths to b_j that are inside before, and N_j the number of all
paths to b_j, ``N_j = sum over i <= j of F_i C(b_i -> b_j)``, where C counts the paths between two points. The shares
r_j = F_j / N_j follow in turn. The number of paths that meet the outside is the sum of ``F_j C(b_j -> end)``.

All counts are logarithms, and the shares are of the order of D, so nothing underflows or cancels. Only the terms near
the largest one count, and only the shares of the levels shortly before them.

References
----------
.. [1] J. L. Hodges, "The significance probability of the Smirnov two-sample test", Arkiv foer Matematik 3 (1958).
.. [2] F. Wei, R. M. Dudley, "Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities" (2012).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .smirnov import stirling_error

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_UNDERFLOW = math.log(1e-280)  # p-values below this are left to this file
_HOPELESS = 150.0  # the bound is not worth computing unless D^2 n m / (n + m) is larger
_NEGLIGIBLE = 45.0  # terms whose logarithm is smaller than the largest by this much do not count in float64
_ROWS = 128  # levels whose equations are in memory at a time


class _Boundary(NamedTuple):
    """The first outside point (x, j) of each level j, and the logarithms of the numbers of paths to it and beyond."""

    x: Integers
    to: Floats  # log N_j
    through: Floats  # log of the share of all paths that pass through it
    step: tuple[int, int]  # x grows by step[0] / step[1] per level, and is rounded up


def is_deep(h: int, n: int, m: int) -> bool:
    """Tell whether P(D >= h / lcm) is certainly below 1e-280: the chance of passing through a first outside point is.

    It is checked against twice the sum of these chances.
    """
    d = h / math.lcm(n, m)
    if d * d * n * m <= _HOPELESS * (n + m):
        return False
    return math.log(2) + _log_sum(_boundary(h, n, m).through) < _UNDERFLOW


def log_outside_probability(h: int, n: int, m: int, one_sided: bool) -> float:
    """Natural logarithm of P(D >= h / lcm), h >= 1, where it is below 1e-280.

    For two sides it is twice the chance of one side. Paths that meet both sides do not exist if D > 1/2. Otherwise
    their chance is about the fourth power of that of the others.
    """
    boundary = _boundary(h, n, m)
    near = np.flatnonzero(boundary.through > boundary.through.max() - _NEGLIGIBLE)
    first, last = int(near[0]), int(near[-1])
    shares = _first_passage_shares(boundary, first, last)
    log_p = _log_sum(boundary.through[first : last + 1] + np.log(shares))
    return min(0.0, log_p if one_sided else log_p + math.log(2))


def _boundary(h: int, n: int, m: int) -> _Boundary:
    n, m = max(n, m), min(n, m)  # both directions have the same chance, so the levels may be those of the smaller one
    g = math.gcd(n, m)
    ng, mg = n // g, m // g
    j = np.arange((n * mg - h) // ng + 1)
    x = -(-(h + j * ng) // mg)
    to = _log_paths(x, j)
    everything = _log_paths(np.array([n]), np.array([m]))
    return _Boundary(x, to, to + _log_paths(n - x, m - j) - everything, (ng, mg))


def _memory_length(boundary: _Boundary, last: int) -> int:
    """The number of levels before ``last`` on which its share depends. For earlier levels it is smaller."""
    i = np.arange(last, -1, -1)
    passed = boundary.to[i] - boundary.to[last] + _log_paths(boundary.x[last] - boundary.x[i], last - i)
    forgotten = np.flatnonzero(passed < -_NEGLIGIBLE)
    return int(forgotten[0]) if forgotten.size else last


def _first_passage_shares(boundary: _Boundary, first: int, last: int) -> Floats:
    """The shares r_j for j = first..last.

    ``r_j = 1 - sum over i < j of r_i w_ij`` with the share w_ij of the paths to b_j that pass through b_i.
    """
    numerator, denominator = boundary.step
    memory = _memory_length(boundary, last)
    asked, first = last - first + 1, max(0, first - memory)
    apart = np.arange(min(last - first, memory + _ROWS) + 1)
    whole = apart * numerator // denominator
    tables = np.stack([_log_paths(whole, apart), _log_paths(whole + 1, apart)])  # x differs by `whole` or one more
    shares = np.empty(last - first + 1)
    for start in range(first, last + 1, _ROWS):
        stop = min(start + _ROWS, last + 1)
        begin = max(first, start - memory)
        j, i = np.arange(start, stop)[:, None], np.arange(begin, stop)
        levels = np.maximum(j - i, 0)
        extra = np.where(j > i, boundary.x[j] - boundary.x[i] - whole[levels], 0)
        weights = np.exp(np.minimum(boundary.to[i] - boundary.to[j] + tables[extra, levels], 0.0))
        rest = 1.0 - weights[:, : start - begin] @ shares[begin - first : start - first]
        own = torch.from_numpy(np.tril(weights[:, start - begin :]))
        solved = torch.linalg.solve_triangular(own, torch.from_numpy(rest)[:, None], upper=False, unitriangular=True)
        shares[start - first : stop - first] = solved[:, 0].numpy()
    return shares[-asked:]


def _log_paths(right: Integers, up: Integers) -> Floats:
    """Natural logarithm of C(right + up, up), for integers of at least 0. It adds up positive numbers of few digits."""
    a, b = np.maximum(right, 1).astype(np.float64), np.maximum(up, 1).astype(np.float64)
    both = a + b
    value = a * np.log1p(b / a) + b * np.log1p(a / b) + 0.5 * np.log(both / (2 * math.pi * a * b))
    value += stirling_error(both) - stirling_error(a) - stirling_error(b)
    return np.where((right == 0) | (up == 0), 0.0, value)


def _log_sum(terms: Floats) -> float:
    largest = float(terms.max())
    return largest + math.log(float(np.exp(terms - largest).sum()))
