"""What the numbers of one language say, in sentences, including unwelcome results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any, Literal

from kslottery_fast.lab.experiment.specs import arms_of

from . import contribution_facts, rates
from .certified import certified_text, level_at
from .words import arm_label, is_model, rows_noun, share_text

FEW, MANY, STEEP, UNSTABLE = 5, 0.1, 3.0, 0.5
"""Thresholds of the warnings.

FEW: fewer tickets than this. MANY: a larger share of the active rows than this. STEEP: the number of tickets changes by
this factor when alpha is doubled or halved. UNSTABLE: a mean Jaccard overlap between seeds below this.
"""

Outcome = Literal["better", "worse", "tie"]

_CONTROLS = {"frequency": "equally many of the most frequent tokens", "random": "equally many random corpus rows"}
_SELECTIONS = {"ks": "the KS test", "l2": "L2 shift", "gradient": "gradients"}
_SELECTIONS |= {"frequency": "frequency", "contribution": "contribution"}
_ONE = "There is one training seed, so it is unknown how much these differences vary between seeds."
_CORRECTIONS = {None: "", "bonferroni": " (Bonferroni)", "bh": " (Benjamini-Hochberg)"}


def recommendation_text(found: Mapping[str, Any] | None, arm: str = "partial") -> str:
    """Say which set of tickets is recommended, or why none is.

    Parameters
    ----------
    found : mapping or None
        The entry ``recommendation`` of a language in ``summary.json``.
    arm : str
        The arm that trains the chosen rows.

    Returns
    -------
    str
        One to three sentences.

    Examples
    --------
    >>> recommendation_text(None).partition(",")[0]
    'No recommendation: Embed Tuning did not clearly lower the validation NLL'
    """
    if found is None:
        return (
            "No recommendation: Embed Tuning did not clearly lower the validation NLL, so no set can keep a "
            "share of its gain. Train longer or try another learning rate."
        )
    if not found["kept"]:
        return f"No recommendation: the comparison has no arm `{arm}`. Add some, for example {arm}@18 and {arm}@64."
    rule = (
        f"at least {1 - found['margin']:.0%} of Embed Tuning's gain in validation NLL (lower end of the 95% interval)"
    )
    if found["arm"] is None:
        best = max(found["kept"], key=lambda one: one["value"])
        return (
            f"No recommendation: a set of tickets is recommended if it and all larger sets keep {rule}. No set here "
            f"meets this condition. The best one, {best['arm']} ({best['rows']:,.0f} rows), keeps {_share_text(best)}. "
            "Add larger sets."
        )
    one = next(one for one in found["kept"] if one["arm"] == found["arm"])
    on_test = (
        "its share cannot be given because the gain there is not clearly above 0"
        if one["test"] is None
        else f"it keeps {_share_text(one['test'])}"
    )
    return (
        f"Recommended: {one['arm']}, {one['rows']:,.0f} rows. It is the smallest set that, like all larger sets, "
        f"keeps {rule}. It keeps {_share_text(one)}. On the test pairs, which were not used to choose it, {on_test}."
    )


def _share_text(found: Mapping[str, float]) -> str:
    return f"{found['value']:.0%} (95% interval {found['low']:.0%} to {found['high']:.0%})"


def sentences(language: Mapping[str, Any], correction: str | None) -> list[str]:
    """State the findings of one language.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``. Its differences have paired intervals.
    correction : str or None
        The correction for multiple tests that the run used.

    Returns
    -------
    list of str
        The findings, each of one or more sentences.
    """
    arms, recommendation, selection = language["arms"], language["recommendation"], language["selection"]
    tuned, _ = arms_of(language.get("select_by", "ks"))
    sets, seeds = _sets(arms, tuned), list(language["certificates"])
    one_of = f" with training seed {seeds[0]}" if len(seeds) > 1 else ""
    own = f"{tuned}@{main_size(arms, tuned)}"
    only_tickets = sets and all(map(is_model, sets))  # leaves nothing to choose from
    return [
        *([] if only_tickets else [recommendation_text(recommendation, tuned)]),
        _selection(selection, correction, one_of),
        *_contributions(language),
        _gain(language, own),
        *(_control(entry, language) for entry in language["controls"]),
        *([_ONE] if language["controls"] and len(seeds) == 1 else []),
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


def outcome(entry: Mapping[str, Any]) -> Outcome:
    """Return how a control did compared with tickets of the same number.

    Parameters
    ----------
    entry : mapping
        An entry of ``controls`` of a language in ``summary.json``. Its differences are control minus tickets.

    Returns
    -------
    {"better", "worse", "tie"}
        A control is better or worse only if the 95% interval of the NLL difference excludes 0 and the difference has
        the same sign with every training seed.

    Examples
    --------
    >>> outcome({"difference": {"nll": {"low": 0.1, "high": 0.3}}, "per_seed": [{"nll": 0.2}]})
    'worse'
    """
    found, seeds = entry["difference"]["nll"], [seed["nll"] for seed in entry["per_seed"]]
    if found["low"] > 0 and min(seeds) > 0:
        return "worse"
    return "better" if found["high"] < 0 and max(seeds) < 0 else "tie"


def _sets(specs: Iterable[str], arm: str) -> list[str]:
    """The arms of this name with the default learning rate."""
    return [spec for spec in specs if spec.startswith(f"{arm}@") and ":" not in spec]


def _tickets_of(selection: Mapping[str, Any]) -> str:
    return f"the {selection['count']} {rows_noun(selection)}"


def _rows_of(spec: str, language: Mapping[str, Any]) -> str:
    """The rows of an arm in words; the tickets with their number if it is the same for all seeds."""
    if not is_model(spec):
        return f"the rows of {spec}"
    several = spec in language["arms"] and len(set(language["arms"][spec]["rows"])) > 1
    own = "the tickets" if several else _tickets_of(language["selection"])
    return _CONTROLS.get(spec.partition("@")[0], own)


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


def _control(entry: Mapping[str, Any], language: Mapping[str, Any]) -> str:
    """Whether a control of the same size did as well as the tickets."""
    arms, pair = language["arms"], (entry["control"], entry["own"])
    found, seeds = entry["difference"]["nll"], [seed["nll"] for seed in entry["per_seed"]]
    theirs, own = (arm_label(spec, arms[spec]) if is_model(spec) else spec for spec in pair)
    covered = [fmean(arms[spec]["coverage"]) for spec in pair]
    by_seed = f" By seed: {', '.join(f'{value:+.3f}' for value in seeds)}." if len(seeds) > 1 else ""
    facts = (
        f"The difference in test NLL ({theirs} minus {own}) is {found['value']:+.3f} nats per token "
        f"({_interval(found, '+')}).{by_seed} Coverage of the training tokens is {covered[0]:.0%} for {theirs} and "
        f"{covered[1]:.0%} for {own}."
    )
    other, rows = (_rows_of(spec, language) for spec in pair)
    match outcome(entry):
        case "worse":
            return f"Training {rows} gave a better model than training {other}. {facts}"
        case "better":
            return (
                f"Training {rows} gave a worse model than training {other}. {facts} Selection by "
                f"{_SELECTIONS[language.get('select_by', 'ks')]} is therefore not what makes rows useful here."
            )
    return f"Training {rows} and training {other} gave models that cannot be told apart here. {facts}"


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
