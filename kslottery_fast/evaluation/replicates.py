"""Uncertainty over sentences and training seeds at once, kept as replicates so that any difference of them is paired.

A model is trained with S seeds and scored on the same n sentences each time; the score reported is the mean over seeds.
Sentences and seeds are both samples, of the sentences that might have been tested and of the trainings that might have
been made. With x_s the score of seed s and x_s(b) the same on the sentences drawn in replicate b, a replicate is

    mean_s x_s(b)  +  sum_s v_s x_s,      v = (z - mean z) / sqrt(S * chi2),  z ~ N(0, 1)^S,  chi2 ~ chi-square(S - 1)

The first term is the bootstrap over sentences. The second is Student's t: v sums to 0, and for fixed scores
sum_s v_s x_s ~ N(0, (S - 1) sd^2) / sqrt(S * chi2), that is t(S - 1) * sd / sqrt(S) with the standard deviation sd of
the seeds. So without noise of sentences the percentiles are the usual t interval. Drawing S seeds with replacement
instead would never leave the range of the S scores and cover far less than it says: three seeds do not show a fourth.

Arms of an experiment that are resampled with the same seed get the same sentences and the same v, so replicate by
replicate their difference is that of a pair, and it has the t interval of the S paired differences.

References: Koehn, *Statistical Significance Tests for Machine Translation Evaluation* (EMNLP 2004); Student, *The
Probable Error of a Mean*, Biometrika 6 (1908); Gelman et al., *Bayesian Data Analysis* (3rd ed.), section 3.2: the
second term is a draw from the posterior of a normal mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kslottery_fast.base.errors import InputError

from .intervals import Interval, check_bootstrap, check_confidence, resampled_sums

_SEED_DRAWS = 16  # v for each resample of the sentences: with few seeds the ends of an interval lie far out in a tail


@dataclass(frozen=True, eq=False)
class Replicates:
    """A ``value`` and its replicates; sums and differences are taken pair by pair.

    ``draws`` float64 [R, W]: R resamples of the sentences, and W draws of the seeds for each; W is 1 for one seed.

    >>> a, b = Replicates(2.0, np.array([[1.0], [3.0]])), Replicates(1.0, np.array([[0.5], [2.5]]))
    >>> (a - b).interval()
    Interval(value=1.0, low=0.5, high=1.0)
    """

    value: float
    draws: NDArray[np.float64]

    def __add__(self, other: Replicates) -> Replicates:
        return Replicates(self.value + other.value, self.draws + self._paired(other))

    def __sub__(self, other: Replicates) -> Replicates:
        return Replicates(self.value - other.value, self.draws - self._paired(other))

    def __mul__(self, factor: float) -> Replicates:
        return Replicates(self.value * factor, self.draws * factor)

    def share_of(self, whole: Replicates, confidence: float = 0.95) -> Interval | None:
        """Self over ``whole``; None where the interval of the whole reaches 0: a share of what may be nothing.

        A replicate in which the whole is not positive bounds no share: such few as may remain count at both ends.

        >>> Replicates(1.0, np.array([[1.0]])).share_of(Replicates(0.1, np.array([[-0.1]]))) is None
        True
        """
        if whole.interval(confidence).low <= 0:
            return None
        parts, wholes = np.broadcast_arrays(self.draws, self._paired(whole))
        bounded = wholes > 0
        shares = np.divide(parts, wholes, where=bounded, out=np.zeros(parts.shape))
        with np.errstate(invalid="ignore"):  # an end between -inf and a number: refused below
            low, _ = _percentiles(np.where(bounded, shares, -np.inf), confidence)
            _, high = _percentiles(np.where(bounded, shares, np.inf), confidence)
        if not (np.isfinite(low) and np.isfinite(high)):
            return None
        return _holding(self.value / whole.value, low, high)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value between the percentiles of the replicates, widened where needed to hold the value itself."""
        return _holding(self.value, *_percentiles(self.draws, confidence))

    def _paired(self, other: Replicates) -> NDArray[np.float64]:
        mine, theirs = self.draws.shape, other.draws.shape
        if mine[:1] != theirs[:1] or len({*mine[1:], *theirs[1:]} - {1}) > 1:
            raise InputError(
                f"draws of the shapes {mine} and {theirs} are no pairs; resample both with the same n_bootstrap and "
                "seed"
            )
        return other.draws


