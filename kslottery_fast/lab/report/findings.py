"""What the numbers of a run say, in sentences, the unwelcome ones included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.evaluation.replicates import Replicates, replicates_over_seeds

COMPARED_TO_TICKETS = {"frequency_tuning": "the most frequent tokens", "random_tuning": "random corpus rows"}


def nll_difference(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    *,
    n_bootstrap: int,
    seed: int,
) -> Replicates:
    """NLL per token of ``first`` minus that of ``second`` on the same sentences, with paired bootstrap replicates.

    Parameters
    ----------
    first, second : ``sentence_nll`` (nats) and ``sentence_tokens`` of two evaluations of the same examples.
    """
    table = np.stack([first["sentence_nll"], second["sentence_nll"], first["sentence_tokens"]], 1)
    return replicates_over_seeds([table], lambda s: (s[0] - s[1]) / s[2], n_bootstrap=n_bootstrap, seed=seed)


def findings(
    summary: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]], *, n_bootstrap: int, seed: int
) -> list[str]:
    """Sentences on a finished run; differences of NLL and shares of them have a paired interval over sentences.

    Parameters
    ----------
    summary : settings, models, tickets and certificate as in ``summary.json``.
    evaluations : for each model the dict of its evaluation.
    """
    models, tickets = summary["models"], summary["tickets"]
    rows = f"the {tickets['count']} {'tickets' if tickets['selected_by'] == 'alpha' else 'rows of largest D'}"

    def difference(first: str, second: str) -> Replicates:
        return nll_difference(evaluations[first], evaluations[second], n_bootstrap=n_bootstrap, seed=seed)

    parts = [difference("untuned", name) for name in ("partial_transfer", "partial_tuning")]
    sentences = [
        _selection(tickets, summary["settings"]),
        _gain(models, rows, difference("untuned", "embed_tuning"), parts),
    ]
    for control, words in COMPARED_TO_TICKETS.items():
        sentences.append(_comparison(words, rows, difference(control, "partial_tuning").interval()))
    sentences.append(_stopping(models))
    sentences.append(_certified(summary["certificate"], tickets["alpha"], rows))
    return sentences


def _selection(tickets: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    correction = {None: "", "bonferroni": " (Bonferroni)", "bh": " (Benjamini-Hochberg)"}[settings["correction"]]
    test = f"At alpha = {tickets['alpha']:g}{correction} the KS test"
    threshold = tickets["threshold"]
    if tickets["selected_by"] == "top_k":
        reach = f"{threshold:.4f} is needed" if threshold <= 1 else "no D could be significant at this dimension"
        return (
            f"{test} selects no row: the largest D is {tickets['largest']:.4f}, {reach}. The number of tickets grows "
            f"with learning rate and steps. The run went on with the {tickets['count']} rows of largest D, which are "
            "not significant."
        )
    return (
        f"{test} selects {tickets['count']} of {tickets['vocab_size']:,} rows (D of at least {threshold:.4f}); "
        f"{tickets['active_rows']:,} rows were trained. The number depends on learning rate and steps too, not on "
        "alpha alone."
    )


def _gain(models: Mapping[str, Mapping[str, float]], rows: str, gain: Replicates, parts: Sequence[Replicates]) -> str:
    before, after = models["untuned"]["nll"], models["embed_tuning"]["nll"]
    interval = f"{gain.value:.3f} nats per token, {_interval(gain.interval())}"
    transfer, tuning = (part.share_of(gain) for part in parts)
    if transfer is None or tuning is None:
        return (
            f"Embed Tuning did not clearly lower the NLL per target token ({before:.3f} before, {after:.3f} after; "
            f"gain {interval}): the comparisons below are of models that may have learned nothing."
        )
    return (
        f"Embed Tuning lowers the NLL per target token from {before:.3f} to {after:.3f} (gain {interval}). Copying "
        f"{rows} recovers {_share(transfer)} of the gain, training them {_share(tuning)}."
    )


def _share(share: Interval) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _comparison(words: str, rows: str, difference: Interval) -> str:
    if difference.low > 0:
        verdict = f"Training {rows} gave a better model than training {words}, as many"
    elif difference.high < 0:
        verdict = f"Training {words} gave a better model than training {rows}"
    else:
        verdict = f"Training {words} and training {rows} cannot be told apart here"
    return (
        f"{verdict} (NLL of the control minus NLL of Partial Tuning: {difference.value:+.3f} nats per token, "
        f"{_interval(difference, '+')}; one training seed)."
    )


def _stopping(models: Mapping[str, Mapping[str, float]]) -> str:
    before, after = models["untuned"], models["partial_tuning"]
    ends = f"{before['ended']:.0%} of the untuned outputs end by themselves, {after['ended']:.0%} after Partial Tuning"
    scores = (
        f"Raw BLEU goes from {before['bleu_raw']:.2f} to {after['bleu_raw']:.2f}; on the first line alone, where what "
        f"follows the answer is not counted, from {before['bleu_first_line']:.2f} to {after['bleu_first_line']:.2f}."
    )
    if after["ended"] > before["ended"]:
        return f"Part of the raw scores is learning to stop: {ends}. {scores}"
    return f"The models did not learn to stop: {ends}. {scores}"


def _certified(certificate: Mapping[str, Any], alpha: float, rows: str) -> str:
    level = next(level for level in certificate["levels"] if level["alpha"] == alpha)
    agreement = Interval(**certificate["agreement"]["positions"])
    return (
        f"The criterion certifies {level['certified']:.1%} of {certificate['positions']:,} positions at alpha = "
        f"{alpha:g}. It is no proof: the model with the {level['transferred']} rows that alpha selects, run on all of "
        f"them, predicts another token at {level['violations']} of the certified ones. Copying {rows} predicts as "
        f"Embed Tuning does at {agreement.value:.1%} of all positions (95 % interval {agreement.low:.1%} to "
        f"{agreement.high:.1%})."
    )


def _interval(interval: Interval, sign: str = "") -> str:
    return f"95 % interval {interval.low:{sign}.3f} to {interval.high:{sign}.3f}"
