"""Clopper-Pearson against scipy; the bootstrap against closed cases and an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.intervals import Interval, bootstrap_interval, clopper_pearson


def mean(sums):
    return sums[0] / sums[1]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 17), (17, 17), (3, 17), (48, 96), (1, 2000), (1999, 2000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize(("side", "alternative"), [("two-sided", "two-sided"), ("lower", "greater"), ("upper", "less")])
def test_clopper_pearson_equals_scipy(k, n, confidence, side, alternative):
    wanted = binomtest(k, n, alternative=alternative).proportion_ci(confidence, method="exact")
    interval = clopper_pearson(k, n, confidence, side=side)
    assert interval.value == k / n
    assert interval.low == pytest.approx(wanted.low, rel=1e-7, abs=1e-12)
    assert interval.high == pytest.approx(wanted.high, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_clopper_pearson_refuses_impossible_counts(k, n):
    with pytest.raises(InputError, match=f"successes is {k} and trials is {n}: expected 0 <= successes <= trials"):
        clopper_pearson(k, n)


def test_clopper_pearson_refuses_an_unknown_side():
    with pytest.raises(InputError, match="side is 'left': expected 'two-sided', 'lower' or 'upper'"):
        clopper_pearson(1, 2, side="left")  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, float("nan")])
def test_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(InputError, match=r"confidence is .*: expected a number strictly between 0 and 1"):
        clopper_pearson(1, 2, confidence)
    with pytest.raises(InputError, match=r"confidence is .*: expected a number strictly between 0 and 1"):
        bootstrap_interval([[1, 1]], mean, confidence=confidence)


def test_bootstrap_of_equal_sentences_has_zero_width():
    assert bootstrap_interval([[3, 2]] * 50, mean) == Interval(1.5, 1.5, 1.5)


def test_bootstrap_of_one_sentence_has_zero_width():
    assert bootstrap_interval([[0.1, 3.0]], mean) == Interval(0.1 / 3.0, 0.1 / 3.0, 0.1 / 3.0)


def test_bootstrap_is_the_percentile_interval_of_naive_resampling():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.exponential(size=40), rng.integers(1, 9, size=40)])
    interval = bootstrap_interval(table, mean, n_bootstrap=4000, seed=1, confidence=0.9)
    naive = np.random.default_rng(99)
    scores = []
    for _ in range(4000):
        draw = table[naive.integers(40, size=40)]
        scores.append(draw[:, 0].sum() / draw[:, 1].sum())
    low, high = np.quantile(scores, [0.05, 0.95])
    width = high - low
    assert interval.value == pytest.approx(table[:, 0].sum() / table[:, 1].sum())
    assert interval.low == pytest.approx(low, abs=0.05 * width)
    assert interval.high == pytest.approx(high, abs=0.05 * width)


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(np.column_stack([values, np.ones(400)]), mean, n_bootstrap=4000)
    wanted = 2 * norm.ppf(0.975) * values.std() / 20
    assert interval.high - interval.low == pytest.approx(wanted, rel=0.06)


def test_bootstrap_repeats_with_its_seed_and_differs_with_another():
    table = np.random.default_rng(0).random((30, 2))
    assert bootstrap_interval(table, mean, seed=3) == bootstrap_interval(table, mean, seed=3)
    assert bootstrap_interval(table, mean, seed=3) != bootstrap_interval(table, mean, seed=4)


def test_two_systems_are_resampled_in_pairs():
    """If B is A plus a constant in every sentence, both ends of its interval are A's plus the constant."""
    a = np.random.default_rng(0).integers(0, 50, size=60)
    one = bootstrap_interval(np.column_stack([a, np.ones_like(a)]), mean)
    two = bootstrap_interval(np.column_stack([a + 7, np.ones_like(a)]), mean)
    assert two.low == pytest.approx(one.low + 7, abs=1e-9)
    assert two.high == pytest.approx(one.high + 7, abs=1e-9)


def test_the_interval_always_holds_the_value():
    """A score with a large bias under resampling: the number of different sentences."""
    interval = bootstrap_interval(np.eye(20, dtype=int), lambda sums: float((sums > 0).sum()))
    assert interval.value == interval.high == 20
    assert interval.low < 15


@pytest.mark.parametrize("statistics", [np.empty((0, 2)), [], [1.0, 2.0]])
def test_bootstrap_refuses_anything_but_a_matrix_with_rows(statistics):
    with pytest.raises(InputError, match=r"statistics has the shape .*: expected numbers \[sentences, statistics\]"):
        bootstrap_interval(statistics, mean)


def test_bootstrap_refuses_a_bad_number_of_resamples():
    with pytest.raises(InputError, match="n_bootstrap is 0: expected at least 1"):
        bootstrap_interval([[1, 1]], mean, n_bootstrap=0)
    with pytest.raises(TypeError, match=r"n_bootstrap is 1000\.0: expected an integer"):
        bootstrap_interval([[1, 1]], mean, n_bootstrap=1e3)  # type: ignore[arg-type]


def test_an_interval_survives_its_dict_and_refuses_others():
    interval = Interval(0.5, 0.25, 0.75)
    assert Interval.from_dict(interval.to_dict()) == interval
    for bad in ({"value": 1.0}, None, {"value": "x", "low": 0, "high": 1}):
        with pytest.raises(InputError, match="data is not an interval: it needs the numbers 'value', 'low' and 'high'"):
            Interval.from_dict(bad)  # type: ignore[arg-type]
