"""What the numbers of one language say, in sentences, the unwelcome ones included; and how many rows to take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

from .words import arm_label, is_model

FEW, MANY, STEEP, UNSTABLE = 5, 0.1, 3.0, 0.5
"""Warnings: fewer tickets than FEW; more than the share MANY of the active rows; a count that changes by the factor
STEEP when alpha is doubled or halved; a mean Jaccard overlap between seeds below UNSTABLE."""

_CONTROLS = {"frequency": "the most frequent tokens", "random": "random corpus rows"}
_ONE = "one training seed, so nothing is known of another"
_CORRECTIONS = {None: "", "bonferroni": " (Bonferroni)", "bh": " (Benjamini-Hochberg)"}


def recommendation_text(found: Mapping[str, Any] | None) -> str:
    """The recommendation in a sentence."""
    if found is None:
        return (
            "No recommendation: Embed Tuning's gain in validation NLL is not clearly above 0, so no share of it means "
            "anything. Train longer or with another learning rate."
        )
    if not found["kept"]:
        return "No recommendation: the comparison has no arm `partial`; add some, such as partial@18 and partial@64."
    if found["arm"] is None:
        best = max(found["kept"], key=lambda one: one["value"])
        return (
            f"No set of tickets in this comparison surely keeps {1 - found['margin']:.0%} of Embed Tuning's gain in "
            f"validation NLL as all larger sets do; the best, {best['arm']} ({best['rows']:,.0f} rows), keeps "
            f"{_share(best)}. Add larger sets."
        )
    one = next(one for one in found["kept"] if one["arm"] == found["arm"])
    return (
        f"Recommended: {one['arm']}, {one['rows']:,.0f} rows: the smallest set here that, like all larger ones, surely "
        f"keeps {1 - found['margin']:.0%} of Embed Tuning's gain in validation NLL. It keeps {_share(one)}; on the "
        f"test pairs, which did not choose it, {_share(one['test'])}."
    )


def _share(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "no share can be told, since the gain there is not clearly above 0"
    return f"{found['value']:.0%} (95 % interval {found['low']:.0%} to {found['high']:.0%})"


def sentences(language: Mapping[str, Any], correction: str | None) -> list[str]:
    """All that can be said of a language by its entry in ``summary.json``; differences have paired intervals."""
    arms, recommendation, selection = language["arms"], language["recommendation"], language["selection"]
    sets, seeds = _sets(arms), list(language["certificates"])
    one_of = f" with training seed {seeds[0]}" if len(seeds) > 1 else ""
    own = f"partial@{main_size(arms)}"
    only_tickets = sets and all(map(is_model, sets))  # which leave nothing to choose from
    return [
        *([] if only_tickets else [recommendation_text(recommendation)]),
        _selection(selection, correction, one_of),
        _gain(language, own),
        *(_control(entry, language) for entry in language["controls"]),
        _stopping(arms, own if own in arms else "embed"),
        _certified(language["certificates"][seeds[0]], selection, one_of),
        *_warnings(language["tickets"]),
    ]


def main_size(specs: Iterable[str]) -> str:
    """The size of Partial Tuning, and of the Partial Transfer beside it, that is spoken of first.

    >>> main_size(["embed", "partial@64", "partial@tickets"]), main_size(["partial@64:lr=0.1", "partial@18"])
    ('tickets', '18')
    """
    sizes = [spec.partition("@")[2] for spec in _sets(specs)]
    return "tickets" if "tickets" in sizes or not sizes else sizes[0]


def _sets(specs: Iterable[str]) -> list[str]:
    """The arms of Partial Tuning at its own learning rate."""
    return [spec for spec in specs if spec.startswith("partial@") and ":" not in spec]


def _tickets_of(selection: Mapping[str, Any]) -> str:
    kind = "tickets" if selection["selected_by"] == "alpha" else "rows of largest D"
    return f"the {selection['count']} {kind}"


def _rows_of(spec: str, language: Mapping[str, Any]) -> str:
    """The rows of an arm in words: the tickets by their number, where all seeds have as many."""
    if not is_model(spec):
        return f"the rows of {spec}"
    several = spec in language["arms"] and len(set(language["arms"][spec]["rows"])) > 1
    own = "the tickets" if several else _tickets_of(language["selection"])
    return _CONTROLS.get(spec.partition("@")[0], own)


def _selection(tickets: Mapping[str, Any], correction: str | None, seed: str) -> str:
    test = f"At alpha = {tickets['alpha']:g}{_CORRECTIONS[correction]} the KS test"
    threshold = tickets["threshold"]
    if tickets["selected_by"] == "top_k":
        reach = f"{threshold:.4f} is needed" if threshold <= 1 else "no D could be significant at this dimension"
        return (
            f"{test} selects no row{seed}: the largest D is {tickets['largest']:.4f}, {reach}. The number of tickets "
            f"grows with learning rate and steps. The run went on with the {tickets['count']} rows of largest D, which "
            "are not significant."
        )
    return (
        f"{test} selects {tickets['count']} of {tickets['vocab_size']:,} rows{seed} (D of at least {threshold:.4f}); "
        f"{tickets['active_rows']:,} rows were trained. The number depends on learning rate and steps too, not on "
        "alpha alone."
    )


def _gain(language: Mapping[str, Any], own: str) -> str:
    before, after = (language["arms"][arm]["scores"]["nll"]["value"] for arm in ("untuned", "embed"))
    gain, shares = language["gain"], language["gain"]["shares"]
    interval = f"{gain['value']:.3f} nats per token, {_interval(gain)}"
    if gain["low"] <= 0 or None in shares.values():
        return (
            f"Embed Tuning did not clearly lower the NLL per target token ({before:.3f} before, {after:.3f} after; "
            f"gain {interval}): the comparisons below are of models that may have learned nothing."
        )
    text = f"Embed Tuning lowers the NLL per target token from {before:.3f} to {after:.3f} (gain {interval})."
    told = [("copying", own.replace("partial", "transfer")), ("training", own)]
    parts = [(verb, _short(shares[spec])) for verb, spec in told if spec in shares]
    if parts:
        (verb, share), *rest = parts
        text += f" {verb.capitalize()} {_rows_of(own, language)} recovers {share} of the gain"
        text += "".join(f", {verb} them {share}" for verb, share in rest) + "."
    return text


def _control(entry: Mapping[str, Any], language: Mapping[str, Any]) -> str:
    """Whether a control of the same size did as well as the tickets.

    One is called better only where the interval excludes 0 and the difference has the same sign with every seed.
    """
    arms, pair = language["arms"], (entry["control"], entry["own"])
    found, seeds = entry["difference"]["nll"], [seed["nll"] for seed in entry["per_seed"]]
    names = [arm_label(spec, arms[spec]) if is_model(spec) else spec for spec in pair]
    covered = [fmean(arms[spec]["coverage"]) for spec in pair]
    by_seed = f"by seed {', '.join(f'{value:+.3f}' for value in seeds)}" if len(seeds) > 1 else _ONE
    facts = (
        f"(test NLL of {names[0]} minus {names[1]}: {found['value']:+.3f} nats per token, {_interval(found, '+')}; "
        f"{by_seed}; its rows are {covered[0]:.0%} of the training tokens, those of {names[1]} {covered[1]:.0%})"
    )
    theirs, rows = (_rows_of(spec, language) for spec in pair)
    if found["low"] > 0 and min(seeds) > 0:
        return f"Training {rows} gave a better model than training {theirs}, as many {facts}."
    if found["high"] < 0 and max(seeds) < 0:
        return (
            f"Training {theirs} gave a better model than training {rows}, as many {facts}: the KS test is not what "
            "makes rows good."
        )
    return f"Training {theirs} and training {rows}, as many, cannot be told apart here {facts}."


def _stopping(arms: Mapping[str, Any], tuned: str) -> str:
    ended, raw, first = (
        [arms[spec]["scores"][metric]["value"] for spec in ("untuned", tuned)]
        for metric in ("ended", "bleu_raw", "bleu_first_line")
    )
    stopping = ended[1] > ended[0]
    return (
        f"{'Part of the raw scores is learning to stop' if stopping else 'The models did not learn to stop'}: "
        f"{ended[0]:.0%} of the untuned outputs end by themselves, {ended[1]:.0%} after "
        f"{arm_label(tuned, arms[tuned])}. Raw BLEU goes from {raw[0]:.2f} to {raw[1]:.2f}; on the first line alone, "
        f"where what follows the answer is not counted, from {first[0]:.2f} to {first[1]:.2f}."
    )


def _certified(certificate: Mapping[str, Any], tickets: Mapping[str, Any], seed: str) -> str:
    alpha, agreement = tickets["alpha"], certificate["agreement"]["positions"]
    level = next(level for level in certificate["levels"] if level["alpha"] == alpha)
    return (
        f"The criterion certifies {level['certified']:.1%} of {certificate['positions']:,} positions at alpha = "
        f"{alpha:g}{seed}. It is no proof: the model with the {level['transferred']} rows that alpha selects, run on "
        f"all of them, predicts another token at {level['violations']} of the certified ones. Copying "
        f"{_tickets_of(tickets)} predicts as Embed Tuning does at {agreement['value']:.1%} of all positions "
        f"(95 % interval {agreement['low']:.1%} to {agreement['high']:.1%})."
    )


def _warnings(tickets: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against relying on the tickets at alpha."""
    alpha, counts = tickets["alpha"], {entry["alpha"]: entry["counts"] for entry in tickets["by_alpha"]}
    own, active, overlap = counts[alpha], tickets["active_rows"], tickets["overlap_of_seeds"]
    least, most = min(own), max(own)
    span = f"{least}" if least == most else f"{least} to {most}"
    tighter, looser = sum(counts[alpha / 2]), sum(counts[min(2 * alpha, (1 + alpha) / 2)])
    if most == 0 and len(own) > 1:
        yield f"At alpha = {alpha:g} the test selects no row with any seed. Choose rows by number (partial@18) instead."
    if most and least < FEW:
        yield f"Few tickets at alpha = {alpha:g} ({span}): a slightly shorter training would leave none."
    if any(count > MANY * rows for count, rows in zip(own, active, strict=True)):
        yield (
            f"Many tickets at alpha = {alpha:g} ({span} of {active[0]:,} active rows): at this learning rate and "
            "number of steps the test hardly separates rows any more."
        )
    if sum(own) and max(looser / sum(own), sum(own) / max(tighter, 1)) >= STEEP:
        yield (
            f"The number of tickets is steep in alpha: {tighter} at half, {sum(own)} at alpha = {alpha:g}, {looser} at "
            f"double{' (all seeds together)' if len(own) > 1 else ''}."
        )
    if overlap is not None and overlap < UNSTABLE and most:
        yield (
            f"Unstable tickets: two training seeds share {overlap:.0%} of their {tickets['overlap_of']} on average "
            f"(Jaccard), less than {UNSTABLE:.0%}."
        )


def _short(share: Mapping[str, float]) -> str:
    return f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def _interval(found: Mapping[str, float], sign: str = "") -> str:
    return f"95 % interval {found['low']:{sign}.3f} to {found['high']:{sign}.3f}"
