"""What the numbers of one language say, in sentences, the unwelcome ones included; and how many rows to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kslottery_fast.evaluation.replicates import Replicates

from .words import arm_label, is_model

FEW, MANY, STEEP, UNSTABLE = 5, 0.1, 3.0, 0.5
"""Warnings: fewer tickets than FEW; more than the share MANY of the active rows; a count that changes by the factor
STEEP when alpha is doubled or halved; a mean Jaccard overlap between seeds below UNSTABLE."""

_CONTROLS = {"frequency": "the most frequent tokens", "random": "random corpus rows"}
_ONE = "one training seed, so nothing is known of another"
_CORRECTIONS = {None: "", "bonferroni": " (Bonferroni)", "bh": " (Benjamini-Hochberg)"}


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

    Returns
    -------
    dict : ``arm`` and ``rows`` of the recommended set, None if no set is good enough; ``kept``: for every candidate,
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
        kept.append({"arm": candidate.arm, "rows": candidate.rows, **share.to_dict(), "test": test and test.to_dict()})
    chosen = None
    for one in reversed(kept):
        if one["low"] < 1 - margin or one["rows"] == 0:
            break
        chosen = one
    return {"arm": chosen and chosen["arm"], "rows": chosen and chosen["rows"], "margin": margin, "kept": kept}


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
    """All that can be said of a language; differences and shares have paired intervals.

    Parameters
    ----------
    language : its entry in ``summary.json``.
    correction : for many tests, of the KS test.
    """
    found, arms = [], language["arms"]
    sets = _sets(arms)
    if not sets or not all(map(is_model, sets)):  # the tickets alone leave nothing to choose from
        found.append(recommendation_text(language["recommendation"]))
    seeds = list(language["certificates"])
    one_of = f" with training seed {seeds[0]}" if len(seeds) > 1 else ""
    size = main_size(list(arms))
    rows = _rows_of(f"partial@{size}", language)
    found += [_selection(language["selection"], correction, one_of), _gain(language, size, rows)]
    found += [_control(entry, language) for entry in language["controls"]]
    tuned = f"partial@{size}" if f"partial@{size}" in arms else "embed"
    found.append(_stopping(arms["untuned"]["scores"], arms[tuned]["scores"], arm_label(tuned, arms[tuned])))
    found.append(_certified(next(iter(language["certificates"].values())), language["selection"], one_of))
    return found + _warnings(language["tickets"])


def main_size(specs: Sequence[str]) -> str:
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
    name = spec.partition("@")[0]
    if name in _CONTROLS:
        return _CONTROLS[name]
    counts = set(language["arms"][spec]["rows"]) if spec in language["arms"] else set()
    return "the tickets" if len(counts) > 1 else _tickets_of(language["selection"])


def _name(spec: str, language: Mapping[str, Any]) -> str:
    return arm_label(spec, language["arms"][spec]) if is_model(spec) else spec


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


def _gain(language: Mapping[str, Any], size: str, rows: str) -> str:
    before, after = (language["arms"][arm]["scores"]["nll"]["value"] for arm in ("untuned", "embed"))
    gain, shares = language["gain"], language["gain"]["shares"]
    interval = f"{gain['value']:.3f} nats per token, {_interval(gain)}"
    if gain["low"] <= 0 or None in shares.values():
        return (
            f"Embed Tuning did not clearly lower the NLL per target token ({before:.3f} before, {after:.3f} after; "
            f"gain {interval}): the comparisons below are of models that may have learned nothing."
        )
    told = {name: shares[spec] for name in ("transfer", "partial") if (spec := f"{name}@{size}") in shares}
    words = {"transfer": "copying", "partial": "training"}
    parts = [
        f"{words[name]} {'them' if place else f'{rows} recovers'} {_short(share)}{'' if place else ' of the gain'}"
        for place, (name, share) in enumerate(told.items())
    ]
    text = ", ".join(parts)
    return f"Embed Tuning lowers the NLL per target token from {before:.3f} to {after:.3f} (gain {interval})." + (
        f" {text[0].upper()}{text[1:]}." if parts else ""
    )


def _control(entry: Mapping[str, Any], language: Mapping[str, Any]) -> str:
    """Whether a control of the same size did as well as the tickets.

    One is called better only where the interval excludes 0 and the difference has the same sign with every seed.
    """
    control, own = entry["control"], entry["own"]
    found, seeds = entry["difference"]["nll"], [seed["nll"] for seed in entry["per_seed"]]
    names = _name(control, language), _name(own, language)
    covered = [fmean(language["arms"][arm]["coverage"]) for arm in (control, own)]
    by_seed = f"by seed {', '.join(f'{value:+.3f}' for value in seeds)}" if len(seeds) > 1 else _ONE
    facts = (
        f"(test NLL of {names[0]} minus {names[1]}: {found['value']:+.3f} nats per token, {_interval(found, '+')}; "
        f"{by_seed}; its rows are {covered[0]:.0%} of the training tokens, those of {names[1]} {covered[1]:.0%})"
    )
    theirs, rows = _rows_of(control, language), _rows_of(own, language)
    if found["low"] > 0 and min(seeds) > 0:
        return f"Training {rows} gave a better model than training {theirs}, as many {facts}."
    if found["high"] < 0 and max(seeds) < 0:
        return (
            f"Training {theirs} gave a better model than training {rows}, as many {facts}: the KS test is not what "
            "makes rows good."
        )
    return f"Training {theirs} and training {rows}, as many, cannot be told apart here {facts}."


def _stopping(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> str:
    shares = [scores["ended"]["value"] for scores in (before, after)]
    ends = f"{shares[0]:.0%} of the untuned outputs end by themselves, {shares[1]:.0%} after {name}"
    raw, first = ([one[metric]["value"] for one in (before, after)] for metric in ("bleu_raw", "bleu_first_line"))
    scores = (
        f"Raw BLEU goes from {raw[0]:.2f} to {raw[1]:.2f}; on the first line alone, where what follows the answer is "
        f"not counted, from {first[0]:.2f} to {first[1]:.2f}."
    )
    if shares[1] > shares[0]:
        return f"Part of the raw scores is learning to stop: {ends}. {scores}"
    return f"The models did not learn to stop: {ends}. {scores}"


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


def _warnings(tickets: Mapping[str, Any]) -> list[str]:
    """What speaks against relying on the tickets at alpha."""
    alpha, counts = tickets["alpha"], {entry["alpha"]: entry["counts"] for entry in tickets["by_alpha"]}
    own, active, overlap = counts[alpha], tickets["active_rows"], tickets["overlap_of_seeds"]
    least, most = min(own), max(own)
    span = f"{least}" if least == most else f"{least} to {most}"
    warnings = []
    if most == 0:
        if len(own) > 1:
            warnings.append(
                f"At alpha = {alpha:g} the test selects no row with any seed. Choose rows by number (partial@18) "
                "instead."
            )
    elif least < FEW:
        warnings.append(f"Few tickets at alpha = {alpha:g} ({span}): a slightly shorter training would leave none.")
    if any(count > MANY * rows for count, rows in zip(own, active, strict=True)):
        warnings.append(
            f"Many tickets at alpha = {alpha:g} ({span} of {active[0]:,} active rows): at this learning rate and "
            "number of steps the test hardly separates rows any more."
        )
    tighter, looser = sum(counts[alpha / 2]), sum(counts[min(2 * alpha, (1 + alpha) / 2)])
    if sum(own) and max(looser / sum(own), sum(own) / max(tighter, 1)) >= STEEP:
        warnings.append(
            f"The number of tickets is steep in alpha: {tighter} at half, {sum(own)} at alpha = {alpha:g}, {looser} at "
            f"double{' (all seeds together)' if len(own) > 1 else ''}."
        )
    if overlap is not None and overlap < UNSTABLE and most:
        warnings.append(
            f"Unstable tickets: two training seeds share {overlap:.0%} of their {tickets['overlap_of']} on average "
            f"(Jaccard), less than {UNSTABLE:.0%}."
        )
    return warnings


def _short(share: Mapping[str, float]) -> str:
    return f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def _interval(found: Mapping[str, float], sign: str = "") -> str:
    return f"95 % interval {found['low']:{sign}.3f} to {found['high']:{sign}.3f}"
