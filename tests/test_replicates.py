"""The paired bootstrap over sentences and seeds: against scipy, enumeration, and the bootstrap of single models."""

import itertools

import numpy as np
import pytest
import scipy.stats

from kslottery_fast.errors import InputError
from kslottery_fast.replicates import Replicates, crossed_bootstrap
from kslottery_fast.resampling import bootstrap_interval


def mean(sums):
    return sums[0] / sums[1]


def table(values) -> np.ndarray:
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], 1)


def test_with_one_seed_the_replicates_are_those_of_scipy_on_the_same_generator():
    values = np.random.default_rng(0).normal(size=12)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=300, rng=np.random.default_rng(7)
    )
    ours = crossed_bootstrap([table(values)], mean, n_bootstrap=300, seed=7)
    assert ours.draws == pytest.approx(theirs.bootstrap_distribution, abs=1e-12)
    low, high = theirs.confidence_interval
    assert (ours.interval().low, ours.interval().high) == pytest.approx((low, high))


def test_with_one_seed_a_paired_difference_has_the_interval_of_scipys_paired_bootstrap():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=10), rng.normal(1, 1, 10)
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda x, y: np.mean(x) - np.mean(y),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=300,
        rng=np.random.default_rng(7),
    )
    a, b = (crossed_bootstrap([table(x)], mean, n_bootstrap=300, seed=7) for x in (first, second))
    assert (a - b).draws == pytest.approx(theirs.bootstrap_distribution, abs=1e-12)


def test_with_one_seed_it_is_the_bootstrap_that_single_models_get():
    values = table(np.random.default_rng(2).normal(size=9))
    expected = bootstrap_interval(values, mean, n_bootstrap=100, seed=3)
    assert crossed_bootstrap([values], mean, n_bootstrap=100, seed=3).interval() == expected


def test_with_one_sentence_the_replicates_are_means_of_drawn_seeds():
    """Two seeds with scores 0 and 1: a replicate is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    found = crossed_bootstrap([table([0.0]), table([1.0])], mean, n_bootstrap=4000, seed=0)
    shares = [np.mean(found.draws == value) for value in (0, 0.5, 1)]
    assert found.value == 0.5
    assert sum(shares) == 1
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_seed_that_is_drawn_twice_counts_twice():
    """Three seeds with scores 0, 1 and 3: the means of all 27 draws, 1/3 for (0, 0, 1) among them."""
    found = crossed_bootstrap([table([score]) for score in (0.0, 1.0, 3.0)], mean, n_bootstrap=1000, seed=0)
    expected = {round(sum(draw) / 3, 9) for draw in itertools.product((0, 1, 3), repeat=3)}
    assert {round(draw, 9) for draw in found.draws} == expected


def test_the_spread_is_that_of_all_pairs_of_draws():
    """Two seeds, two sentences: all 16 equally probable replicates, enumerated."""
    scores = np.array([[0.0, 1.0], [2.0, 7.0]])
    every = [
        np.mean([scores[s][list(rows)].mean() for s in seeds])
        for seeds in itertools.product(range(2), repeat=2)
        for rows in itertools.product(range(2), repeat=2)
    ]
    found = crossed_bootstrap([table(row) for row in scores], mean, n_bootstrap=20_000, seed=0)
    assert found.value == scores.mean()
    assert set(found.draws) == set(every)
    assert found.draws.mean() == pytest.approx(np.mean(every), abs=0.03)
    assert found.draws.std() == pytest.approx(np.std(every), abs=0.03)


def test_models_of_one_and_of_several_seeds_are_resampled_on_the_same_sentences():
    values = np.random.default_rng(4).normal(size=20)
    one = crossed_bootstrap([table(values)], mean, n_bootstrap=50, seed=1)
    three = crossed_bootstrap([table(values + shift) for shift in (1, 1, 1)], mean, n_bootstrap=50, seed=1)
    assert (three - one).draws == pytest.approx(np.ones(50))


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, 100)  # how hard a sentence is, for both models
    first, second = table(hard + rng.normal(0, 0.1, 100)), table(hard)
    a = crossed_bootstrap([first], mean, n_bootstrap=200, seed=1)
    paired = a - crossed_bootstrap([second], mean, n_bootstrap=200, seed=1)
    unpaired = a - crossed_bootstrap([second], mean, n_bootstrap=200, seed=2)
    assert np.ptp(paired.draws) < np.ptp(unpaired.draws) / 20


def test_a_share_of_a_gain_that_may_be_nothing_is_refused():
    part = Replicates(1.0, np.array([1.0, 1.0]))
    assert part.share_of(Replicates(2.0, np.array([2.0, 4.0]))).draws.tolist() == [0.5, 0.25]
    assert part.share_of(Replicates(2.0, np.array([2.0, 0.0]))) is None
    assert part.share_of(Replicates(-1.0, np.array([2.0, 1.0]))) is None


def test_bad_tables_and_replicates_that_are_no_pairs_are_refused():
    for tables in ([], [table([1.0]), table([1.0, 2.0])], [np.empty((0, 2))], [np.zeros(3)]):
        with pytest.raises(InputError, match="tables have the shapes"):
            crossed_bootstrap(tables, mean)
    with pytest.raises(InputError, match="n_bootstrap is 0"):
        crossed_bootstrap([table([1.0])], mean, n_bootstrap=0)
    a, b = (Replicates(0.0, np.zeros(n)) for n in (3, 4))
    with pytest.raises(InputError, match="3 and 4 replicates are no pairs"):
        a - b
    with pytest.raises(InputError, match="confidence is 95"):
        a.interval(95)
