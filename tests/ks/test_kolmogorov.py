"""Kolmogorov's distribution of many statistics at once: against scipy, and against sums with 50 digits."""

from __future__ import annotations

import decimal
import math
import time

import numpy as np
import pytest
from scipy import special, stats

from kslottery_fast.ks.kolmogorov import kolmogorov_pvalues
from kslottery_fast.ks.null import null_pvalues
from kslottery_fast.ks.significance import pvalues
from kslottery_fast.ks.smirnov import log_smirnov


def statistics(n: int) -> np.ndarray:
    """Statistics of every method and of their borders."""
    z = np.concatenate(
        [np.linspace(0.05, 3, 25), np.sqrt([0.754693, 2.2, 2.1999, 2.2001, 3.999, 4.001, 18, 369.9, 370])]
    )
    d = np.concatenate([z / math.sqrt(n), [0.0, 0.4999, 0.5, 0.75, 1.0], np.array([0.4, 0.5, 0.9, 1.0, 1.1, 3.3]) / n])
    return np.unique(d[d <= 1])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 140, 141, 288, 857, 3000])
def test_pvalues_are_scipys_for_every_statistic(n: int) -> None:
    d = statistics(n)
    p, log_p = kolmogorov_pvalues(n, d)
    expected = np.clip(stats.kstwo.sf(d, n), 0.0, 1.0)
    np.testing.assert_allclose(p, expected, rtol=2e-11, atol=0)
    some = expected > 1e-290
    np.testing.assert_allclose(log_p[some], np.log(expected[some]), rtol=1e-12, atol=2e-11)
    assert (np.diff(log_p) < 1e-12).all()


@pytest.mark.parametrize("n", [20_000, 44_444, 150_000, 5_000_000])
def test_pvalues_of_long_samples_are_scipys(n: int) -> None:
    d = np.array([0.6, 0.9, 1.2, 1.4832] if n > 30_000 else [0.21, 0.25, 0.6, 1.2, 1.484, 3.0]) / math.sqrt(n)
    np.testing.assert_allclose(kolmogorov_pvalues(n, d)[0], stats.kstwo.sf(d, n), rtol=1e-12, atol=0)


def matrix_pvalue(n: int, d: float) -> float:
    """P(D >= d) by the matrix of Marsaglia, Tsang and Wang, with 50 digits."""
    with decimal.localcontext(prec=50):
        t = n * decimal.Decimal(d)
        k = int(t) + 1
        m, h, one = 2 * k - 1, k - t, decimal.Decimal(1)
        matrix = [[one if i - j + 1 >= 0 else 0 * one for j in range(m)] for i in range(m)]
        for i in range(m):
            matrix[i][0] -= h ** (i + 1)
            matrix[m - 1][i] -= h ** (m - i)
        matrix[m - 1][0] += max(2 * h - 1, 0 * one) ** m
        matrix = [[v / math.factorial(max(i - j + 1, 0)) for j, v in enumerate(row)] for i, row in enumerate(matrix)]
        vector = [one if i == k - 1 else 0 * one for i in range(m)]
        for _ in range(n):
            vector = [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]
        return float(1 - vector[k - 1] * math.factorial(n) / decimal.Decimal(n) ** n)


@pytest.mark.parametrize(("n", "d"), [(50, 0.01), (50, 0.05), (50, 0.23), (20, 0.43), (130, 0.1)])
def test_small_samples_are_right_to_13_digits(n: int, d: float) -> None:
    assert kolmogorov_pvalues(n, np.array([d]))[0][0] == pytest.approx(matrix_pvalue(n, d), rel=3e-13)


def test_pvalues_of_tables_are_the_distribution_of_half_as_many_values() -> None:
    expected = stats.kstwo.sf(np.array([1, 5, 60]) / 100, 50)
    np.testing.assert_allclose(pvalues([1, 5, 60], 100, "asymp"), expected, rtol=1e-13)
    assert pvalues(23, 100, "asymp").item() == pytest.approx(matrix_pvalue(50, 23 / 100), rel=1e-13)


def all_terms(n: int, d: float) -> float:
    """Logarithm of Smirnov's sum, with every term."""
    j = np.arange(int(n * (1 - d)) + 1)
    binomials = special.gammaln(n + 1) - special.gammaln(j + 1) - special.gammaln(n - j + 1)
    room = np.maximum(1 - d - j / n, 0.0)
    terms = binomials + special.xlogy(j - 1, d + j / n) + special.xlogy(n - j, room)
    return math.log(d) + float(special.logsumexp(terms))


@pytest.mark.parametrize(
    ("n", "d"), [(600, 0.5), (8192, 0.2), (8192, 0.31), (30_000, 0.9), (500_000, 0.05), (5_000, 0.999), (40, 0.975)]
)
def test_the_logarithm_of_a_strided_sum_is_that_of_all_terms(n: int, d: float) -> None:
    assert log_smirnov(n, np.array([d]))[0] == pytest.approx(all_terms(n, d), rel=1e-11)


@pytest.mark.parametrize("n", [5, 60, 141, 900, 6000])
def test_strided_sums_are_scipys_smirnov(n: int) -> None:
    d = np.array([z / math.sqrt(n) for z in (1.4833, 1.6, 2.0, 3.0, 5.0, 10.0, 17.0) if z < math.sqrt(n)])
    np.testing.assert_allclose(log_smirnov(n, d), np.log(special.smirnov(n, d)), rtol=1e-13, atol=1e-13)


def test_thousands_of_distinct_statistics_of_long_samples_take_less_than_a_second() -> None:
    counts = np.linspace(1_000, 60_000, 3_000).astype(np.int64)  # D up to 0.15, p down to 10^-434
    start = time.process_time()
    p, log_p = null_pvalues(counts, 100_000, 80_000, "two-sided", "asymp")
    assert time.process_time() - start < 1
    assert (np.diff(log_p) <= 0).all()
    assert p[-1] == 0
