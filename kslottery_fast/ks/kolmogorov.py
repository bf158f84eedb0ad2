"""Kolmogorov's distribution of one sample of n values, for many statistics at once: scipy's ``kstwo.sf``.

It is the asymptotic distribution of ks_2samp, with n = round(n m / (n + m)).

References
----------
.. [1] R. Simard, P. L'Ecuyer, "Computing the two-sided Kolmogorov-Smirnov distribution" (2011). Which method applies
   where is decided as in scipy.
.. [2] G. Marsaglia, W. W. Tsang, J. Wang, "Evaluating Kolmogorov's distribution" (2003).
.. [3] W. Pelz, I. J. Good, "Approximating the lower tail-areas of the Kolmogorov-Smirnov one-sample statistic" (1976).
"""

from __future__ import annotations

import math

import numpy as np

from .smirnov import Floats, log_smirnov, stirling_error

_SMALL_N = 140
_UNDERFLOW = 370.0  # n d^2 from which scipy returns 0 for larger n
_CERTAIN = 0.04  # below this n d^2, 1 - p is under 1e-12
_TERMS = 7  # terms of series that end where n d^2 < 2.2


def kolmogorov_pvalues(n: int, d: Floats) -> tuple[Floats, Floats]:
    """P(D >= d) for one sample of n values, n >= 1, and its natural logarithm, for each statistic of the vector d.

    The logarithm is right even where p underflows to 0.
    """
    t = n * d
    squared = t * d
    corner = (t > 0.5) & (t <= 1)
    beyond = squared > 4.0 if n <= _SMALL_N else squared >= 2.2
    tail = (t > 1) & (beyond | (d >= 0.5) | (t >= n - 1))
    body = (t > 1) & ~tail
    p, log_p = np.ones(d.size), np.zeros(d.size)
    log_p[tail] = np.minimum(0.0, math.log(2) + log_smirnov(n, d[tail]))  # no sample crosses both sides
    p[tail] = np.exp(log_p[tail])
    if n > _SMALL_N:
        p[tail & (d < 0.5) & (squared >= _UNDERFLOW)] = 0.0
    p[corner] = 1.0 - np.exp(_log_factorial_ratio(n) + n * np.log(2 * t[corner] - 1))
    p[body] = np.clip(_body(n, d[body]), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        log_p[~tail] = np.log(p[~tail])
    return p, log_p


def _body(n: int, d: Floats) -> Floats:
    if n <= _SMALL_N:
        return 1.0 - _matrix_cdf(n, d)
    exact = (n <= 100_000) & (n * d**1.5 <= 1.4) & (n * d * d > _CERTAIN)
    cdf = np.empty(d.size)
    cdf[exact], cdf[~exact] = _matrix_cdf(n, d[exact]), _pelz_good_cdf(n, d[~exact])
    return 1.0 - cdf


def _log_factorial_ratio(n: int) -> float:
    """Natural logarithm of n! / n^n."""
    return 0.5 * math.log(2 * math.pi * n) - n + float(stirling_error(np.array([float(n)]))[0])


def _matrix_cdf(n: int, d: Floats) -> Floats:
    """P(D < d) by Marsaglia, Tsang and Wang [2]_. Statistics with matrices of one size share the work.

    With k = ceil(n d) and h = k - n d, it is n! / n^n times the middle entry of H^n, where H has 2 k - 1 rows.
    """
    cdf = np.empty(d.size)
    sizes = np.floor(n * d).astype(np.int64) + 1
    for k in np.unique(sizes).tolist():
        chosen = sizes == k
        common, column, row, both = _matrices(k, k - n * d[chosen])
        if n <= _SMALL_N:
            cdf[chosen] = _by_steps(n, k, common, column, row, both) * (math.factorial(n) / n**n)
        else:
            matrices = np.repeat(common[None], column.shape[1], axis=0)
            matrices[:, :, 0] -= column.T
            matrices[:, -1] -= row.T
            matrices[:, -1, 0] += both
            cdf[chosen] = np.exp(_log_middle_of_power(n, k, matrices) + _log_factorial_ratio(n))
    return cdf


def _matrices(k: int, h: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Parts of the matrices H: what they share, and what each subtracts in column and row and adds where both meet."""
    m = 2 * k - 1
    reciprocal = np.array([1 / math.factorial(i) for i in range(m + 1)])
    offsets = np.subtract.outer(np.arange(m), np.arange(m)) + 1
    common = np.where(offsets >= 0, reciprocal[np.maximum(offsets, 0)], 0.0)
    powers = h ** np.arange(m + 1)[:, None] * reciprocal[:, None]  # h^i / i!
    column, row = powers[1:], powers[:0:-1]
    return common, column, row, np.maximum(2 * h - 1, 0.0) ** m * reciprocal[m]


def _by_steps(n: int, k: int, common: Floats, column: Floats, row: Floats, both: Floats) -> Floats:
    """The middle entries of H^n, by n products of H and vectors, which lose the fewest digits."""
    vectors = np.zeros_like(column)
    vectors[k - 1] = 1.0
    for _ in range(n):
        product = common @ vectors
        product -= column * vectors[0]
        product[-1] += both * vectors[0] - (row * vectors).sum(axis=0)
        vectors = product
    return vectors[k - 1]


def _log_middle_of_power(n: int, k: int, matrices: Floats) -> Floats:
    """Natural logarithms of the middle entries of H^n, by squaring. The powers of 2 in its entries are kept apart."""
    power, exponent = np.broadcast_to(np.eye(matrices.shape[1]), matrices.shape), np.zeros(len(matrices))
    square, square_exponent = matrices, np.zeros(len(matrices))
    while True:
        if n % 2:
            power, exponent = _scaled(power @ square, exponent + square_exponent)
        n //= 2
        if n == 0:
            with np.errstate(divide="ignore"):
                return np.log(power[:, k - 1, k - 1]) + exponent * math.log(2)
        square, square_exponent = _scaled(square @ square, 2 * square_exponent)


def _scaled(matrices: Floats, exponent: Floats) -> tuple[Floats, Floats]:
    shift = np.frexp(matrices.max(axis=(1, 2)))[1]
    return np.ldexp(matrices, -shift[:, None, None]), exponent + shift


def _pelz_good_cdf(n: int, d: Floats) -> Floats:
    """P(D < d) = K0 + K1 / n^(1/2) + K2 / n + K3 / n^(3/2) at z = d n^(1/2), n d^2 < 2.2, by Pelz and Good [3]_."""
    z = math.sqrt(n) * d
    z2 = z * z
    odd = (np.arange(_TERMS) + 0.5) ** 2 * math.pi**2
    even = np.arange(1, _TERMS) ** 2 * math.pi**2
    a, b = odd[:, None], even[:, None]
    with np.errstate(under="ignore"):
        at_odd, at_even = np.exp(-a / (2 * z2)), np.exp(-b / (2 * z2))
    k0 = at_odd.sum(axis=0) / z
    k1 = ((a - z2) * at_odd).sum(axis=0) / (6 * z**4)
    k2 = ((6 * z**6 + 2 * z**4 + (2 * z**4 - 5 * z2) * a + (1 - 2 * z2) * a**2) * at_odd).sum(axis=0) / (72 * z**7)
    k2 -= (b * at_even).sum(axis=0) / (36 * z**3)
    third = (5 - 30 * z2) * a**3 + (212 * z**4 - 60 * z2) * a**2 + (135 * z**4 - 96 * z**6) * a
    k3 = ((third - 30 * z**6 - 90 * z**8) * at_odd).sum(axis=0) / (6480 * z**10)
    k3 += ((3 * z2 * b - b**2) * at_even).sum(axis=0) / (216 * z**6)
    root = 1 / math.sqrt(n)
    total = k0 + root * (k1 + root * (k2 + root * k3))
    return math.sqrt(2 * math.pi) * total  # sqrt(pi / 2), and each k stands for k and -k
