"""What the numbers of one language say, in sentences, including unwelcome results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

from kslottery_fast.lab.experiment.specs import FACTS, arms_of

from . import contribution_facts, rates
from .answer import answer, reason
from .certified import certified_text, level_at
from .selector_text import selector_sentences
from .words import arm_label, chosen_rows, rows_noun, share_text

FEW, MANY, STEEP, UNSTABLE = 5, 0.1, 3.0, 0.5
"""Thresholds of the warnings.

FEW: fewer tickets than this. MANY: a larger share of the active rows than this. STEEP: the number of tickets changes by
this factor when alpha is doubled or halved. UNSTABLE: a mean Jaccard overlap between seeds below this.
"""

_ONE = "There is one training seed, so it is unknown how much these differences vary between seeds."
_CORRECTIONS = {None: "", "bonferroni": " (Bonferroni)", "bh": " (Benjamini-Hochberg)"}


def sentences(language: Mapping[str, Any], correction: str | None, updates: tuple[int, int] | None = None) -> list[str]:
    """State the findings of one language.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``. Its differences have paired intervals.
    correction : str or None
        The correction for multiple tests that the run used.
    updates : (int, int) or None
        The updates of Embed Tuning, and those of the arms that train chosen rows. A finding says so if they differ.

    Returns
    -------
    list of str
        The findings, each of one or more sentences. The first is the answer to the question how many rows are enough.
    """
    arms, recommendation, selection = language["arms"], language["recommendation"], language["selection"]
    seeds, compared = list(language["certificates"]), selector_sentences(language["selectors"], arms)
    one_of = f" with training seed {seeds[0]}" if len(seeds) > 1 else ""
    tuned, _ = arms_of(language.get("select_by", "ks"))
    own = f"{tuned}@{main_size(arms, tuned)}"
    return [
        answer(recommendation),
        *filter(None, [reason(recommendation)]),
        *compared,
        *([_ONE] if compared and len(seeds) == 1 else []),
        _selection(selection, correction, one_of),
        *_contributions(language),
        _gain(language, own),
        *_updates(updates),
        _stopping(arms, own if own in arms else "embed"),
        _certified(language["certificates"][seeds[0]], selection, one_of),
        *_warnings(language["tickets"]),
        *rates.sentences(arms),
    ]


def main_size(specs: Iterable[str], arm: str = "partial") -> str:
    """Return the size of Partial Tuning (and of Partial Transfer) that the findings mention first.

    Parameters
    ----------
    specs : iterable of str
        The arms of an experiment.
    arm : str
        The one that trains the chosen rows.

    Returns
    -------
    str
        "tickets" if there is such an arm or none of another size; otherwise the size of the first one.

    Examples
    --------
    >>> main_size(["embed", "partial@64", "partial@tickets"]), main_size(["partial@64:lr=0.1", "partial@18"])
    ('tickets', '18')
    """
    sizes = [spec.partition("@")[2] for spec in _sets(specs, arm)]
    return "tickets" if "tickets" in sizes or not sizes else sizes[0]


def _sets(specs: Iterable[str], arm: str) -> list[str]:
    """The arms of this name with the default learning rate."""
    return [spec for spec in specs if spec.startswith(f"{arm}@") and ":" not in spec]


def _tickets_of(selection: Mapping[str, Any]) -> str:
    return f"the {selection['count']} {rows_noun(selection)}"


def _rows_of(spec: str, language: Mapping[str, Any]) -> str:
    """The rows of an arm in words; the tickets with their number if it is the same for all seeds."""
    rows = language["arms"][spec]["rows"] if spec in language["arms"] else []
    if spec != "partial@tickets":
        return chosen_rows(FACTS[spec.partition("@")[0]].selector or spec, fmean(rows) if rows else None)
    return "the tickets" if len(set(rows)) > 1 else _tickets_of(language["selection"])


def _selection(tickets: Mapping[str, Any], correction: str | None, seed: str) -> str:
    test = f"At alpha = {tickets['alpha']:g}{_CORRECTIONS[correction]} the KS test"
    threshold = tickets["threshold"]
    if tickets["selected_by"] == "top_k":
        required = (
            f"The smallest significant D is {threshold:.4f}."
            if threshold <= 1
            else "No D can be significant at this dimension."
        )
        return (
            f"{test} selects no row{seed}. The largest D is {tickets['largest']:.4f}. {required} Higher learning "
            f"rates and more steps give more tickets. The run used the {tickets['count']} rows of largest D instead, "
            "which are not significant."
        )
    return (
        f"{test} selects {tickets['count']:,} of {tickets['vocab_size']:,} rows{seed} (D of at least "
        f"{threshold:.4f}). Embed Tuning trained {tickets['active_rows']:,} rows. The number of tickets depends on "
        "learning rate and steps as well as on alpha."
    )


def _contributions(language: Mapping[str, Any]) -> Iterator[str]:
    if found := language.get("contributions"):  # measured if an arm needs them
        yield contribution_facts.sentence(found)


def _gain(language: Mapping[str, Any], own: str) -> str:
    before, after = (language["arms"][arm]["scores"]["nll"]["value"] for arm in ("untuned", "embed"))
    gain, shares = language["gain"], language["gain"]["shares"]
    amount = f"a gain of {gain['value']:.3f} nats ({_interval(gain)})"
    if gain["low"] <= 0 or None in shares.values():
        return (
            f"Embed Tuning did not clearly lower the NLL per target token: {before:.3f} before, {after:.3f} after, "
            f"{amount}. The comparisons below are between models that may have learned nothing."
        )
    text = f"Embed Tuning lowers the NLL per target token from {before:.3f} to {after:.3f}, {amount}."
    tuned, copied = arms_of(language.get("select_by", "ks"))
    told = [("copying", own.replace(tuned, copied)), ("training", own)]
    parts = [(verb, share_text(shares[spec])) for verb, spec in told if spec in shares]
    if parts:
        (verb, share), *rest = parts
        text += f" {verb.capitalize()} {_rows_of(own, language)} recovers {share} of this gain"
        text += "".join(f"; {verb} them recovers {share}" for verb, share in rest) + "."
    return text


def _updates(updates: tuple[int, int] | None) -> Iterator[str]:
    if updates and updates[0] != updates[1]:
        yield (
            f"Partial Tuning and its controls trained for {updates[1]:,} updates, and Embed Tuning for {updates[0]:,}. "
            "The shares of its gain do not tell how they compare after equally many."
        )


def _stopping(arms: Mapping[str, Any], tuned: str) -> str:
    ended, raw, first = (
        [arms[spec]["scores"][metric]["value"] for spec in ("untuned", tuned)]
        for metric in ("ended", "bleu_raw", "bleu_first_line")
    )
    learned = ended[1] > ended[0]
    part = "Part of the change in raw scores comes from learning to stop"
    stopping = part if learned else "The models did not learn to stop"
    return (
        f"{stopping}: "
        f"{ended[0]:.0%} of the untuned outputs end by themselves, compared with {ended[1]:.0%} after "
        f"{arm_label(tuned, arms[tuned])}. Raw BLEU goes from {raw[0]:.2f} to {raw[1]:.2f}. On the first line alone, "
        f"where text after the answer is not counted, BLEU goes from {first[0]:.2f} to {first[1]:.2f}."
    )


def _certified(certificate: Mapping[str, Any], tickets: Mapping[str, Any], seed: str) -> str:
    alpha, agreement = tickets["alpha"], certificate["agreement"]["positions"]
    level = level_at(certificate, alpha)
    return (
        f"{certified_text(certificate, alpha, seed)}. Wrong means that the model with the "
        f"{level['transferred']:,} rows that alpha selects predicts another token there: the criterion is not a proof. "
        f"Copying {_tickets_of(tickets)} gives the same prediction as Embed Tuning at {agreement['value']:.1%} of all "
        f"positions ({_percent_interval(agreement)})."
    )


def _warnings(tickets: Mapping[str, Any]) -> Iterator[str]:
    """Reasons not to rely on the tickets at alpha."""
    alpha, counts = tickets["alpha"], {entry["alpha"]: entry["counts"] for entry in tickets["by_alpha"]}
    own, active, overlap = counts[alpha], tickets["active_rows"], tickets["overlap_of_seeds"]
    least, most = min(own), max(own)
    span = f"{least}" if least == most else f"{least} to {most}"
    half, double = alpha / 2, min(2 * alpha, (1 + alpha) / 2)
    tighter, looser = sum(counts[half]), sum(counts[double])
    if most == 0 and len(own) > 1:
        yield (
            f"At alpha = {alpha:g} the test selects no row with any training seed. Choose the number of rows instead, "
            "for example partial@18."
        )
    if most and least < FEW:
        yield f"There are few tickets at alpha = {alpha:g} ({span}). A slightly shorter training would leave none."
    if any(count > MANY * rows for count, rows in zip(own, active, strict=True)):
        yield (
            f"There are many tickets at alpha = {alpha:g} ({span} of {active[0]:,} active rows). At this learning rate "
            "and number of steps, the test hardly distinguishes between rows."
        )
    if sum(own) and max(looser / sum(own), sum(own) / max(tighter, 1)) >= STEEP:
        yield (
            f"The number of tickets depends strongly on alpha: {tighter} at {half:g}, {sum(own)} at {alpha:g}, "
            f"{looser} at {double:g}{' (summed over the seeds)' if len(own) > 1 else ''}."
        )
    if overlap is not None and overlap < UNSTABLE and most:
        yield (
            f"The tickets are unstable: on average, two training seeds share {overlap:.0%} of their "
            f"{tickets['overlap_of']} (Jaccard overlap; the limit is {UNSTABLE:.0%})."
        )


def _interval(found: Mapping[str, float], sign: str = "") -> str:
    return f"95% interval {found['low']:{sign}.3f} to {found['high']:{sign}.3f}"


def _percent_interval(found: Mapping[str, float]) -> str:
    return f"95% interval {found['low']:.1%} to {found['high']:.1%}"
