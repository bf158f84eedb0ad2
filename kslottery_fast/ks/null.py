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
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # scipy.special, which is slow to import, is imported when it is first used

from .kolmogorov import kolmogorov_pvalues
from .lattice import lattice_pvalues

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MAX_AUTO_N = 10_000  # scipy: 'auto' is exact up to here
_DENSE = 1 << 16  # tables of all counts, 1.1 MB each at most, of which 8 are kept
METHODS = ("exact", "asymp", "paper")


def resolve_method(n: int, m: int, alternative: str, method: str, *, certain: bool = False) -> tuple[str, str | None]:
    """Tell what a method computes for these sizes, with "auto" resolved, and scipy's warning if it falls back.

    scipy also falls back for one-sided tests with n != m whose number of lattice paths overflows float64. That is a
    limit of its arithmetic, which this package does not have. For "auto" it is kept, so that the numbers are those of
    scipy. ``certain`` means that all counts are 0. Then p is 1, and scipy does not get that far.
    """
    if method == "exact":
        g = math.gcd(n, m)
        if n // g >= np.iinfo(np.int32).max / (m // g):
            sizes = f"samples sizes {n} and {m}"
            return "asymp", f"Exact ks_2samp calculation not possible with {sizes}. Switching to 'asymp'."
    if method != "auto":
        return method, None
    if max(n, m) > MAX_AUTO_N:
        return "asymp", None
    if not certain and alternative != "two-sided" and n != m and np.isinf(scipy.special.binom(n + m, n)):
        return "asymp", "ks_2samp: Exact calculation unsuccessful. Switching to method=asymp."
    return "exact", None


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
    if math.lcm(n, m) <= _DENSE:
        return _dense_pvalues(counts, n, m, one_sided, method)
    distinct, inverse = np.unique(counts, return_inverse=True)
    memory = _memory(n, m, one_sided, method)
    known = memory.table
    new = distinct[~np.isin(distinct, known.counts, assume_unique=True)]
    if new.size:
        known = memory.table = known.merged(_Table(new, *_compute(new, n, m, one_sided, method)))
    places = np.searchsorted(known.counts, distinct)[inverse.reshape(-1)].reshape(counts.shape)
    return known.p[places], known.log_p[places]


def _dense_pvalues(counts: Integers, n: int, m: int, one_sided: bool, method: str) -> tuple[Floats, Floats]:
    """The same from a table that has a place for every count. Looking up thousands of counts needs no sort."""
    p, log_p, known = _dense_table(n, m, one_sided, method)
    if not known[counts].all():
        new = np.flatnonzero(np.bincount(counts[~known[counts]].reshape(-1)))
        p[new], log_p[new] = _compute(new, n, m, one_sided, method)
        known[new] = True  # last, so that other threads see whole entries
    return p[counts], log_p[counts]


@lru_cache(maxsize=8)
def _dense_table(n: int, m: int, one_sided: bool, method: str) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """P-values, their logarithms and whether they are known, for each count. They are filled as they are asked for."""
    size = math.lcm(n, m) + 1
    return np.empty(size), np.empty(size), np.zeros(size, dtype=bool)


class _Table(NamedTuple):
    """Counts, which rise, with their p-values and the logarithms of these."""

    counts: Integers
    p: Floats
    log_p: Floats

    def merged(self, other: _Table) -> _Table:
        """A table with the counts of both, which have none in common."""
        columns = [np.concatenate(pair) for pair in zip(self, other, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return _Table(*(column[order] for column in columns))


@dataclass
class _Memory:
    """The table that is known so far. A thread replaces it as a whole, so that others never see a part of it."""

    table: _Table


@lru_cache(maxsize=64)
def _memory(n: int, m: int, one_sided: bool, method: str) -> _Memory:
    """What is known about one (n, m, alternative, method). It is filled as counts are asked for."""
    return _Memory(_Table(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0)))


def _compute(counts: Integers, n: int, m: int, one_sided: bool, method: str) -> tuple[Floats, Floats]:
    if method == "exact":
        return lattice_pvalues(counts, n, m, one_sided)
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
    size = round(effective)
    if size == 0:  # n = m = 1: scipy gives NaN
        return np.full(counts.shape, np.nan), np.full(counts.shape, np.nan)
    return kolmogorov_pvalues(size, d)


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
        table[:2] = 0.0  # D >= 1/n is certain
        # Rounding must not make p rise anywhere.
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