def _percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    check_confidence(confidence)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _holding(value: float, low: float, high: float) -> Interval:
    return Interval(value, min(low, value), max(high, value))


def replicates_over_seeds(
    tables: Sequence[Any], score: Callable[[NDArray[Any]], float], *, n_bootstrap: int = 1000, seed: int = 0
) -> Replicates:
    """Replicates of a corpus score, averaged over training seeds: bootstrap over sentences, Student's t over seeds.

    Parameters
    ----------
    tables : one [n, s] matrix for each of the S training seeds: what each of the n sentences contributes, the same
        sentences in the same order. A model without training (S = 1) can be compared with one of several seeds; two
        models that both have several must have as many, seed s of the one paired with seed s of the other.
    score : from the [s] sums over sentences to the score.
    n_bootstrap : resamples of the sentences.
    seed : of the draws. With S = 1 they are those of :func:`kslottery_fast.evaluation.intervals.bootstrap_interval`.

    Returns
    -------
    Replicates : the mean over seeds of the score of all sentences, and replicates of it: [n_bootstrap, 1] for one seed,
        [n_bootstrap, 16] for several.

    Raises
    ------
    InputError : no table, no sentences, tables of different shapes, n_bootstrap below 1.

    Notes
    -----
    Assumes that the scores of seeds are independent and normal. Two seeds give t(1), whose 95 % interval is 12.7
    standard errors wide on either side: two trainings say that little about a third. Noise that is neither of the
    sentence nor of the seed, but of the pair, moves both terms and counts twice: where it is all there is, the interval
    is too wide, by up to sqrt(2) for many seeds.

    Examples
    --------
    >>> found = replicates_over_seeds([[[1.0, 1]], [[2.0, 1]], [[3.0, 1]]], lambda sums: sums[0] / sums[1])
    >>> found.value, found.draws.shape
    (2.0, (1000, 16))
    >>> bounds = found.interval()  # 2 -+ 4.30 / sqrt(3) as of scipy.stats.t(2)
    >>> -0.7 < bounds.low < -0.3, 4.3 < bounds.high < 4.7
    (True, True)
    """
    check_bootstrap(n_bootstrap)
    stack = [np.asarray(table) for table in tables]
    shapes = {table.shape for table in stack}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise InputError(
            f"tables have the shapes {sorted(shapes)}; expected one [sentences, statistics] for each training seed, "
            "all alike, one sentence or more"
        )
    wide = np.concatenate(stack, axis=1)  # one draw of sentences for all seeds

    def by_seed(sums: NDArray[Any]) -> list[float]:
        return [score(part) for part in sums.reshape(len(stack), -1)]

    scores = np.array(by_seed(wide.sum(axis=0)))
    resampled = np.array([by_seed(sums) for sums in resampled_sums(wide, n_bootstrap, seed)])
    # Not a matrix product: how a BLAS rounds depends on its threads. v sums to 0, so scores may be taken from any zero.
    over_seeds = (_seed_draws(len(stack), n_bootstrap, seed) * (scores - scores[0])).sum(axis=-1)
    return Replicates(float(_mean(scores)), _mean(resampled)[:, None] + over_seeds)


def _mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds, the last axis; of equal numbers exactly that number: equal models differ by 0 with any S."""
    return np.asarray(scores[..., 0] + (scores - scores[..., :1]).mean(axis=-1))


def _seed_draws(seeds: int, n_bootstrap: int, seed: int) -> NDArray[np.float64]:
    """The v of the module's formula, [n_bootstrap, W, S]; one seed has no spread: zeros, and W = 1."""
    if seeds == 1:
        return np.zeros((n_bootstrap, 1, 1))
    generator, shape = np.random.default_rng([seed, 1]), (n_bootstrap, _SEED_DRAWS)
    z = generator.normal(size=(*shape, seeds))
    chi2 = generator.chisquare(seeds - 1, size=(*shape, 1))
    return np.asarray((z - z.mean(axis=-1, keepdims=True)) / np.sqrt(seeds * chi2))
