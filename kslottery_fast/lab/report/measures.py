"""Scores of an arm over sentences and seeds as paired replicates, what follows from them, and what an arm costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kslottery_fast.evaluation.evaluate import Evaluation, TargetNll, first_line, one_line
from kslottery_fast.evaluation.intervals import Interval, clopper_pearson
from kslottery_fast.evaluation.replicates import Replicates, replicates_over_seeds
from kslottery_fast.evaluation.scores import bleu_metric, chrf_metric, sentence_statistics
from kslottery_fast.lab.experiment.arms import ARMS, ChosenRows, Transfer
from kslottery_fast.lab.experiment.cell import EMBED, Cell
from kslottery_fast.lab.experiment.scoring import SCORE
from kslottery_fast.lab.experiment.specs import ArmSpec

Scores = Mapping[str, Replicates]
METRICS = ("nll", "bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line", "ended", "mean_chars")
PARAPHRASE_METRICS = ("nll", "bleu_raw", "bleu_first_line", "ended")
RANGES = {
    **dict.fromkeys(METRICS, (0.0, 100.0)),
    "nll": (0.0, math.inf),
    "ended": (0.0, 1.0),
    "mean_chars": (0.0, math.inf),
}
"""What a score can be; intervals of few seeds would leave it."""

SHOWN_BY_EMBED_TUNING = ("ks", "l2", "gradient")
"""Selectors that go by what Embed Tuning did; the others go by counts or by chance."""


def replicates(
    evaluations: Sequence[Evaluation],
    references: Sequence[str],
    *,
    bleu_tokenizer: str,
    n_bootstrap: int,
    seed: int,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Replicates]:
    """Replicates of every metric of one arm.

    Parameters
    ----------
    evaluations : one for each training seed, on the same sentences, whose targets are ``references``.
    bleu_tokenizer : of sacrebleu.
    n_bootstrap, seed : of the draws; the same for all arms of a language.
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


def nll_replicates(results: Sequence[Evaluation | TargetNll], *, n_bootstrap: int, seed: int) -> Replicates:
    """Replicates of NLL per target token; one result for each training seed."""
    return replicates_over_seeds([_nll_table(one) for one in results], _ratio, n_bootstrap=n_bootstrap, seed=seed)


def _nll_table(result: Evaluation | TargetNll) -> list[tuple[float, int]]:
    return list(zip(result.sentence_nll, result.sentence_tokens, strict=True))


def decomposition(arm: Scores, untuned: Scores, metric: str = "bleu") -> dict[str, Replicates]:
    """The raw gain of an arm, split into what it learned to say and what it learned not to go on saying.

    ``gain``: raw score minus that of the untuned model. ``quality``: the same on first lines, where whatever follows
    the answer is not counted. ``stopping``: the rest, i.e. how much less the arm loses by running on than the untuned
    model does. ``gain = quality + stopping``, exactly.
    """
    gain = arm[f"{metric}_raw"] - untuned[f"{metric}_raw"]
    quality = arm[f"{metric}_first_line"] - untuned[f"{metric}_first_line"]
    return {"gain": gain, "quality": quality, "stopping": gain - quality}


def differences(first: Scores, second: Scores) -> dict[str, dict[str, float]]:
    """Every metric of ``first`` minus that of ``second``, with paired 95 % intervals."""
    found = {}
    for metric in first:
        if metric in second:
            least, most = RANGES[metric]
            found[metric] = _within((first[metric] - second[metric]).interval(), least - most, most - least).to_dict()
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


def score_intervals(scores: Scores, sentences: int) -> dict[str, dict[str, float]]:
    """Values and 95 % intervals of scores on so many ``sentences``, within what such a score can be.

    That of ``ended`` is at least as wide as Clopper and Pearson's for one model: where all outputs end, no resample
    shows one that does not.
    """
    found = {metric: _within(one.interval(), *RANGES[metric]) for metric, one in scores.items()}
    if "ended" in found:
        found["ended"] = _with_exact(found["ended"], sentences)
    return {metric: one.to_dict() for metric, one in found.items()}


def intervals(scores: Scores) -> dict[str, dict[str, float]]:
    """Values and 95 % intervals as JSON takes them."""
    return {metric: found.interval().to_dict() for metric, found in scores.items()}


def mean_over(parts: Sequence[Scores]) -> dict[str, Replicates]:
    """The mean over languages, replicate by replicate; the languages must have been drawn with different seeds."""
    first, *rest = parts
    result = dict(first)
    for part in rest:
        result = {metric: result[metric] + part[metric] for metric in result}
    return {metric: found * (1 / len(parts)) for metric, found in result.items()}


def _with_exact(share: Interval, n: int) -> Interval:
    # A mean over seeds may lie between two counts: the interval of the lower one below, of the higher one above.
    count = round(share.value * n, 6)
    low, high = clopper_pearson(math.floor(count), n).low, clopper_pearson(math.ceil(count), n).high
    return Interval(share.value, min(share.low, low), max(share.high, high))


def _within(found: Interval, least: float, most: float) -> Interval:
    return Interval(found.value, max(found.low, least), min(found.high, most))


def _ratio(sums: Any) -> float:
    return float(sums[0] / sums[1])


def costs(spec: ArmSpec, cells: Sequence[Cell]) -> dict[str, Any]:
    """Seconds of every seed and peaks of memory of a scored arm; ``cells`` are its own.

    ``making`` the arm, alone and ``from_scratch``: with the Embed Tuning that its rows come from or are chosen by;
    and ``scoring`` it. A peak is None where the system could not tell that of a stage.
    """
    made = [cell.home(spec).record(str(spec)) for cell in cells]
    scored = [cell.home(spec).record(str(spec) + SCORE) for cell in cells]
    before = [cell.folder.record(str(EMBED)) for cell in cells] if needs_embed_tuning(spec) else []
    seconds = {name: [stage["seconds"] for stage in stages] for name, stages in (("making", made), ("scoring", scored))}
    seconds["from_scratch"] = [
        own + (before[place]["seconds"] if before else 0) for place, own in enumerate(seconds["making"])
    ]
    peaks = {"making": made, "from_scratch": [*made, *before], "scoring": scored}
    return {
        "needs_embed_tuning": bool(before),
        "seconds": seconds,
        "peak_memory_mb": {name: _peak(stages) for name, stages in peaks.items()},
    }


def needs_embed_tuning(spec: ArmSpec) -> bool:
    """Whether an arm takes its rows from Embed Tuning, or chooses them by what Embed Tuning showed.

    A size that is given as alpha does not count: the same arm can be asked for by a number of rows.

    >>> [needs_embed_tuning(ArmSpec(name, 18)) for name in ("partial", "transfer-frequency", "frequency", "lora")]
    [True, True, False, False]
    """
    arm = ARMS[spec.name]
    return isinstance(arm, Transfer) or (isinstance(arm, ChosenRows) and arm.selector in SHOWN_BY_EMBED_TUNING)


def _peak(stages: Sequence[Mapping[str, Any]]) -> int | None:
    peaks = [stage["environment"] for stage in stages]
    if any(peak["peak_memory_of"] != "stage" for peak in peaks):
        return None
    return max(int(peak["peak_memory_mb"]) for peak in peaks)
