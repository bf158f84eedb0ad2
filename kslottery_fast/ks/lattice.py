"""Exact p-values of samples of different sizes, by counting lattice paths.

In the pooled order of both samples a value of the first is a step to the right, and one of the second a step up. So the
orders are the lattice paths from (0, 0) to (n, m), all equally likely. D >= h / lcm means that the path meets the
outside, where ``i / n - j / m >= h / lcm``, or for two sides its mirror image.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kslottery_fast.ops import native

from .deep_paths import is_deep, log_outside_probability

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_CHUNK = 64  # counts per pass over the lattice; so many keep the working set in the L2 cache
_TINY = 1e-280  # below this a p-value in float64 is close to underflow, so its logarithm is computed separately


def lattice_pvalues(counts: Integers, n: int, m: int, one_sided: bool) -> tuple[Floats, Floats]:
    """Return P(lcm D >= h) and its natural logarithm for each h of the vector ``counts``."""
    deep = np.array([is_deep(h, n, m) for h in counts.tolist()], dtype=bool)
    p, log_p = np.empty(counts.size), np.full(counts.size, np.nan)
    p[~deep], log_p[~deep] = _path_pvalues(counts[~deep], n, m, one_sided)
    for index in np.flatnonzero(np.isnan(log_p)).tolist():
        log_p[index] = log_outside_probability(int(counts[index]), n, m, one_sided)
        p[index] = math.exp(log_p[index])
    return p, log_p


def _path_pvalues(counts: Integers, n: int, m: int, one_sided: bool) -> tuple[Floats, Floats]:
    """P-values and their logarithms, by the native library or, without it, by numpy.

    The logarithm is NaN if the p-value underflows even in the native library's widest type.
    """
    p, log_p, counts = np.empty(counts.size), np.empty(counts.size), np.ascontiguousarray(counts)
    if (call := native.caller()) is None:
        for start in range(0, counts.size, _CHUNK):  # distinct counts are sorted, so a chunk's bands are alike
            p[start : start + _CHUNK] = _outside_probability(counts[start : start + _CHUNK], n, m, one_sided)
        with np.errstate(divide="ignore"):
            log_p = np.where(p < _TINY, np.nan, np.log(p))
    elif counts.size:
        sizes = counts.size, n, m, one_sided
        call("ks_outside_probability", counts.ctypes.data, *sizes, p.ctypes.data, log_p.ctypes.data)
    return p, log_p


def _outside_probability(counts: Integers, n: int, m: int, one_sided: bool) -> Floats:
    """Probability that a random lattice path from (0, 0) to (n, m) meets the outside.

    The last step of a random path to (i, j) comes from (i-1, j) with probability i / (i + j). Hence
    ``P(i, j) = [i P(i-1, j) + j P(i, j-1)] / (i + j)`` inside the band, and 1 outside. These are sums of positive
    terms, without cancellation. One pass over the antidiagonals i + j = s serves all counts. The array holds
    P(i, s - i) by i, and only the band of the largest count is computed.
    """
    g = math.gcd(n, m)
    ng, mg = n // g, m // g
    # Column i + 1 holds P(i, .), so that i - 1 exists for i = 0, where its weight is 0.
    path = np.ones((counts.size, n + 2))
    path[:, 1] = counts <= 0
    # lcm * (i/n - j/m) = i (ng + mg) - s ng must stay under h, and with the mirror image also above -h.
    s_all, widest = np.arange(n + m + 1), int(counts.max()) - 1
    first = np.maximum(0, s_all - m)
    low = first if one_sided else np.maximum(first, -((widest - s_all * ng) // (ng + mg)))
    high = np.minimum(np.minimum(s_all, n), (s_all * ng + widest) // (ng + mg))
    if (low > high).any():  # a whole antidiagonal is outside, and every path meets it
        return np.ones(counts.size)
    i_all = np.arange(n + 1, dtype=np.float64)
    levels = counts[:, None]
    for s, lo, hi, left_end in zip(s_all.tolist(), low.tolist(), high.tolist(), first.tolist(), strict=True):
        if s == 0:
            continue
        i = i_all[lo : hi + 1]
        new = (path[:, lo : hi + 1] * i + path[:, lo + 1 : hi + 2] * (s - i)) / s
        if counts.size > 1:  # the band is that of the largest count
            difference = i * (ng + mg) - s * ng  # exact: far below 2^53
            new[(difference if one_sided else np.abs(difference)) >= levels] = 1.0
        path[:, lo + 1 : hi + 2] = new
        if lo > left_end:  # the band moves up by at most one column per step; the one that it leaves is outside now
            path[:, lo] = 1.0
    return path[:, n + 1]
