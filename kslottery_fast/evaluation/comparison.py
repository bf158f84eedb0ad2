"""Models compared on the same sentences: replicates of every score, and what follows from them.

Scores are means over training seeds. If all models are resampled with the same seed, then differences, shares and means
are paired over sentences and seeds, see :mod:`kslottery_fast.evaluation.replicates`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from kslottery_fast.base.arguments import check_choice, check_integer
from kslottery_fast.base.errors import InputError

from .checks import check_instance, check_list, check_mapping
from .evaluate import SCORES
from .intervals import Interval, clopper_pearson
from .model_scores import nll_replicates, score_replicates
from .recommendation import Candidate, recommend
from .replicates import Replicates

__all__ = [
    "RANGES",
    "Candidate",
    "Scores",
    "decomposition",
    "differences",
    "language_seed",
    "mean_over",
    "nll_replicates",
    "recommend",
    "score_intervals",
    "score_replicates",
    "seed_differences",
]

Scores: TypeAlias = Mapping[str, Replicates]
"""The replicates of a model's scores, by the name of the score."""
RANGES = {
    **dict.fromkeys(SCORES, (0.0, 100.0)),
    "nll": (0.0, math.inf),
    "ended": (0.0, 1.0),
    "mean_chars": (0.0, math.inf),
}
"""The range of each score. Intervals of few seeds would exceed it."""


def decomposition(model: Scores, untuned: Scores, metric: Literal["bleu", "chrf"] = "bleu") -> dict[str, Replicates]:
    """Split the raw gain of a model into better answers and better stopping.

    Parameters
    ----------
    model, untuned : mapping of str to Replicates
        Scores of the model and of the untuned model, raw and on the first line.
    metric : {"bleu", "chrf"}
        Which score.

    Returns
    -------
    dict
        ``gain`` is the raw score minus that of the untuned model. ``quality`` is the same on first lines, where
        whatever follows the answer does not count. ``stopping`` is the rest, that is, how much less the model loses by
        running on than the untuned model does. ``gain = quality + stopping`` holds exactly.

    Raises
    ------
    InputError
        A score is missing.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> def scores(raw, first_line):
    ...     found = {"bleu_raw": raw, "bleu_first_line": first_line}
    ...     return {name: Replicates(value, np.full((10, 1), value)) for name, value in found.items()}
    >>> decomposition(scores(30.0, 34.0), scores(5.0, 33.0))["stopping"]
    Replicates(24 (24 to 24), 10 resamples)
    """
    check_choice(metric, ("bleu", "chrf"), "metric")
    raw, first = f"{metric}_raw", f"{metric}_first_line"
    for name, scores in (("model", model), ("untuned", untuned)):
        missing = {raw, first} - set(check_mapping(scores, Replicates, name))
        if missing:
            raise InputError(f"{name} has no score {min(missing)!r}: make it with score_replicates")
    gain, quality = model[raw] - untuned[raw], model[first] - untuned[first]
    return {"gain": gain, "quality": quality, "stopping": gain - quality}


def differences(first: Scores, second: Scores) -> dict[str, Interval]:
    """Return every score of ``first`` minus the same score of ``second``, with paired 95% intervals.

    Scores that ``second`` does not have are left out.

    Raises
    ------
    InputError
        The two were resampled differently, or a score is unknown.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> a, b = Replicates(2.0, np.array([[1.0], [3.0]])), Replicates(1.0, np.array([[0.5], [2.5]]))
    >>> differences({"nll": a}, {"nll": b})
    {'nll': Interval(value=1.0, low=0.5, high=1.0)}
    """
    _check_scores(first, "first")
    _check_scores(second, "second")
    found = {}
    for metric in (metric for metric in first if metric in second):
        least, most = RANGES[metric]
        found[metric] = _within((first[metric] - second[metric]).interval(), least - most, most - least)
    return found


