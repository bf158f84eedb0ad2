"""Null distributions of the two-sample Kolmogorov-Smirnov statistic, over integer counts.

For samples of n and m values, with g = gcd(n, m) and lcm = n * m / g, every statistic is D = h / lcm with an integer h.
So a p-value is a function of (h, n, m, alternative, method). It is computed once for each distinct h and remembered.

References
----------
.. [1] J. L. Hodges, "The significance probability of the Smirnov two-sample test", Arkiv foer Matematik 3 (1958).
.. [2] B. V. Gnedenko, V. S. Korolyuk, "On the maximum discrepancy between two empirical distributions" (1951).
.. [3] ``scipy.stats.ks_2samp``, whose choices of method are followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy  # scipy.special and scipy.stats, the slow parts, are imported when they are first used

from kslottery_fast.ops import native

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MAX_AUTO_N = 10_000  # scipy: 'auto' is exact up to here
METHODS = ("exact", "asymp", "paper")
_TINY = 1e-280  # below this a p-value in float64 is close to underflow, so its logarithm is computed separately
_FEW_TERMS = 512  # a sum of so few terms is not worth narrowing down
_NEGLIGIBLE = 50.0  # terms whose logarithm is smaller than the largest by this much do not count in float64
_CHUNK = 64  # counts per pass over the lattice; so many keep the working set in the L2 cache


def resolve_method(n: int, m: int, alternative: str, method: str, *, certain: bool = False) -> tuple[str, str | None]:
    """Tell what a method computes for these sizes, with "auto" resolved, and scipy's warning if it falls back.

    scipy also falls back for one-sided tests with n != m whose number of lattice paths overflows float64. That is a
    limit of its arithmetic, which this package does not have. It is kept so that the numbers are those of scipy.
    ``certain`` means that all counts are 0. Then p is 1, and scipy does not get that far.
    """
    if method == "auto":
        method = "exact" if max(n, m) <= MAX_AUTO_N else "asymp"
    elif method == "exact":
        g = math.gcd(n, m)
        if n // g >= np.iinfo(np.int32).max / (m // g):
            sizes = f"samples sizes {n} and {m}"
            return "asymp", f"Exact ks_2samp calculation not possible with {sizes}. Switching to 'asymp'."
    overflows = alternative != "two-sided" and n != m and np.isinf(scipy.special.binom(n + m, n))
    if method == "exact" and overflows and not certain:
        return "asymp", "ks_2samp: Exact calculation unsuccessful. Switching to method=asymp."
    return method, None


def null_pvalues(counts: Integers, n: int, m: int, alternative: str, method: str) -> tuple[Floats, Floats]:
    """Return P(statistic >= h / lcm) under the null hypothesis, and its natural logarithm, for each count h.

    Parameters
    ----------
    counts : array
        int64 of any shape, 0 <= h <= lcm(n, m).
    n, m : int
        Sample sizes, at least 1.
    alternative : {"two-sided", "less", "greater"}
        The two one-sided distributions are equal, as a lattice path turned by 180 degrees shows.
    method : {"exact", "asymp", "paper"}
        ``"paper"`` is Smirnov's limit ``2 exp(-2 D^2 n m / (n + m))``, the inverse of the paper's threshold tau(alpha).

    Returns
    -------
    pvalue, log_pvalue : array
        float64, of the shape of ``counts``. ``log_pvalue`` is right even where ``pvalue`` underflows to 0.
    """
    one_sided = alternative != "two-sided"
    if method == "exact" and n == m:
        log_p = _equal_sizes_table(n, one_sided)[counts]
        return np.exp(log_p), log_p
    distinct, inverse = np.unique(counts, return_inverse=True)
    known = _memory(n, m, one_sided, method)
    new = np.array([h for h in distinct.tolist() if h not in known], dtype=np.int64)
    if new.size:
        known.update(zip(new.tolist(), zip(*_compute(new, n, m, one_sided, method), strict=True), strict=True))
    values = np.array([known[h] for h in distinct.tolist()], dtype=np.float64).reshape(-1, 2)[inverse.reshape(-1)]
    return values[:, 0].reshape(counts.shape), values[:, 1].reshape(counts.shape)


@lru_cache(maxsize=64)
def _memory(n: int, m: int, one_sided: bool, method: str) -> dict[int, tuple[float, float]]:
    """The table h -> (p, log p) of one (n, m, alternative, method). It is filled as counts are asked for."""
    return {}


def _compute(counts: Integers, n: int, m: int, one_sided: bool, method: str) -> tuple[Floats, Floats]:
    if method == "exact":
        return _lattice_pvalues(counts, n, m, one_sided)
    lcm = math.lcm(n, m)
    d = counts / lcm
    small, large = sorted((float(n), float(m)))
    effective = large * small / (large + small)
    if method == "paper":
        log_p = np.minimum(0.0, math.log(2) - 2 * effective * d**2)
        return np.exp(log_p), log_p
    if one_sided:  # Hodges (1958), equation 5.3, with the larger sample size first
        z = math.sqrt(effective) * d
        log_p = -2 * z**2 - 2 * z * (large + 2 * small) / math.sqrt(large * small * (large + small)) / 3
        return np.exp(log_p), log_p
    size = np.round(effective)
    if size == 0:  # n = m = 1: scipy gives NaN
        return np.full(counts.shape, np.nan), np.full(counts.shape, np.nan)
    p = np.clip(scipy.stats.kstwo.sf(d, size), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    for index in np.flatnonzero(p < _TINY):  # paths that cross both sides are too rare to matter here
        log_p[index] = math.log(2) + _log_smirnov(int(size), float(d[index]))
    return p, log_p


@lru_cache(maxsize=64)
def _equal_sizes_table(n: int, one_sided: bool) -> Floats:
    """Natural logarithm of P(n D >= h), h = 0..n, by the closed form of Gnedenko and Korolyuk.

    With T(a) = C(2n, n - a) / C(2n, n), the one-sided value is T(h). The two-sided value is
    2 [T(h) - T(2h) + T(3h) - ...].
    """
    log_t = _log_binomial_ratios(n)
    table = log_t
    if not one_sided:
        t = np.exp(log_t)
        # The terms after the first, with one strided sum over all h for each k. T(a) is about exp(-a^2 / n). Beyond
        # `last` it is under 1e-25. Where T(2h) is so small, T(h) is about its fourth root, so 1e-18 of the result is
        # dropped.
        last = int(np.searchsorted(-log_t, 57.6))
        rest = np.zeros(n + 1)
        for k in range(2, min(n, last) + 1):
            terms = t[k::k]
            if k % 2:
                rest[1 : terms.size + 1] -= terms
            else:
                rest[1 : terms.size + 1] += terms
        # Where T underflows, `rest` is exactly 0 and only the first term counts.
        table = np.log(2) + log_t + np.log1p(-rest / np.maximum(t, np.finfo(np.float64).tiny))
        table[0] = 0.0
        # D >= 1/n is certain, and rounding must not make p rise anywhere.
        table = np.minimum.accumulate(np.minimum(table, 0.0))
    table.flags.writeable = False  # every caller shares it
    return table


def _log_binomial_ratios(n: int) -> Floats:
    """Natural logarithm of C(2n, n - a) / C(2n, n), a = 0..n, as a running sum of log[(n - j) / (n + j + 1)].

    A running sum of floats would lose ten bits on the way down to -2 n log 2. Here the leading part is added exactly,
    in integers. Only the rounding of the single logarithms and of the result remains.
    """
    j = np.arange(n, dtype=np.float64)
    near_one = np.log1p(-(2 * j + 1) / (n + j + 1))
    steps = np.where(2 * j < n, near_one, np.log((n - j) / (n + j + 1)))
    scale = 2.0 ** (62 - (2 * n).bit_length())
    leading = np.rint(steps * scale)
    total = np.cumsum(leading.astype(np.int64)) / scale + np.cumsum(steps - leading / scale)
    return np.concatenate([[0.0], total])


def _lattice_pvalues(counts: Integers, n: int, m: int, one_sided: bool) -> tuple[Floats, Floats]:
    p, log_p = _path_pvalues(counts, n, m, one_sided)
    deep = np.flatnonzero(np.isnan(log_p))
    for start in range(0, deep.size, _CHUNK):
        chunk_ids = deep[start : start + _CHUNK]
        log_p[chunk_ids] = _outside_probability(counts[chunk_ids], n, m, one_sided, _log_step)
    return p, log_p


def _path_pvalues(counts: Integers, n: int, m: int, one_sided: bool) -> tuple[Floats, Floats]:
    """P-values and their logarithms, by the native library or, without it, by numpy.

    The logarithm is NaN if the p-value underflows even in the native library's widest type.
    """
    p, log_p, counts = np.empty(counts.size), np.empty(counts.size), np.ascontiguousarray(counts)
    if (call := native.caller()) is None:
        for start in range(0, counts.size, _CHUNK):  # distinct counts are sorted, so a chunk's bands are alike
            chunk = slice(start, start + _CHUNK)
            p[chunk] = _outside_probability(counts[chunk], n, m, one_sided, _step)
        with np.errstate(divide="ignore"):
            log_p = np.where(p < _TINY, np.nan, np.log(p))
    else:
        sizes = counts.size, n, m, one_sided
        call("ks_outside_probability", counts.ctypes.data, *sizes, p.ctypes.data, log_p.ctypes.data)
    return p, log_p


def _step(from_left: Floats, from_below: Floats, i: Floats, j: Floats) -> Floats:
    return (from_left * i + from_below * j) / (i[0] + j[0])  # i + j is the same all along an antidiagonal


def _log_step(from_left: Floats, from_below: Floats, i: Floats, j: Floats) -> Floats:
    with np.errstate(divide="ignore"):  # log 0 = -inf is the right weight on the two axes
        return np.logaddexp(from_left + np.log(i / (i + j)), from_below + np.log(j / (i + j)))


def _outside_probability(
    counts: Integers,
    n: int,
    m: int,
    one_sided: bool,
    step: Callable[[Floats, Floats, Floats, Floats], Floats],
) -> Floats:
    """Probability that a random lattice path from (0, 0) to (n, m) meets i/n - j/m >= h/lcm (or its mirror image).

    The last step of a random path to (i, j) comes from (i-1, j) with probability i / (i + j). Hence
    ``P(i, j) = [i P(i-1, j) + j P(i, j-1)] / (i + j)`` inside the band, and 1 outside. These are sums of positive
    terms, without cancellation. One pass over the antidiagonals i + j = s serves all counts. The array holds
    P(i, s - i) by i, and only the band of the largest count is computed. ``step`` works on P (1 outside) or on log P (0
    outside).
    """
    g = math.gcd(n, m)
    ng, mg = n // g, m // g
    outside = 0.0 if step is _log_step else 1.0
    # Column i + 1 holds P(i, .), so that i - 1 exists for i = 0, where its weight is 0.
    path = np.full((counts.size, n + 2), outside)
    path[:, 1] = np.where(counts > 0, -np.inf if step is _log_step else 0.0, outside)
    # lcm * (i/n - j/m) = i (ng + mg) - s ng must stay under h, and with the mirror image also above -h.
    s_all, widest = np.arange(n + m + 1), int(counts.max()) - 1
    first = np.maximum(0, s_all - m)
    low = first if one_sided else np.maximum(first, -((widest - s_all * ng) // (ng + mg)))
    high = np.minimum(np.minimum(s_all, n), (s_all * ng + widest) // (ng + mg))
    if (low > high).any():  # a whole antidiagonal is outside, and every path meets it
        return np.full(counts.size, outside)
    i_all = np.arange(n + 1, dtype=np.float64)
    levels = counts[:, None]
    for s, lo, hi, left_end in zip(s_all.tolist(), low.tolist(), high.tolist(), first.tolist(), strict=True):
        if s == 0:
            continue
        i = i_all[lo : hi + 1]
        new = step(path[:, lo : hi + 1], path[:, lo + 1 : hi + 2], i, s - i)
        if counts.size > 1:  # the band is that of the largest count
            difference = i * (ng + mg) - s * ng  # exact: far below 2^53
            new[(difference if one_sided else np.abs(difference)) >= levels] = outside
        path[:, lo + 1 : hi + 2] = new
        if lo > left_end:  # the band moves up by at most one column per step; the one that it leaves is outside now
            path[:, lo] = outside
    return path[:, n + 1]


def _log_smirnov(n: int, d: float) -> float:
    """Natural logarithm of P(D+ >= d), d > 0, for one sample of n values (Birnbaum and Tingey 1951)."""
    if d >= 1:
        # Only the term j = 0 is left. It is (1 - d)^n, which is 0 at d = 1.
        return -math.inf
    # The terms have one peak, about sqrt(n) wide. A coarse look finds where it is, and a finer one where it ends.
    low, high = 0, int(n * (1 - d))
    while high - low > _FEW_TERMS:
        j = np.unique(np.linspace(low, high, _FEW_TERMS // 2).astype(np.int64))
        terms = _log_smirnov_terms(j, n, d)
        near = np.flatnonzero(terms > terms.max() - _NEGLIGIBLE)
        narrower = int(j[max(near[0] - 1, 0)]), int(j[min(near[-1] + 1, j.size - 1)])
        if narrower[1] - narrower[0] > (high - low) // 2:
            break
        low, high = narrower
    total = -math.inf
    for start in range(low, high + 1, 1 << 20):  # in blocks, because n may be millions
        j = np.arange(start, min(start + (1 << 20), high + 1))
        total = float(np.logaddexp(total, scipy.special.logsumexp(_log_smirnov_terms(j, n, d))))
    return math.log(d) + total


def _log_smirnov_terms(j: Integers, n: int, d: float) -> Floats:
    binomials = scipy.special.gammaln(n + 1) - scipy.special.gammaln(j + 1) - scipy.special.gammaln(n - j + 1)
    room = np.maximum(1 - d - j / n, 0.0)  # rounding may put the last one below 0
    return binomials + scipy.special.xlogy(j - 1, d + j / n) + scipy.special.xlogy(n - j, room)
