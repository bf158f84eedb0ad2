"""Models compared on the same sentences: replicates of every score, and what follows from them.

Scores are means over training seeds; whoever resamples all models with the same seed gets differences, shares and means
that are paired over sentences and seeds, see :mod:`kslottery_fast.evaluation.replicates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .evaluate import SCORES, Evaluation, TargetNll, first_line, one_line
from .intervals import Interval, clopper_pearson
from .replicates import Replicates, replicates_over_seeds
from .scores import bleu_metric, chrf_metric, sentence_statistics

Scores = Mapping[str, Replicates]
RANGES = {
    **dict.fromkeys(SCORES, (0.0, 100.0)),
    "nll": (0.0, math.inf),
    "ended": (0.0, 1.0),
    "mean_chars": (0.0, math.inf),
}
"""What a score can be; intervals of few seeds would leave it."""


def score_replicates(
    evaluations: Sequence[Evaluation],
    references: Sequence[str],
    *,
    bleu_tokenizer: str = "13a",
    n_bootstrap: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = SCORES,
) -> dict[str, Replicates]:
    """Replicates of the scores of one model.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One for each training seed, on the same sentences.
    references : sequence of str
        The targets of the sentences.
    bleu_tokenizer : str
        Of sacrebleu.
    n_bootstrap, seed : int
        As :func:`~kslottery_fast.evaluation.replicates.replicates_over_seeds` takes them; the same for all models that
        are compared.
    metrics : sequence of str
        Which of ``SCORES``.

    Returns
    -------
    dict
        Replicates by metric.
    """
    expected = [one_line(reference) for reference in references]
    of_output: dict[str, Callable[[Any], float]] = {
        "ended": lambda output: float(output.ended),
        "mean_chars": lambda output: float(len(output.text.strip())),
    }

    def tables(metric: str) -> tuple[list[Any], Callable[[Any], float]]:
        """What each sentence contributes, seed by seed, and the score that follows from sums."""
        if metric == "nll":
            return [_nll_table(one) for one in evaluations], _ratio
        if metric in of_output:
            return [[[of_output[metric](output), 1.0] for output in one.outputs] for one in evaluations], _ratio
        maker = bleu_metric(bleu_tokenizer) if metric.startswith("bleu") else chrf_metric()
        cut = one_line if metric.endswith("raw") else first_line
        found = [sentence_statistics(maker, [cut(o.text) for o in one.outputs], expected) for one in evaluations]
        return [statistics for statistics, _ in found], found[0][1]

    return {metric: replicates_over_seeds(*tables(metric), n_bootstrap=n_bootstrap, seed=seed) for metric in metrics}


def nll_replicates(results: Sequence[Evaluation | TargetNll], *, n_bootstrap: int = 1000, seed: int = 0) -> Replicates:
    """Replicates of NLL per target token; one result for each training seed."""
    return replicates_over_seeds([_nll_table(one) for one in results], _ratio, n_bootstrap=n_bootstrap, seed=seed)


def _nll_table(result: Evaluation | TargetNll) -> list[tuple[float, int]]:
    return list(zip(result.sentence_nll, result.sentence_tokens, strict=True))


def decomposition(model: Scores, untuned: Scores, metric: str = "bleu") -> dict[str, Replicates]:
    """The raw gain of a model, split into what it learned to say and what it learned not to go on saying.

    ``gain``: raw score minus that of the untuned model. ``quality``: the same on first lines, where whatever follows
    the answer is not counted. ``stopping``: the rest, i.e. how much less the model loses by running on than the untuned
    model does. ``gain = quality + stopping``, exactly.
    """
    gain = model[f"{metric}_raw"] - untuned[f"{metric}_raw"]
    quality = model[f"{metric}_first_line"] - untuned[f"{metric}_first_line"]
    return {"gain": gain, "quality": quality, "stopping": gain - quality}


def differences(first: Scores, second: Scores) -> dict[str, Interval]:
    """Every score of ``first`` that ``second`` has too, minus that of ``second``, with paired 95 % intervals."""
    found = {}
    for metric in (metric for metric in first if metric in second):
        least, most = RANGES[metric]
        found[metric] = _within((first[metric] - second[metric]).interval(), least - most, most - least)
    return found


def seed_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """``first`` minus ``second``, seed by seed; a model without seeds stands beside every seed of the other.

    >>> seed_differences([{"nll": 2.0}, {"nll": 2.5}], [{"nll": 1.0}])
    [{'nll': 1.0}, {'nll': 1.5}]
    """
    count = max(len(first), len(second))
    pairs = zip(*(list(one) * (count // len(one)) for one in (first, second)), strict=True)
    return [{metric: a[metric] - b[metric] for metric in a} for a, b in pairs]


def score_intervals(scores: Scores, sentences: int) -> dict[str, Interval]:
    """Values and 95 % intervals of scores on so many ``sentences``, within what such a score can be.

    That of ``ended`` is at least as wide as Clopper and Pearson's for one model: where all outputs end, no resample
    shows one that does not.
    """
    found = {metric: _within(one.interval(), *RANGES[metric]) for metric, one in scores.items()}
    return found | ({"ended": _with_exact(found["ended"], sentences)} if "ended" in found else {})


def mean_over(parts: Sequence[Scores]) -> dict[str, Replicates]:
    """The mean over languages, replicate by replicate; the languages must have been drawn with different seeds."""
    first, *rest = parts
    result = dict(first)
    for part in rest:
        result = {metric: result[metric] + part[metric] for metric in result}
    return {metric: found * (1 / len(parts)) for metric, found in result.items()}


def language_seed(seed: int, code: str) -> int:
    """The seed of a language's draws: the same whatever stands beside it, another than that of other languages.

    >>> language_seed(0, "es") == language_seed(0, "es") != language_seed(0, "ca")
    True
    """
    return int(np.random.SeedSequence((seed, *code.encode())).generate_state(1)[0])


@dataclass(frozen=True)
class Candidate:
    """A model: ``arm``, mean number of ``rows`` over seeds, replicates of its NLL on the validation and test split."""

    arm: str
    rows: float
    validation: Replicates
    test: Replicates


def recommend(
    candidates: Sequence[Candidate], untuned: Candidate, embed: Candidate, margin: float
) -> dict[str, Any] | None:
    """The smallest set that, like all larger ones, keeps all but ``margin`` of Embed Tuning's gain in validation NLL.

    It must do so at the lower end of its interval. Larger sets must pass too: of many small sets one may pass by luck.

    Parameters
    ----------
    candidates : sequence of Candidate
        Sets of rows, in any order.
    untuned, embed : Candidate
        Between them lies the gain.
    margin : float
        The share of the gain that may be lost.

    Returns
    -------
    dict or None
        ``arm`` and ``rows`` of the recommended set, None if no set is good enough; ``kept``: for every candidate,
        smallest first, the share of the gain that it keeps with its 95 % interval, and under ``test`` the same on the
        test split, which chose nothing (None where the gain there is not clearly above 0). None in place of all where
        Embed Tuning's own gain on the validation split is not clearly above 0.
    """
    gain, test_gain = untuned.validation - embed.validation, untuned.test - embed.test
    kept: list[dict[str, Any]] = []
    for candidate in sorted(candidates, key=lambda one: one.rows):
        share = (untuned.validation - candidate.validation).share_of(gain)
        if share is None:
            return None
        test = (untuned.test - candidate.test).share_of(test_gain)
        kept.append(
            {"arm": candidate.arm, "rows": candidate.rows, **share.to_dict(), "test": test.to_dict() if test else None}
        )
    chosen: dict[str, Any] = {"arm": None, "rows": None}
    for one in reversed(kept):
        if one["low"] < 1 - margin or one["rows"] == 0:
            break
        chosen = one
    return {"arm": chosen["arm"], "rows": chosen["rows"], "margin": margin, "kept": kept}


def _with_exact(share: Interval, n: int) -> Interval:
    # A mean over seeds may lie between two counts: the interval of the lower one below, of the higher one above.
    count = round(share.value * n, 6)
    low, high = clopper_pearson(math.floor(count), n).low, clopper_pearson(math.ceil(count), n).high
    return Interval(share.value, min(share.low, low), max(share.high, high))


def _within(found: Interval, least: float, most: float) -> Interval:
    return Interval(found.value, max(found.low, least), min(found.high, most))


def _ratio(sums: Any) -> float:
    return float(sums[0] / sums[1])
