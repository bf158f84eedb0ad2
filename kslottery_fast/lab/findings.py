"""What the numbers of a run say, in sentences, the unwelcome ones included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kslottery_fast.resampling import Interval, bootstrap_interval

COMPARED_TO_TICKETS = {"frequency_tuning": "the most frequent tokens", "random_tuning": "random corpus rows"}


def nll_difference(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    *,
    n_bootstrap: int,
    seed: int,
) -> Interval:
    """NLL per token of ``first`` minus that of ``second`` on the same sentences, with a paired bootstrap interval.

    Parameters
    ----------
    first, second : ``sentence_nll`` (nats) and ``sentence_tokens`` of two evaluations of the same examples.
    """
    table = np.stack([first["sentence_nll"], second["sentence_nll"], first["sentence_tokens"]], 1)
    return bootstrap_interval(table, lambda s: (s[0] - s[1]) / s[2], n_bootstrap=n_bootstrap, seed=seed)


def findings(
    summary: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]], *, n_bootstrap: int, seed: int
) -> list[str]:
    """Sentences on a finished run; every comparison of models comes with its interval.

    Parameters
    ----------
    summary : models, tickets and certificate as in ``summary.json``.
    evaluations : for each model the dict of its evaluation.
    """
    models, tickets = summary["models"], summary["tickets"]
    sentences = [_selection(tickets)]
    gain = models["untuned"]["nll"] - models["embed_tuning"]["nll"]
    if gain > 0:
        recovered = {
            name: (models["untuned"]["nll"] - models[name]["nll"]) / gain
            for name in ("partial_transfer", "partial_tuning")
        }
        sentences.append(
            f"Embed Tuning lowers the NLL per target token from {models['untuned']['nll']:.3f} to "
            f"{models['embed_tuning']['nll']:.3f}. Copying the {tickets['count']} selected rows recovers "
            f"{recovered['partial_transfer']:.0%} of that, training them {recovered['partial_tuning']:.0%}."
        )
    else:
        sentences.append(
            f"Embed Tuning did not lower the NLL per target token ({models['untuned']['nll']:.3f} before, "
            f"{models['embed_tuning']['nll']:.3f} after): what follows compares rows of a model that learned nothing."
        )
    for control, words in COMPARED_TO_TICKETS.items():
        difference = nll_difference(
            evaluations[control], evaluations["partial_tuning"], n_bootstrap=n_bootstrap, seed=seed
        )
        sentences.append(_comparison(words, difference, tickets["count"]))
    sentences.append(_stopping(models))
    sentences.append(_certified(summary["certificate"], tickets["alpha"]))
    return sentences


def _selection(tickets: Mapping[str, Any]) -> str:
    if tickets["selected_by"] == "top_k":
        return (
            f"At alpha = {tickets['alpha']:g} the KS test selects no row: the largest D is {tickets['largest']:.4f}, "
            f"{tickets['threshold']:.4f} is needed. The number of tickets grows with learning rate and steps. The run "
            f"went on with the {tickets['count']} rows of largest D, which are not significant."
        )
    return (
        f"At alpha = {tickets['alpha']:g} the KS test selects {tickets['count']} of {tickets['vocab_size']:,} rows "
        f"(D of at least {tickets['threshold']:.4f}); {tickets['active_rows']:,} rows were trained. The number depends "
        "on learning rate and steps too, not on alpha alone."
    )


def _comparison(words: str, difference: Interval, k: int) -> str:
    interval = f"{difference.value:+.3f} nats per token, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.low > 0:
        verdict = f"Training {k} tickets is better than training {words}, as many"
    elif difference.high < 0:
        verdict = f"Training {words} is better than training the {k} tickets"
    else:
        verdict = f"Training {words} and training the {k} tickets cannot be told apart here"
    return f"{verdict} (NLL of the control minus NLL of Partial Tuning: {interval})."


def _stopping(models: Mapping[str, Mapping[str, float]]) -> str:
    before, after = models["untuned"], models["partial_tuning"]
    return (
        f"Part of any raw score is learning to stop: {before['ended']:.0%} of the untuned outputs end by themselves, "
        f"{after['ended']:.0%} after Partial Tuning. Raw BLEU goes from {before['bleu_raw']:.2f} to "
        f"{after['bleu_raw']:.2f}; on the first line alone, where stopping counts for nothing, from "
        f"{before['bleu_first_line']:.2f} to {after['bleu_first_line']:.2f}."
    )


def _certified(certificate: Mapping[str, Any], alpha: float) -> str:
    level = next(level for level in certificate["levels"] if level["alpha"] == alpha)
    agreement = certificate["agreement"]["positions"]
    return (
        f"The criterion certifies {level['certified']:.1%} of {certificate['positions']:,} positions at alpha = "
        f"{alpha:g}; the transfer model, run on all of them, predicts another token at {level['violations']} of the "
        f"certified ones, and the same token at {agreement['value']:.1%} of all (95 % interval {agreement['low']:.1%} "
        f"to {agreement['high']:.1%})."
    )
