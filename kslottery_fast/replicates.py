"""Bootstrap over sentences and training seeds at once, kept as replicates so that any difference of them is paired.

A model is trained with S seeds and scored on the same n sentences each time. Both are samples: of the seeds that might
have been drawn, and of the sentences that might have been tested. One replicate draws S seeds and n sentences with
replacement, independently of each other (the crossed or "pigeonhole" bootstrap), and averages the corpus scores of
the drawn seeds on the drawn sentences. Arms of an experiment that are resampled with the same seed get the same
draws, so replicate by replicate their difference is that of a pair.

References: Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1 (2007); Koehn, *Statistical Significance
Tests for Machine Translation Evaluation* (EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .resampling import Interval, check_bootstrap, check_confidence


@dataclass(frozen=True, eq=False)
class Replicates:
    """A ``value`` and its bootstrap replicates, ``draws`` float64 [R]; sums and differences are taken pair by pair.

    >>> a, b = Replicates(2.0, np.array([1.0, 3.0])), Replicates(1.0, np.array([0.5, 2.5]))
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

    def share_of(self, whole: Replicates) -> Replicates | None:
        """Self over ``whole``; None where the whole is not positive in every replicate: a share of what may be nothing.

        >>> Replicates(1.0, np.array([1.0])).share_of(Replicates(0.1, np.array([-0.1]))) is None
        True
        """
        if whole.value <= 0 or (self._paired(whole) <= 0).any():
            return None
        return Replicates(self.value / whole.value, self.draws / whole.draws)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value between the percentiles of the replicates, widened where needed to hold the value itself."""
        check_confidence(confidence)
        low, high = np.quantile(self.draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(self.value, min(float(low), self.value), max(float(high), self.value))

    def _paired(self, other: Replicates) -> NDArray[np.float64]:
        if other.draws.shape != self.draws.shape:
            raise InputError(
                f"{len(self.draws)} and {len(other.draws)} replicates are no pairs; resample both with the same "
                "n_bootstrap and seed"
            )
        return other.draws


def crossed_bootstrap(
    tables: Sequence[Any], score: Callable[[NDArray[Any]], float], *, n_bootstrap: int = 1000, seed: int = 0
) -> Replicates:
    """Replicates of a corpus score, averaged over training seeds.

    Parameters
    ----------
    tables : one [n, s] matrix for each of the S training seeds: what each of the n sentences contributes, the same
        sentences in the same order. A model without training (S = 1) can be compared with one of several seeds.
    score : from the [s] sums over sentences to the score.
    n_bootstrap : replicates.
    seed : of the draws. With S = 1 they are those of :func:`kslottery_fast.resampling.bootstrap_interval`.

    Returns
    -------
    Replicates : the mean over seeds of the score of all sentences, and R replicates of it.

    Raises
    ------
    InputError : no table, no sentences, tables of different shapes, n_bootstrap below 1.

    Notes
    -----
    Three seeds are few: resampling can show the spread of those three and not of a fourth. The crossed bootstrap errs
    on the wide side: it counts the noise of a sentence-seed pair in both of its directions.

    Examples
    --------
    >>> crossed_bootstrap([[[1.0, 1]], [[3.0, 1]]], lambda sums: sums[0] / sums[1], n_bootstrap=50).interval()
    Interval(value=2.0, low=1.0, high=3.0)
    """
    check_bootstrap(n_bootstrap)
    stack = [np.asarray(table) for table in tables]
    shapes = {table.shape for table in stack}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise InputError(
            f"tables have the shapes {sorted(shapes)}; expected one [sentences, statistics] for each training seed, "
            "all alike, one sentence or more"
        )
    n = len(stack[0])
    sentences, seeds = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    value = float(np.mean([score(table.sum(axis=0)) for table in stack]))
    draws = np.empty(n_bootstrap)
    for r in range(n_bootstrap):
        rows = sentences.integers(n, size=n)
        chosen, times = np.unique(seeds.integers(len(stack), size=len(stack)), return_counts=True)
        scores = [score(stack[s][rows].sum(axis=0)) for s in chosen]
        draws[r] = np.average(scores, weights=times)
    return Replicates(value, draws)
