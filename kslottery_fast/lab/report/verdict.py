"""The verdict: one line that says what an experiment found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .advice import Outcome, main_size, outcome
from .words import is_model, listed, rows_noun, share_text

MAX_LISTED = 4  # with more languages than this, only the extremes are named

_DO: dict[Outcome, str] = {"better": "do better", "worse": "do worse", "tie": "show no clear difference"}
_CONTROLS = {
    "frequency": ("the {} most frequent tokens", "equally many of the most frequent tokens"),
    "random": ("{} random rows", "equally many random rows"),
    "l2": ("the {} rows of largest L2 shift", "equally many rows of largest L2 shift"),
    "gradient": ("the {} rows of largest gradient", "equally many rows of largest gradient"),
    "contribution": ("the {} rows of largest contribution", "equally many rows of largest contribution"),
}


class Best(NamedTuple):
    """The arm that the verdict is about: its spec, and the share of Embed Tuning's gain that it recovers."""

    spec: str
    share: Mapping[str, float]

    @property
    def verb(self) -> str:
        return "training" if self.spec.startswith("partial") else "copying"


def verdict(language: Mapping[str, Any]) -> str:
    """State the result for one language.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``.

    Returns
    -------
    str
        One line: the share of Embed Tuning's gain that the recommended tickets recover (without a recommendation, the
        tickets that the findings are about), with its 95% interval, and how the controls of the same size did.
    """
    gain, selection = language["gain"], language["selection"]
    amount = f"{gain['value']:.3f} nats per token, 95% interval {gain['low']:.3f} to {gain['high']:.3f}"
    if gain["low"] <= 0:
        return f"Embed Tuning did not clearly lower the test NLL (gain {amount}), so no share of its gain can be given."
    best = best_arm(language)
    if best is None:
        return f"Embed Tuning lowers the test NLL by {amount}. No arm here trains or copies tickets."
    start, rows = "", f"{_counts(language, best.spec)} of {selection['vocab_size']:,} rows"
    if selection["selected_by"] == "top_k":
        start = f"No row is significant at alpha = {selection['alpha']:g}. "
        if best.spec.endswith("@tickets"):
            rows = f"the {_counts(language, best.spec)} {rows_noun(selection)}"
    text = f"{start}{best.verb.capitalize()} {rows} recovers {share_text(best.share)} of Embed Tuning's gain"
    controls = _controls(language, best.spec)
    return _joined([text, listed(controls)] if controls else [text])


def verdict_over(languages: Sequence[Mapping[str, Any]]) -> str:
    """State the result of an experiment.

    Parameters
    ----------
    languages : sequence of mapping
        The entries of its languages in ``summary.json``.

    Returns
    -------
    str
        One line: that of the language if there is one; otherwise the shares and controls of all languages together.
    """
    if len(languages) == 1:
        return verdict(languages[0])
    found = {one["name"]: best_arm(one) for one in languages if one["gain"]["low"] > 0}
    told = {name: best for name, best in found.items() if best is not None}
    failed = [one["name"] for one in languages if one["gain"]["low"] <= 0]
    parts = [_shares(languages, told)] if told else []
    if found and not told:
        parts.append("No arm here trains or copies tickets")
    parts += _outcomes(languages, told)
    if failed:
        parts.append(
            f"Embed Tuning did not clearly lower the test NLL in {_of(failed, [o['name'] for o in languages])}"
        )
    return _joined(parts)


def best_arm(language: Mapping[str, Any]) -> Best | None:
    """Return the arm that a verdict is about.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``.

    Returns
    -------
    Best or None
        Partial Tuning with the recommended size, otherwise with the main size, otherwise with another size;
        Partial Transfer if nothing was tuned. None if no arm has rows and a share.
    """
    recommendation = language["recommendation"] or {"arm": None, "kept": []}
    shares = {one["arm"]: one["test"] for one in recommendation["kept"]} | language["gain"]["shares"]
    size = main_size(language["arms"])
    order = [recommendation["arm"], f"partial@{size}", *shares, f"transfer@{size}"]
    for spec in sorted((spec for spec in order if spec), key=lambda spec: not spec.startswith("partial")):
        if shares.get(spec) and any(language["arms"][spec]["rows"]):
            return Best(spec, shares[spec])
    return None


def _counts(language: Mapping[str, Any], spec: str) -> str:
    counts = language["arms"][spec]["rows"]
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _controls(language: Mapping[str, Any], own: str) -> list[str]:
    """What the controls did, those with the same outcome together."""
    counts = set(language["arms"][own]["rows"])
    names: dict[Outcome, list[str]] = {}
    for entry in language["controls"]:
        name, _, options = entry["control"].partition("@")
        if entry["own"] == own and ":" not in options:
            one, several = _CONTROLS[name]
            words = one.format(f"{next(iter(counts)):,}") if len(counts) == 1 else several
            names.setdefault(outcome(entry), []).append(words)
    return [f"{listed(words)} {_DO[one]}" for one, words in names.items()]


def _outcomes(languages: Sequence[Mapping[str, Any]], told: Mapping[str, Best]) -> Iterator[str]:
    """For every control, in which languages it did better or worse."""
    found: dict[str, dict[Outcome, list[str]]] = {}
    for language in languages:
        if best := told.get(language["name"]):
            for entry in language["controls"]:
                name, _, options = entry["control"].partition("@")
                if entry["own"] == best.spec and ":" not in options:
                    found.setdefault(name, {}).setdefault(outcome(entry), []).append(language["name"])
    for name, outcomes in found.items():
        each = [f"{_DO[one]} in {_of(names, told)}" for one, names in outcomes.items()]
        yield f"{_CONTROLS[name][1]} {listed(each)}"


def _shares(languages: Sequence[Mapping[str, Any]], told: Mapping[str, Best]) -> str:
    verbs = list(dict.fromkeys(best.verb for best in told.values()))
    significant = all(one["selection"]["selected_by"] == "alpha" for one in languages)
    tickets = significant and all(is_model(best.spec) for best in told.values())
    counts = {_counts(one, told[one["name"]].spec) for one in languages if one["name"] in told}
    rows = "the tickets" if tickets else f"{f'{next(iter(counts))} ' if len(counts) == 1 else ''}rows of largest D"
    start = f"Of Embed Tuning's gain, {' or '.join(verbs)} {rows} recovers"
    if len(told) <= MAX_LISTED:
        return f"{start} {listed([f'{share_text(best.share)} in {name}' for name, best in told.items()])}"
    ranked = sorted(told, key=lambda name: told[name].share["value"])
    low, high = (f"{share_text(told[name].share)} in {name}" for name in (ranked[0], ranked[-1]))
    return f"{start} between {low} and {high} ({len(told)} languages)"


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


def _of(names: Sequence[str], among: Sequence[str] | Mapping[str, Best]) -> str:
    if len(names) == len(among):
        return "all languages" if len(names) > 1 else names[0]
    return listed(names) if len(names) <= MAX_LISTED else f"{len(names)} of {len(among)} languages"
