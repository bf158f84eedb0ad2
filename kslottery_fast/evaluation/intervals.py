"""Uncertainty of what was measured on a sample of sentences: bootstrap, Clopper-Pearson, and a bound by betting.

The unit that is sampled is the sentence. Tokens of one sentence depend on each other, so every interval here
takes sentences, never tokens, as the independent draws.

References: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13; Clopper and Pearson,
Biometrika 26 (1934); Koehn, *Statistical Significance Tests for Machine Translation Evaluation* (EMNLP 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # which imports scipy.special, slow, when it is first asked for
from numpy.typing import ArrayLike, NDArray

from kslottery_fast.base.errors import InputError

_STAKES = 512  # gamblers of mean_lower_bound
_HALVINGS = 60  # more than a float64 has digits


@dataclass(frozen=True)
class Interval:
    """A measured value and its interval, ``low <= value <= high``, all in the unit of the value."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interval:
        """The inverse of :meth:`to_dict`; anything else is an InputError."""
        try:
            return cls(float(data["value"]), float(data["low"]), float(data["high"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"an interval needs the numbers 'value', 'low' and 'high', got {data!r}") from None


def clopper_pearson(
    successes: int,
    trials: int,
    confidence: float = 0.95,
    *,
    side: Literal["two-sided", "lower", "upper"] = "two-sided",
) -> Interval:
    """Exact interval for a share, from independent trials.

    Parameters
    ----------
    successes, trials : counts, ``0 <= successes <= trials`` and ``trials >= 1``.
    confidence : coverage, strictly between 0 and 1.
    side : "two-sided" leaves (1 - confidence) / 2 on either side; "lower" and "upper" spend all of it on one
        bound and set the other to 1 or 0.

    Returns
    -------
    Interval : the share and its bounds, as ``scipy.stats.binomtest(...).proportion_ci(method="exact")`` gives
        them.

    Raises
    ------
    InputError : counts or confidence out of range.

    Examples
    --------
    >>> clopper_pearson(0, 100, 0.95, side="upper").high < 3 / 100  # the "rule of three"
    True
    """
    check_confidence(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    if side not in ("two-sided", "lower", "upper"):
        raise InputError(f"side is {side!r}; expected 'two-sided', 'lower' or 'upper'")
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
    """Percentile bootstrap of a corpus score that is a function of sums over sentences.

    NLL per token, BLEU, chrF and every mean have this form, so a resample costs one sum, not a second
    evaluation. The same ``seed`` and number of sentences give the same resamples: two systems scored on the
    same sentences are resampled in pairs.

    Parameters
    ----------
    statistics : [n, s], what each of the n sentences contributes; integers stay exact.
    score : from the [s] sums to the score, e.g. ``lambda sums: sums[0] / sums[1]``.
    n_bootstrap : resamples, at least 1.
    seed : of numpy's default generator.
    confidence : coverage of the interval between the two percentiles.

    Returns
    -------
    Interval : the score of the sample and the percentiles of the resampled scores, widened where needed to
        hold the score itself (a skewed score such as BLEU can fall outside its own percentiles).

    Raises
    ------
    InputError : no sentences, not a matrix, n_bootstrap below 1, confidence out of range.

    Examples
    --------
    >>> bootstrap_interval([[2.0, 1], [2.0, 1]], lambda sums: sums[0] / sums[1])
    Interval(value=2.0, low=2.0, high=2.0)
    """
    check_confidence(confidence)
    check_bootstrap(n_bootstrap)
    table = np.asarray(statistics)
    if table.ndim != 2 or len(table) == 0:
        raise InputError(f"statistics has shape {table.shape}; expected [sentences, statistics], one sentence or more")
    value = float(score(table.sum(axis=0)))
    scores = [float(score(sums)) for sums in resampled_sums(table, n_bootstrap, seed)]
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def mean_lower_bound(shares: ArrayLike, confidence: float = 0.95) -> Interval:
    """Lower bound for the mean of a quantity in [0, 1], from independent draws: sound for any number of them.

    The bound comes from betting against "the mean is at most x". A gambler who stakes the same fraction u of the
    capital on every draw multiplies it by ``1 - u + u * share / x``; if the mean is x that is a fair game, so the
    average capital of gamblers with different u, fixed beforehand, exceeds 1 / (1 - confidence) with probability at
    most 1 - confidence (Markov). Every x at which it does is refuted. No normality, no large n; on shares near 1 with
    little spread the bound is much closer than Hoeffding's.

    Parameters
    ----------
    shares : n numbers in [0, 1], one for each independent draw (here: a sentence), in any order.
    confidence : probability that the bound holds, over the draw of the sample.

    Returns
    -------
    Interval : the sample mean, the bound, and 1.

    Raises
    ------
    InputError : no shares, a share outside [0, 1], confidence out of range.

    References
    ----------
    Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*, JRSS B 86 (2024); the mixture
    over u is that of Cover's universal portfolio, with the arcsine density.

    Examples
    --------
    >>> mean_lower_bound([1.0] * 100).low > 1 - (math.log(20) / 200) ** 0.5  # Hoeffding: 0.878
    True
    """
    check_confidence(confidence)
    values = np.asarray(shares, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"shares has shape {values.shape}; expected one or more numbers in [0, 1]")
    stakes = np.sin(np.pi * (2 * np.arange(_STAKES) + 1) / (4 * _STAKES)) ** 2
    # Equal shares bet alike: a few distinct values stand for many sentences.
    distinct, times = np.unique(values, return_counts=True)

    def refuted(x: float) -> bool:
        # numpy's own sum and not a matrix product: how a BLAS rounds depends on its threads.
        capital = (np.log1p(stakes[:, None] * (distinct / x - 1)) * times).sum(axis=1)
        return float(np.logaddexp.reduce(capital)) - math.log(_STAKES) >= -math.log1p(-confidence)

    low, high = 0.0, float(values.mean())  # the capital falls with x, and at the sample mean it is at most 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return Interval(float(values.mean()), low, 1.0)


def check_bootstrap(n_bootstrap: int) -> None:
    """Refuse a number of resamples that is not an integer of at least 1."""
    if isinstance(n_bootstrap, bool) or not isinstance(n_bootstrap, int):
        raise TypeError(f"n_bootstrap is a {type(n_bootstrap).__name__}; expected an int, e.g. 1000")
    if n_bootstrap < 1:
        raise InputError(f"n_bootstrap is {n_bootstrap}; expected at least 1, e.g. 1000")


def resampled_sums(table: NDArray[Any], n_bootstrap: int, seed: int) -> Iterator[NDArray[Any]]:
    """Sums over n sentences drawn with replacement, one [s] vector for each resample."""
    generator = np.random.default_rng(seed)
    for _ in range(n_bootstrap):
        # Not counts @ table: how a BLAS rounds depends on its threads, numpy's own sum does not.
        yield table[generator.integers(len(table), size=len(table))].sum(axis=0)


def check_confidence(confidence: float) -> None:
    """Refuse a coverage that is not strictly between 0 and 1."""
    if not (math.isfinite(confidence) and 0 < confidence < 1):
        raise InputError(f"confidence is {confidence}; expected a number strictly between 0 and 1, e.g. 0.95")
