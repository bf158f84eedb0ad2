"""The lower bound for a mean of shares: its coverage by simulation, its order-freeness, what it refuses."""

import functools
import math

import numpy as np
import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.intervals import clopper_pearson, mean_lower_bound


@functools.cache
def low_of(shares):
    """The bound of a sorted sample: order does not matter, and few samples of shares of all or nothing differ."""
    return mean_lower_bound(shares, 0.9).low


DRAWS = {
    "shares near 1": (lambda rng, n: np.where(rng.random(n) < 0.03, 0.2, 1.0), 0.976),
    "all or nothing": (lambda rng, n: (rng.random(n) < 0.7).astype(float), 0.7),
    "in between": (lambda rng, n: rng.beta(6, 2, n), 0.75),
    "rarely anything": (lambda rng, n: (rng.random(n) < 0.02).astype(float), 0.02),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [3, 40])
def test_the_bound_is_above_the_true_mean_in_at_most_the_stated_share_of_samples(name, n):
    draw, truth = DRAWS[name]
    rng = np.random.default_rng(0)
    wrong = sum(low_of(tuple(sorted(draw(rng, n).tolist()))) > truth for _ in range(300))
    assert wrong <= 0.1 * 300


def test_clusters_of_positions_are_covered_where_a_binomial_over_positions_is_not():
    """Sentences of 20 positions that agree all or not at all, 80% of them: the unit is the sentence."""
    rng = np.random.default_rng(1)
    samples = [(rng.random(30) < 0.8).astype(float) for _ in range(200)]
    naive = sum(clopper_pearson(int(20 * s.sum()), 600, 0.95, side="lower").low > 0.8 for s in samples)
    ours = sum(mean_lower_bound(s, 0.95).low > 0.8 for s in samples)
    assert naive > 0.2 * 200
    assert ours <= 0.05 * 200


def test_the_bound_falls_as_confidence_rises_and_rises_with_the_sample():
    shares = [0.9, 1.0, 0.8, 1.0, 0.95]
    bounds = [mean_lower_bound(shares, confidence).low for confidence in (0.8, 0.9, 0.99)]
    assert bounds == sorted(bounds, reverse=True)
    assert mean_lower_bound(shares * 20).low > mean_lower_bound(shares).low
    assert mean_lower_bound(shares * 2000).low == pytest.approx(0.93, abs=0.005)


def test_one_draw_is_bounded_as_markovs_inequality_says():
    """With one share of 1 the best gambler stakes all: 1/x >= 20 refutes x <= 1/20, and a mixture refutes less."""
    low = mean_lower_bound([1.0], 0.95).low
    assert 0 < low < 1 / 20


def test_order_does_not_matter_and_extremes_are_extremes():
    shares = np.random.default_rng(3).random(50)
    assert mean_lower_bound(shares) == mean_lower_bound(shares[::-1])
    assert mean_lower_bound([0.0, 0.0]).low == 0
    everything = mean_lower_bound([1.0] * 1000)
    assert everything.value == everything.high == 1
    assert 1 - math.log(20) / 1000 * 2.5 < everything.low < 1 - math.log(20) / 1000


def test_shares_outside_the_unit_interval_are_refused():
    for shares in ([], [1.1], [-0.1], [float("nan")], [[0.5]]):
        with pytest.raises(InputError, match=r"shares .*: expected numbers in \[0, 1\]"):
            mean_lower_bound(shares)
    with pytest.raises(InputError, match="confidence is 1"):
        mean_lower_bound([0.5], 1)
