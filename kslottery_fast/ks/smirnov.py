"""Smirnov's one-sided distribution of one sample of n values, for many statistics at once.

With u = j / n, its terms are ``d C(n, j) (d + u)^(j - 1) (1 - d - u)^(n - j)``. Their sum over j = 0..floor(n (1 - d))
is P(D+ >= d) (Birnbaum and Tingey 1951).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_WIDTHS = 12.0  # a term that many standard deviations from the largest one is too small to count
_POINTS = 128  # terms that are added up, at least, where there are more
_FEW = 30.0  # more terms on both sides, where the bell is so narrow that it is none
_HALVINGS = 8  # after which a place is known to 2^-8 n^(1/2)
_BATCH = 1 << 16  # terms in memory at a time
_SERIES = 16  # from here on Stirling's series has the precision of float64
_EXACT_ERRORS = np.array(
    [0.0] + [math.lgamma(k + 1) - (k + 0.5) * math.log(k) + k - 0.5 * math.log(2 * math.pi) for k in range(1, _SERIES)]
)


def log_smirnov(n: int, d: Floats) -> Floats:
    """Natural logarithm of P(D+ >= d) for n values and each statistic of the vector d, 0 < d <= 1."""
    log_p = np.empty(d.size)
    rows = max(1, _BATCH // min(n + 1, 2 * _POINTS))
    for start in range(0, d.size, rows):
        log_p[start : start + rows] = _log_sums(n, d[start : start + rows])
    return log_p


def _log_sums(n: int, d: Floats) -> Floats:
    """Add up the terms near the largest one. Where they form a wide bell, every stride-th of them is enough.

    A sum of equidistant values of a bell is the same for every stride up to half its standard deviation, as Poisson's
    summation formula shows. The largest error is far below the precision of float64.
    """
    most = np.floor(n * (1 - d))
    middle, width = _bell(n, d)
    first = np.maximum(0.0, np.floor(middle - _WIDTHS * width - _FEW))
    last = np.minimum(most, np.ceil(middle + _WIDTHS * width + _FEW))
    stride = np.maximum(1.0, np.floor((last - first) / _POINTS))
    steps = np.arange(int(((last - first) // stride).max()) + 1, dtype=np.float64)
    j = first[:, None] + stride[:, None] * steps
    terms = np.where(j <= last[:, None], _log_terms(n, np.minimum(j, last[:, None]), d[:, None]), -np.inf)
    largest = terms.max(axis=1)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(terms - shift[:, None]).sum(axis=1)) + np.log(stride)


def _bell(n: int, d: Floats) -> tuple[Floats, Floats]:
    """The place j of the largest term, roughly, and the standard deviation of the bell there.

    A term is about exp(n f(u)) with ``f(u) = u log((u + d) / u) + (1 - u) log((1 - u - d) / (1 - u))``, which is
    concave. So the zero of its derivative is found by halving, to a small part of the width, which is n^(1/2) or less.
    """
    low, high = np.zeros(d.size), 1 - d
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_HALVINGS + n.bit_length() // 2):
            u = (low + high) / 2
            rest = 1 - u - d
            rising = np.log1p(d / u) + np.log((1 - u) / rest) - d / (u + d) - d / rest > 0
            low, high = np.where(rising, u, low), np.where(rising, high, u)
        u = (low + high) / 2
        rest = 1 - u - d
        curvature = d**2 * (1 / (u * (u + d) ** 2) + 1 / ((1 - u) * rest**2))
        width = np.sqrt(n / curvature)
    return n * u, np.where(np.isfinite(width), width, 0.0)


def _log_terms(n: int, j: Floats, d: Floats) -> Floats:
    """Logarithms of the terms. They are sums of numbers that are no larger than the result, so no digits are lost."""
    some = np.maximum(j, 1.0)
    u, left = some / n, n - some
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = d / u, np.minimum(d / (1 - u), 1.0)
        binomial = 0.5 * np.log(n / (2 * math.pi * some * left))
        binomial += stirling_error(np.array([float(n)])) - stirling_error(some) - stirling_error(left)
        terms = binomial + some * _log1p_minus(above) + left * _log1p_minus(-below) + np.log(d / (d + u))
        return np.where(j > 0, terms, n * np.log1p(-d))


def _log1p_minus(x: Floats) -> Floats:
    """``log(1 + x) - x`` without cancellation. With r = x / (2 + x) it is ``2 (r^3/3 + r^5/5 + ...) - r x``."""
    r = x / (2 + x)
    square = r * r
    series = np.full_like(x, 1 / 15)
    for odd in (13, 11, 9, 7, 5, 3):
        series = series * square + 1 / odd
    value = r * (2 * square * series - x)
    far = np.abs(x) > 0.2
    if far.any():
        value[far] = np.log1p(x[far]) - x[far]
    return value


def stirling_error(k: Floats) -> Floats:
    """``log k!`` minus Stirling's formula ``(k + 1/2) log k - k + log(2 pi) / 2``, for integers k >= 0. It is 0 for 0.

    So the logarithms of binomial coefficients need no differences of large numbers.
    """
    inverse = 1 / np.maximum(k, 1.0)
    square = inverse * inverse
    error = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    small = k < _SERIES
    if small.any():
        error[small] = _EXACT_ERRORS[k[small].astype(np.int64)]
    return error
