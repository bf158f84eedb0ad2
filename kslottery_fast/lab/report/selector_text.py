"""Which way to choose rows wins, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kslottery_fast.lab.experiment.specs import shown_rates

from .selector_facts import BASELINES
from .words import Outcome, about, listed, selector_name

_COUNTING_WINS = "A count of the tokens chooses better rows here than the KS test does."


def selector_sentences(groups: Sequence[Mapping[str, Any]], arms: Mapping[str, Any]) -> list[str]:
    """State how the selectors did compared with frequency (or with KS, if frequency is not among them).

    Parameters
    ----------
    groups : sequence of mapping
        The entry ``selectors`` of a language in ``summary.json``.
    arms : mapping
        Its entry ``arms``.

    Returns
    -------
    list of str
        A paragraph for every size of trained rows; if none were trained, for every size of copied rows.
    """
    shown = [group for group in groups if not group["copied"]] or groups
    found = [text for group in shown if (text := _compared(group))]
    if found and (covered := _covered(shown[0], arms)):
        found[0] += f" {covered}"
    # Without a size at which KS did as well. Where the sizes differ, their own sentences say so.
    if {_against(model, "frequency") for group in shown for model in group["models"] if _is_ks(model)} == {"worse"}:
        found[-1] += f" {_COUNTING_WINS}"
    return found


def _compared(group: Mapping[str, Any]) -> str:
    baseline = next((name for name in BASELINES if any(name in one["against"] for one in group["models"])), None)
    if baseline is None:
        return ""
    order: tuple[Outcome, ...] = ("better", "worse", "tie")
    models = [one for outcome in order for one in group["models"] if _against(one, baseline) == outcome]
    told: dict[Outcome, list[str]] = {}
    for place, model in enumerate(models):
        found = model["against"][baseline]
        told.setdefault(found["outcome"], []).append(_difference(model, found["nll"], full=place == 0))
    other, clauses = selector_name(baseline), []
    for outcome in order[:2]:
        if names := told.get(outcome):
            verb = "are" if len(names) > 1 or names[0].startswith("random rows") else "is"
            clauses.append(f"{listed(names)} {verb} {outcome} than {other}")
    if names := told.get("tie"):
        clauses.append(f"no difference from {other} is shown for {listed(names)}")
    made, options = "copied" if group["copied"] else "trained", shown_rates(group["options"][1:]).replace(":", ", ")
    start = f"With {about(group['rows'])} {made} rows{f' ({options})' if options else ''}, "
    sentences = [start + clauses[0], *(text[0].upper() + text[1:] for text in clauses[1:])]
    return " ".join(f"{text}." for text in sentences)


def _difference(model: Mapping[str, Any], found: Mapping[str, float], *, full: bool) -> str:
    unit, interval = (" nats per token of test NLL", "95% interval ") if full else ("", "")
    draws = f", mean of {len(model['arms'])} draws" if model["range"] else ""
    bounds = f"{interval}{found['low']:+.3f} to {found['high']:+.3f}"
    return f"{selector_name(model['selector'])} ({found['value']:+.3f}{unit}, {bounds}{draws})"


def _covered(group: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    shares = [
        f"{fmean(fmean(arms[spec]['coverage']) for spec in model['arms']):.0%} for {selector_name(model['selector'])}"
        for model in group["models"]
    ]
    return f"Coverage of the training tokens is {listed(shares)}."


def _against(model: Mapping[str, Any], other: str) -> Outcome | None:
    return model["against"][other]["outcome"] if other in model["against"] else None


def _is_ks(model: Mapping[str, Any]) -> bool:
    return bool(model["selector"] == "ks")
