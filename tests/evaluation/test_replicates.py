"""Replicates over sentences and seeds: against scipy's bootstrap and Student's t, and the coverage of intervals."""

import numpy as np
import pytest
import scipy.stats

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.intervals import Interval, bootstrap_interval
from kslottery_fast.evaluation.replicates import Replicates, replicates_over_seeds


def mean(sums):
    return sums[0] / sums[1]


def table(values) -> np.ndarray:
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], 1)


def test_with_one_seed_the_replicates_are_those_of_scipy_on_the_same_generator():
    values = np.random.default_rng(0).normal(size=12)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=300, rng=np.random.default_rng(7)
    )
    ours = replicates_over_seeds([table(values)], mean, n_bootstrap=300, seed=7)
    assert ours.draws[:, 0] == pytest.approx(theirs.bootstrap_distribution, abs=1e-12)
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
    a, b = (replicates_over_seeds([table(x)], mean, n_bootstrap=300, seed=7) for x in (first, second))
    assert (a - b).draws[:, 0] == pytest.approx(theirs.bootstrap_distribution, abs=1e-12)


def test_with_one_seed_it_is_the_bootstrap_that_single_models_get():
    values = table(np.random.default_rng(2).normal(size=9))
    expected = bootstrap_interval(values, mean, n_bootstrap=100, seed=3)
    assert replicates_over_seeds([values], mean, n_bootstrap=100, seed=3).interval() == expected


def seed_scores(*scores: float) -> list[np.ndarray]:
    """One sentence, scored by several seeds: no noise but that of the seeds."""
    return [table([score]) for score in scores]


@pytest.mark.parametrize("scores", [(1.0, 4.0), (1.0, 2.0, 6.0), (0.0, 1.0, 3.0, 3.0, 9.0)])
def test_without_noise_of_sentences_the_replicates_have_students_t_distribution(scores):
    found = replicates_over_seeds(seed_scores(*scores), mean, n_bootstrap=5000, seed=0)
    count, center, error = len(scores), np.mean(scores), scipy.stats.sem(scores)
    student = scipy.stats.t(count - 1, center, error)
    assert found.value == pytest.approx(center)
    assert found.draws.shape == (5000, 16)
    # 80,000 draws: the Kolmogorov-Smirnov distance exceeds 0.0069 in one of a thousand samples.
    assert scipy.stats.kstest(found.draws.ravel(), student.cdf).statistic < 0.0069
    for confidence in (0.5, 0.8, 0.95):
        bounds = found.interval(confidence)
        assert (bounds.low, bounds.high) == pytest.approx(student.interval(confidence), abs=0.05 * student.ppf(0.975))


def test_the_standard_deviation_of_replicates_is_that_of_students_t():
    scores = (0.0, 1.0, 3.0, 3.0, 9.0, 4.0, 4.5, 2.0)  # t(7): four moments, so that the sample's own is near
    found = replicates_over_seeds(seed_scores(*scores), mean, n_bootstrap=5000, seed=0)
    assert found.draws.std() == pytest.approx(scipy.stats.t(7, 0, scipy.stats.sem(scores)).std(), rel=0.01)


def test_a_paired_difference_has_the_t_interval_of_scipys_paired_test():
    """Two arms whose seeds rise and fall together: their difference is far surer than either."""
    first, second = (10.0, 20.0, 33.0), (9.0, 18.5, 32.0)
    a, b = (replicates_over_seeds(seed_scores(*x), mean, n_bootstrap=5000, seed=0) for x in (first, second))
    expected = scipy.stats.ttest_rel(first, second).confidence_interval()
    found = (a - b).interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert a.interval().high - a.interval().low > 20 * (found.high - found.low)


