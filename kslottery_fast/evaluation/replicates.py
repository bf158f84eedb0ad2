"""Uncertainty over sentences and training seeds together, kept as replicates so that all differences are paired.

A model is trained with S seeds. Each training is scored on the same n sentences, and the reported score is the mean
over the seeds. Both the sentences and the seeds are samples: other sentences might have been tested, and other
trainings might have been made. Let x_s be the score of seed s, and x_s(b) its score on the sentences that replicate b
draws. Then a replicate is

    mean_s x_s(b)  +  sum_s v_s x_s,      v = (z - mean z) / sqrt(S * chi2),  z ~ N(0, 1)^S,  chi2 ~ chi-square(S - 1)

The first term is the bootstrap over sentences. The second term is Student's t. Since v sums to 0, fixed scores give
sum_s v_s x_s ~ N(0, (S - 1) sd^2) / sqrt(S * chi2). That is t(S - 1) * sd / sqrt(S), with the standard deviation sd of
the seeds. So without noise of sentences the percentiles are the usual t interval. Drawing S seeds with replacement
would be no substitute: it never leaves the range of the S scores, and covers far less than it claims.

Arms of an experiment that are resampled with the same seed get the same sentences and the same v. So their difference
is paired in every replicate, and it has the t interval of the S paired differences.

References: Koehn, *Statistical Significance Tests for Machine Translation Evaluation* (EMNLP 2004); Student, *The
Probable Error of a Mean*, Biometrika 6 (1908); Gelman et al., *Bayesian Data Analysis* (3rd ed.), section 3.2, where
the second term is a draw from the posterior of a normal mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .checks import check_bootstrap, check_callable, check_instance, check_share
from .intervals import Interval, resampled_sums
from .words import counted

_SEED_DRAWS = 16  # v for each resample of the sentences: with few seeds the ends of an interval lie far out in a tail


@dataclass(frozen=True, eq=False, repr=False)
class Replicates:
    """A value and its replicates. Sums and differences are taken pair by pair.

    Attributes
    ----------
    value : float
        The score.
    draws : float64 array [R, W]
        R resamples of the sentences, and W draws of the seeds for each. W is 1 for one seed.

    Examples
    --------
    >>> a, b = Replicates(2.0, np.array([[1.0], [3.0]])), Replicates(1.0, np.array([[0.5], [2.5]]))
    >>> a - b
    Replicates(1 (0.5 to 1), 2 resamples)
    >>> (a - b).interval()
    Interval(value=1.0, low=0.5, high=1.0)
    """

    value: float
    draws: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Replicates({self.interval()}, {counted(len(self.draws), 'resample')})"

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, Replicates):
            return NotImplemented
        return type(self)(self.value + other.value, self.draws + self._paired(other))

    def __sub__(self, other: Self) -> Self:
        if not isinstance(other, Replicates):
            return NotImplemented
        return type(self)(self.value - other.value, self.draws - self._paired(other))

    def __mul__(self, factor: float) -> Self:
        return type(self)(self.value * factor, self.draws * factor)

    def share_of(self, whole: Self, confidence: float = 0.95) -> Interval | None:
        """Return this value as a share of ``whole``, or None if the interval of the whole reaches 0.

        A share of what may be nothing has no meaning. A few replicates may remain in which the whole is not positive.
        They bound no share, so they count at both ends.

        Parameters
        ----------
        whole : Replicates
            It must be of the same sentences and seeds.
        confidence : float
            Coverage of the interval.

        Examples
        --------
        >>> Replicates(1.0, np.array([[1.0]])).share_of(Replicates(0.1, np.array([[-0.1]]))) is None
        True
        """
        check_instance(whole, Replicates, "whole")
        if whole.interval(confidence).low <= 0:
            return None
        parts, wholes = np.broadcast_arrays(self.draws, self._paired(whole))
        bounded = wholes > 0
        shares = np.divide(parts, wholes, where=bounded, out=np.zeros(parts.shape))
        with np.errstate(invalid="ignore"):  # an end between -inf and a number, which is refused below
            low, _ = _percentiles(np.where(bounded, shares, -np.inf), confidence)
            _, high = _percentiles(np.where(bounded, shares, np.inf), confidence)
        if not (np.isfinite(low) and np.isfinite(high)):
            return None
        return _holding(self.value / whole.value, low, high)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the value and the percentiles of the replicates, widened where needed to hold the value itself.

        >>> Replicates(2.0, np.array([[1.0], [3.0]])).interval(0.5)
        Interval(value=2.0, low=1.5, high=2.5)
        """
        return _holding(self.value, *_percentiles(self.draws, confidence))

    def _paired(self, other: Self) -> NDArray[np.float64]:
        mine, theirs = self.draws.shape, other.draws.shape
        if mine[:1] != theirs[:1] or len({*mine[1:], *theirs[1:]} - {1}) > 1:
            raise InputError(
                f"draws of the shapes {mine} and {theirs} are not pairs: resample both with the same n_bootstrap and "
                "seed, and train both with the same number of seeds"
            )
        return other.draws