def seed_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Return ``first`` minus ``second``, seed by seed. A model of one seed is compared with every seed of the other.

    Raises
    ------
    InputError
        One of them has no seed, or the numbers of seeds do not fit each other.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> seed_differences([{"nll": 2.0}, {"nll": 2.5}], [{"nll": 1.0}])
    [{'nll': 1.0}, {'nll': 1.5}]
    """
    kind: Any = Mapping
    first, second = check_list(first, kind, "first"), check_list(second, kind, "second")
    count = max(len(first), len(second))
    if count % len(first) or count % len(second):
        raise InputError(f"first has {len(first)} seeds and second has {len(second)}: expected the same number, or one")
    pairs = zip(*(list(one) * (count // len(one)) for one in (first, second)), strict=True)
    return [{metric: a[metric] - b[metric] for metric in a} for a, b in pairs]


def score_intervals(scores: Scores, sentences: int) -> dict[str, Interval]:
    """Return values and 95% intervals of scores, within the range of each score.

    The interval of ``ended`` is at least as wide as Clopper and Pearson's for one model. Where all outputs end, no
    resample shows one that does not.

    Parameters
    ----------
    scores : mapping of str to Replicates
        What :func:`score_replicates` returns.
    sentences : int
        The number of sentences that were scored.

    Raises
    ------
    InputError
        A score is unknown, or there is no sentence.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> all_end = Replicates(1.0, np.ones((10, 1)))
    >>> print(score_intervals({"ended": all_end}, 3)["ended"])
    1 (0.2924 to 1)
    """
    _check_scores(scores, "scores")
    check_integer(sentences, "sentences", 1)
    found = {metric: _within(one.interval(), *RANGES[metric]) for metric, one in scores.items()}
    return found | ({"ended": _with_exact(found["ended"], sentences)} if "ended" in found else {})


def mean_over(parts: Sequence[Scores]) -> dict[str, Replicates]:
    """Return the mean over languages, replicate by replicate.

    Parameters
    ----------
    parts : sequence of mapping
        The scores of each language, resampled with different seeds.

    Raises
    ------
    InputError
        There is no language.
    TypeError
        ``parts`` is not a list of mappings of str to Replicates.

    Examples
    --------
    >>> one, three = ({"nll": Replicates(x, np.array([[x]]))} for x in (1.0, 3.0))
    >>> mean_over([one, three])
    {'nll': Replicates(2 (2 to 2), 1 resample)}
    """
    kind: Any = Mapping
    first, *rest = check_list(parts, kind, "parts", " of str to Replicates")
    for i, part in enumerate(parts):
        check_mapping(part, Replicates, f"parts[{i}]")
    result = dict(first)
    for part in rest:
        result = {metric: result[metric] + part[metric] for metric in result}
    return {metric: found * (1 / len(parts)) for metric, found in result.items()}


def language_seed(seed: int, code: str) -> int:
    """Return the seed of a language's draws. It differs between languages and depends on nothing else.

    >>> language_seed(0, "es") == language_seed(0, "es") != language_seed(0, "ca")
    True
    """
    check_integer(seed, "seed", 0)
    check_instance(code, str, "code")
    return int(np.random.SeedSequence((seed, *code.encode())).generate_state(1)[0])


def _check_scores(scores: Any, name: str) -> None:
    for metric in check_mapping(scores, Replicates, name):
        check_choice(metric, SCORES, f"a key of {name}")


def _with_exact(share: Interval, n: int) -> Interval:
    # A mean over seeds may lie between two counts. Take the low end of the lower count, the high end of the higher one.
    count = round(share.value * n, 6)
    low, high = clopper_pearson(math.floor(count), n).low, clopper_pearson(math.ceil(count), n).high
    return Interval(share.value, min(share.low, low), max(share.high, high))


def _within(found: Interval, least: float, most: float) -> Interval:
    return Interval(found.value, max(found.low, least), min(found.high, most))