def test_seeds_that_agree_add_nothing_to_the_bootstrap_over_sentences():
    values = table(np.random.default_rng(2).normal(size=9))
    one = replicates_over_seeds([values], mean, n_bootstrap=100, seed=3)
    three = replicates_over_seeds([values] * 3, mean, n_bootstrap=100, seed=3)
    assert three.value == one.value
    assert (three - one).interval() == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_sentences"),
    [(3, 1.0, 0.05), (3, 0.05, 1.0), (5, 1.0, 0.6)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, of_seeds, of_sentences):
    """Noise mostly of the seeds, mostly of the sentences, and of both alike; the truth is 0."""
    rng, n, samples, covered = np.random.default_rng(1), 60, 600, 0
    for sample in range(samples):
        effect = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_sentences * n**0.5, n)
        found = replicates_over_seeds([table(row) for row in effect], mean, n_bootstrap=200, seed=sample)
        bounds = found.interval()
        covered += bounds.low <= 0 <= bounds.high
    assert 0.92 <= covered / samples <= 0.98


def test_models_of_one_and_of_several_seeds_are_resampled_on_the_same_sentences():
    values = np.random.default_rng(4).normal(size=20)
    one = replicates_over_seeds([table(values)], mean, n_bootstrap=50, seed=1)
    three = replicates_over_seeds([table(values + shift) for shift in (1, 1, 1)], mean, n_bootstrap=50, seed=1)
    assert (three - one).draws == pytest.approx(np.ones((50, 16)))


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, 100)  # how hard a sentence is, for both models
    first, second = table(hard + rng.normal(0, 0.1, 100)), table(hard)
    a = replicates_over_seeds([first], mean, n_bootstrap=200, seed=1)
    paired = a - replicates_over_seeds([second], mean, n_bootstrap=200, seed=1)
    unpaired = a - replicates_over_seeds([second], mean, n_bootstrap=200, seed=2)
    assert np.ptp(paired.draws) < np.ptp(unpaired.draws) / 20


def test_a_share_is_between_the_percentiles_of_the_paired_shares():
    part, whole = Replicates(1.0, np.array([[1.0], [3.0]])), Replicates(2.0, np.array([[2.0], [4.0]]))
    found = part.share_of(whole, confidence=0.5)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.6875))


def test_a_share_of_a_gain_that_may_be_nothing_is_refused():
    part = Replicates(1.0, np.array([[1.0], [1.0]]))
    assert part.share_of(Replicates(2.0, np.array([[2.0], [0.0]]))) is None
    assert part.share_of(Replicates(-1.0, np.array([[2.0], [1.0]]))) is None


def test_a_replicate_without_a_gain_counts_at_both_ends_of_a_share():
    """One of 100 replicates has no gain: at 95% the ends move out by one replicate, and at 99% there is no share."""
    shares = np.arange(1.0, 101)[:, None]
    whole = Replicates(1.0, np.where(shares == 50, -1.0, 1.0))
    found = Replicates(50.0, shares * whole.draws).share_of(whole)
    assert (found.low, found.high) == pytest.approx((2.475, 98.525))
    assert Replicates(50.0, shares).share_of(Replicates(1.0, np.ones((100, 1)))).low == pytest.approx(3.475)
    assert Replicates(50.0, shares * whole.draws).share_of(whole, confidence=0.99) is None


def test_bad_tables_and_replicates_that_are_no_pairs_are_refused():
    for tables in ([], [table([1.0]), table([1.0, 2.0])], [np.empty((0, 2))], [np.zeros(3)]):
        with pytest.raises(InputError, match="tables have the shapes"):
            replicates_over_seeds(tables, mean)
    with pytest.raises(InputError, match="n_bootstrap is 0"):
        replicates_over_seeds([table([1.0])], mean, n_bootstrap=0)
    a = Replicates(0.0, np.zeros((3, 16)))
    for other in ((4, 16), (3, 8)):
        with pytest.raises(InputError, match=r"draws of the shapes \(3, 16\) and .* are not pairs"):
            a - Replicates(0.0, np.zeros(other))
    with pytest.raises(InputError, match="confidence is 95"):
        a.interval(95)
