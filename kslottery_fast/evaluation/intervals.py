"""Uncertainty of what was measured on a sample of sentences: the bootstrap, Clopper-Pearson, and a bound by betting.

The sampled unit is the sentence. Tokens of one sentence depend on each other. So every interval here treats the
sentences, and never the tokens, as the independent draws.

References: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13; Clopper and Pearson,
Biometrika 26 (1934); Koehn, *Statistical Significance Tests for Machine Translation Evaluation* (EMNLP 2004).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # scipy.special is slow to import: scipy does that when it is first used
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from kslottery_fast.base.arguments import check_choice, check_integer
from kslottery_fast.base.errors import InputError

from .checks import check_bootstrap, check_callable, check_share, check_table

_STAKES = 512  # gamblers of mean_lower_bound
_HALVINGS = 60  # more than the 53 binary digits of a float64


@dataclass(frozen=True)
class Interval:
    """A measured value and its interval, ``low <= value <= high``, all in the unit of the value.

    Attributes
    ----------
    value : float
        What was measured.
    low, high : float
        The ends of the interval.

    Examples
    --------
    A format applies to all three numbers.

    >>> ended = Interval(0.97, 0.9512, 0.982)
    >>> print(ended)
    0.97 (0.9512 to 0.982)
    >>> f"{ended:.1%}"
    '97.0% (95.1% to 98.2%)'
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(x, spec or ".4g") for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self, "")

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name, for JSON.

        >>> Interval(2.0, 1.0, 4.0).to_dict()
        {'value': 2.0, 'low': 1.0, 'high': 4.0}
        """
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the interval that :meth:`to_dict` described.

        Raises
        ------
        InputError
            ``data`` does not hold three numbers under these names.

        Examples
        --------
        >>> Interval.from_dict({"value": 2.0, "low": 1.0, "high": 4.0})
        Interval(value=2.0, low=1.0, high=4.0)
        """
        try:
            return cls(float(data["value"]), float(data["low"]), float(data["high"]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(
                f"data is not an interval: it needs the numbers 'value', 'low' and 'high', not {data!r}"
            ) from None


def clopper_pearson(
    successes: int,
    trials: int,
    confidence: float = 0.95,
    *,
    side: Literal["two-sided", "lower", "upper"] = "two-sided",
) -> Interval:
    """Return the exact interval for a share, from independent trials.

    Parameters
    ----------
    successes, trials : int
        Counts, ``0 <= successes <= trials`` and ``trials >= 1``.
    confidence : float
        Coverage, strictly between 0 and 1.
    side : {"two-sided", "lower", "upper"}
        "two-sided" leaves (1 - confidence) / 2 on either side. "lower" and "upper" spend all of it on one bound, and
        set the other bound to 1 or 0.

    Returns
    -------
    Interval
        The share and its bounds. They equal those of ``scipy.stats.binomtest(...).proportion_ci(method="exact")``.

    Raises
    ------
    InputError
        The counts or the confidence are out of range, or the side is unknown.
    TypeError
        An argument is not a number.

    Examples
    --------
    >>> clopper_pearson(0, 100, 0.95, side="upper").high < 3 / 100  # the "rule of three"
    True
    """
    check_share(confidence)
    successes, trials = check_integer(successes, "successes"), check_integer(trials, "trials")
    check_choice(side, ("two-sided", "lower", "upper"), "side")
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"successes is {successes} and trials is {trials}: expected 0 <= successes <= trials and trials >= 1"
        )
    tail = (1 - confidence) / 2 if side == "two-sided" else 1 - confidence
    failures = trials - successes
    quantile = scipy.special.betaincinv  # of the beta distribution
    low = 0.0 if side == "upper" or successes == 0 else float(quantile(successes, failures + 1, tail))
    high = 1.0 if side == "lower" or failures == 0 else float(quantile(successes + 1, failures, 1 - tail))
    return Interval(successes / trials, low, high)


def bootstrap_interval(
    statistics: ArrayLike,
    score: Callable[[NDArray[Any]], float],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval of a corpus score that is a function of sums over sentences.

    NLL per token, BLEU, chrF and every mean have this form. So a resample costs one sum, not a second evaluation. The
    same ``seed`` and number of sentences give the same resamples. Two systems that were scored on the same sentences
    are therefore resampled in pairs.

    Parameters
    ----------
    statistics : array_like
        Numbers [n, s]: what each of the n sentences contributes. Integers stay exact.
    score : callable
        Computes the score from the [s] sums, e.g. ``lambda sums: sums[0] / sums[1]``.
    n_bootstrap : int
        Number of resamples, at least 1.
    seed : int
        Seed of numpy's default generator.
    confidence : float
        Coverage of the interval between the two percentiles.

    Returns
    -------
    Interval
        The score of the sample, and the percentiles of the resampled scores. Where the score itself lies outside its
        own percentiles, as a skewed score such as BLEU can, the interval is widened to hold it.

    Raises
    ------
    InputError
        There are no sentences, the statistics are not a matrix of numbers, or another argument is out of range.
    TypeError
        Another argument has the wrong type.

    Examples
    --------
    >>> bootstrap_interval([[2.0, 1], [2.0, 1]], lambda sums: sums[0] / sums[1])
    Interval(value=2.0, low=2.0, high=2.0)
    """
    check_share(confidence)
    check_bootstrap(n_bootstrap, seed)
    check_callable(score, "score", "the sums over sentences")
    table = check_table(statistics, "statistics", "[sentences, statistics]", 2)
    value = float(score(table.sum(axis=0)))
    scores = [float(score(sums)) for sums in resampled_sums(table, n_bootstrap, seed)]
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def mean_lower_bound(shares: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return a lower bound for the mean of a quantity in [0, 1], valid for any number of independent draws.

    The bound comes from betting against "the mean is at most x". A gambler stakes the same fraction u of the capital on
    every draw, which multiplies the capital by ``1 - u + u * share / x``. If the mean is x, that is a fair game. So the
    average capital of gamblers whose u were fixed beforehand exceeds 1 / (1 - confidence) with probability at most
    1 - confidence (Markov). Every x at which it does so is refuted. The argument needs neither normality nor a large n.
    Where shares lie near 1 and vary little, the bound is much closer than Hoeffding's.

    Parameters
    ----------
    shares : array_like
        Numbers [n] in [0, 1], one for each independent draw, which is a sentence here. Their order does not matter.
    confidence : float
        Probability that the bound holds, over the draw of the sample.

    Returns
    -------
    Interval
        The sample mean, the bound, and 1.

    Raises
    ------
    InputError
        There are no shares, a share lies outside [0, 1], or the confidence is out of range.
    TypeError
        The confidence is not a number.

    References
    ----------
    Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*, JRSS B 86 (2024). The mixture
    over u is that of Cover's universal portfolio, with the arcsine density.

    Examples
    --------
    >>> mean_lower_bound([1.0] * 100).low > 1 - (math.log(20) / 200) ** 0.5  # Hoeffding: 0.878
    True
    """
    check_share(confidence)
    values = check_table(shares, "shares", "in [0, 1]", 1).astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("shares holds a number outside its range: expected numbers in [0, 1]")
    stakes = np.sin(np.pi * (2 * np.arange(_STAKES) + 1) / (4 * _STAKES)) ** 2
    # Equal shares bet alike: a few distinct values stand for many sentences.
    distinct, times = np.unique(values, return_counts=True)

    def refuted(x: float) -> bool:
        # Use numpy's own sum, not a matrix product: how a BLAS rounds depends on its threads.
        capital = (np.log1p(stakes[:, None] * (distinct / x - 1)) * times).sum(axis=1)
        return float(np.logaddexp.reduce(capital)) - math.log(_STAKES) >= -math.log1p(-confidence)

    low, high = 0.0, float(values.mean())  # the capital falls with x, and at the sample mean it is at most 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return Interval(float(values.mean()), low, 1.0)


def resampled_sums(table: NDArray[Any], n_bootstrap: int, seed: int) -> Iterator[NDArray[Any]]:
    """Yield sums over n sentences drawn with replacement, one [s] vector for each resample.

    >>> [sums.tolist() for sums in resampled_sums(np.array([[1, 10]]), 2, 0)]
    [[1, 10], [1, 10]]
    """
    generator = np.random.default_rng(seed)
    for _ in range(n_bootstrap):
        # Do not compute counts @ table: how a BLAS rounds depends on its threads, numpy's own sum does not.
        yield table[generator.integers(len(table), size=len(table))].sum(axis=0)