def _percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    check_share(confidence)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _holding(value: float, low: float, high: float) -> Interval:
    return Interval(value, min(low, value), max(high, value))


def replicates_over_seeds(
    tables: Sequence[ArrayLike], score: Callable[[NDArray[Any]], float], *, n_bootstrap: int = 1000, seed: int = 0
) -> Replicates:
    """Return replicates of a corpus score averaged over training seeds.

    They combine the bootstrap over sentences with Student's t over seeds.

    Parameters
    ----------
    tables : sequence of array_like
        One matrix [n, s] for each of the S training seeds. It says what each of the n sentences contributes. All
        matrices describe the same sentences in the same order. A model without training (S = 1) can be compared with a
        model of several seeds. Two models of several seeds must have the same number of them: seed s of one is paired
        with seed s of the other.
    score : callable
        Computes the score from the [s] sums over sentences.
    n_bootstrap : int
        Number of resamples of the sentences.
    seed : int
        Seed of the draws. With S = 1 they are those of :func:`kslottery_fast.evaluation.intervals.bootstrap_interval`.

    Returns
    -------
    Replicates
        The mean over seeds of the score of all sentences, and replicates of it. Their shape is [n_bootstrap, 1] for one
        seed, and [n_bootstrap, 16] for several seeds.

    Raises
    ------
    InputError
        There is no table or no sentence, the tables have different shapes, or a number is out of range.
    TypeError
        An argument has the wrong type.

    Notes
    -----
    The scores of the seeds are assumed to be independent and normal. Two seeds give t(1), whose 95% interval extends
    12.7 standard errors to either side: two trainings say that little about a third. Some noise belongs neither to the
    sentence nor to the seed, but to the pair of both. It moves both terms and counts twice. Where there is no other
    noise, the interval is too wide, by a factor of up to sqrt(2) for many seeds.

    Examples
    --------
    >>> found = replicates_over_seeds([[[1.0, 1]], [[2.0, 1]], [[3.0, 1]]], lambda sums: sums[0] / sums[1])
    >>> found.value, found.draws.shape
    (2.0, (1000, 16))
    >>> bounds = found.interval()  # 2 -+ 4.30 / sqrt(3) as of scipy.stats.t(2)
    >>> -0.7 < bounds.low < -0.3, 4.3 < bounds.high < 4.7
    (True, True)
    """
    check_bootstrap(n_bootstrap, seed)
    check_callable(score, "score", "the sums over sentences")
    stack = _stack(tables)
    wide = np.concatenate(stack, axis=1)  # one draw of sentences for all seeds

    def by_seed(sums: NDArray[Any]) -> list[float]:
        return [score(part) for part in sums.reshape(len(stack), -1)]

    scores = np.array(by_seed(wide.sum(axis=0)))
    resampled = np.array([by_seed(sums) for sums in resampled_sums(wide, n_bootstrap, seed)])
    # Do not use a matrix product: how a BLAS rounds depends on its threads. Since v sums to 0, any origin will do.
    over_seeds = (_seed_draws(len(stack), n_bootstrap, seed) * (scores - scores[0])).sum(axis=-1)
    return Replicates(float(_mean(scores)), _mean(resampled)[:, None] + over_seeds)


def _stack(tables: Sequence[ArrayLike]) -> list[NDArray[Any]]:
    expected = "expected one [sentences, statistics] for each training seed, all alike, one sentence or more"
    if isinstance(tables, str) or not isinstance(tables, (Sequence, np.ndarray)):
        raise TypeError(f"tables is {shown(tables)}: {expected}")
    try:
        stack = [np.asarray(table) for table in tables]
    except ValueError as error:
        raise InputError(f"tables: {error}; {expected}") from None
    shapes = {table.shape for table in stack}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise InputError(f"tables have the shapes {sorted(shapes)}: {expected}")
    return stack


def _mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over seeds, the last axis.

    The mean of equal numbers is exactly that number. So equal models differ by exactly 0, whatever S is.
    """
    return np.asarray(scores[..., 0] + (scores - scores[..., :1]).mean(axis=-1))


def _seed_draws(seeds: int, n_bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Return the v of the module's formula, [n_bootstrap, W, S]. One seed has no spread: zeros, and W = 1."""
    if seeds == 1:
        return np.zeros((n_bootstrap, 1, 1))
    generator, shape = np.random.default_rng([seed, 1]), (n_bootstrap, _SEED_DRAWS)
    z = generator.normal(size=(*shape, seeds))
    chi2 = generator.chisquare(seeds - 1, size=(*shape, 1))
    return np.asarray((z - z.mean(axis=-1, keepdims=True)) / np.sqrt(seeds * chi2))
