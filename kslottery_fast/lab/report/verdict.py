"""What an experiment found, for the first screen: the answer from validation, and what the test pairs say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kslottery_fast.lab.experiment.specs import FACTS, arms_of, shown_rates

from .advice import main_size
from .answer import answer
from .words import Outcome, chosen_rows, listed, options_of, share_text, way_of

MAX_LISTED = 4  # with more languages than this, only the extremes are named

_DO: dict[Outcome, str] = {"better": "do better", "worse": "do worse", "tie": "show no clear difference"}
_REVERSED: dict[Outcome, Outcome] = {"better": "worse", "worse": "better", "tie": "tie"}


class Best(NamedTuple):
    """The arm that a verdict is about: its spec, and the share of Embed Tuning's gain that it recovers."""

    spec: str
    share: Mapping[str, float]

    @property
    def selector(self) -> str:
        return FACTS[_name(self.spec)].selector or self.spec

    @property
    def copied(self) -> bool:
        return not FACTS[_name(self.spec)].trains

    @property
    def verb(self) -> str:
        return "copying" if self.copied else "training"


def verdict(language: Mapping[str, Any]) -> str:
    """State how many rows are enough in one language.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``.

    Returns
    -------
    str
        One line, computed from the validation pairs. Where the test pairs differ about another selector, it says both.
    """
    found = language["recommendation"]
    return answer(found, on_test=_tested(found, language["selectors"]))


def verdict_over(summary: Mapping[str, Any]) -> str:
    """State how many rows are enough in an experiment.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``, with its entries ``languages`` and ``recommendation``.

    Returns
    -------
    str
        One line: that of the language if there is one, otherwise that of the mean over languages.
    """
    languages, found = list(summary["languages"].values()), summary["recommendation"]
    if len(languages) == 1:
        return answer(found, on_test=_tested(found, languages[0]["selectors"]))
    return answer(found, f"in the mean over {len(languages)} languages", _tested(found, summary["selectors"]))


def on_test(language: Mapping[str, Any]) -> str:
    """State what the test pairs say about the rows to take.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``.

    Returns
    -------
    str
        The share of Embed Tuning's gain that these rows recover (without a set to take, the tickets that the findings
        are about), with its 95% interval, and how the other selectors did at the same size.
    """
    gain, selection = language["gain"], language["selection"]
    amount = f"{gain['value']:.3f} nats per token, 95% interval {gain['low']:.3f} to {gain['high']:.3f}"
    if gain["low"] <= 0:
        return f"Embed Tuning did not clearly lower the test NLL (gain {amount}), so no share of its gain can be given."
    best = best_arm(language)
    if best is None:
        return f"Embed Tuning lowers the test NLL by {amount}. No arm here trains or copies chosen rows."
    significant = selection["selected_by"] == "alpha" or language.get("select_by", "ks") != "ks"
    none = "" if significant else f"No row is significant at alpha = {selection['alpha']:g}. "
    rows = chosen_rows(best.selector, _rows(language, best.spec))
    text = f"{none}On the test pairs, {best.verb} {rows} recovers {share_text(best.share)} of Embed Tuning's gain"
    others = _others(language["selectors"], best)
    return _joined([text, _at_this_size(others)] if others else [text])


def on_test_over(summary: Mapping[str, Any]) -> str:
    """State what the test pairs say about the rows to take, in all languages of an experiment.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``, with its entries ``languages``, ``recommendation`` and ``selectors``.

    Returns
    -------
    str
        That of the language if there is one. Otherwise the shares that the same arm recovers in each language, and in
        which languages the other selectors of the same size do better or worse.
    """
    languages = list(summary["languages"].values())
    if len(languages) == 1:
        return on_test(languages[0])
    take = (summary["recommendation"] or {"take": None})["take"]
    found = {one["name"]: best_arm(one, take) for one in languages if one["gain"]["low"] > 0}
    told = {name: best for name, best in found.items() if best is not None}
    failed = [one["name"] for one in languages if one["gain"]["low"] <= 0]
    parts = [_shares(told)] if told else []
    if found and not told:
        parts.append("No arm here trains or copies chosen rows")
    parts += _outcomes(languages, told)
    if told:
        others = _others(summary["selectors"], next(iter(told.values())))
        parts += [f"in the mean over languages, {listed(_done(others))}"] if others else []
    if failed:
        where = "any language" if len(failed) == len(languages) else _of(failed, len(languages))
        parts.append(f"Embed Tuning did not clearly lower the test NLL in {where}")
    return _joined(parts)


def best_arm(language: Mapping[str, Any], take: str | None = None) -> Best | None:
    """Return the arm that the verdict is about.

    Parameters
    ----------
    language : mapping
        The entry of the language in ``summary.json``.
    take : str, optional
        An arm to prefer, by default that which the recommendation of the language takes.

    Returns
    -------
    Best or None
        That arm. If it has no share of the gain, the trained rows of the main size or of another size, or a copied set.
        None if no arm has rows and a share.
    """
    recommendation = language["recommendation"] or {"take": None, "kept": []}
    shares = {one["arm"]: one["test"] for one in recommendation["kept"]} | language["gain"]["shares"]
    tuned, _ = arms_of(language.get("select_by", "ks"))
    rest = sorted(shares, key=lambda spec: not spec.startswith(tuned))
    for spec in (take or recommendation["take"], f"{tuned}@{main_size(language['arms'], tuned)}", *rest):
        if spec and shares.get(spec) and any(language["arms"][spec]["rows"]):
            return Best(spec, shares[spec])
    return None


def _rows(language: Mapping[str, Any], spec: str) -> float:
    counts = language["arms"][spec]["rows"]
    return float(sum(counts) / len(counts))


def _others(groups: Sequence[Mapping[str, Any]], best: Best) -> dict[Outcome, dict[str, float]]:
    """The other selectors of the same size by what they did, compared with the best one; with their numbers of rows."""
    size, options = best.spec.partition("@")[2].partition(":")[0], options_of(best.spec, without="draw")
    found: dict[Outcome, dict[str, float]] = {}
    for group in groups:
        if (group["size"], group["options"], group["copied"]) == (size, options, best.copied):
            against = {one["selector"]: one["against"] for one in group["models"]}
            for name, theirs in against.items():
                if best.selector in theirs:
                    found.setdefault(theirs[best.selector]["outcome"], {})[name] = group["rows"]
                elif name in against.get(best.selector, {}):
                    outcome = _REVERSED[against[best.selector][name]["outcome"]]
                    found.setdefault(outcome, {})[name] = group["rows"]
    return found


def _tested(found: Mapping[str, Any] | None, groups: Sequence[Mapping[str, Any]]) -> dict[str, Outcome]:
    """How the other selectors did on the test pairs, compared with the set to take and at its size."""
    if found is None or found["take"] is None:
        return {}
    others = _others(groups, Best(found["take"], {}))
    return {selector: outcome for outcome, names in others.items() for selector in names}


def _done(others: Mapping[Outcome, Mapping[str, float]]) -> list[str]:
    return [
        f"{listed([chosen_rows(name, rows) for name, rows in names.items()])} {_DO[outcome]}"
        for outcome, names in others.items()
    ]


def _at_this_size(others: Mapping[Outcome, Mapping[str, float]]) -> str:
    return f"at this size, {listed(_done(others))}"


def _outcomes(languages: Sequence[Mapping[str, Any]], told: Mapping[str, Best]) -> Iterator[str]:
    """For every other selector, in which languages it did better or worse."""
    found: dict[str, dict[Outcome, list[str]]] = {}
    sizes: dict[str, set[float]] = {}
    for language in languages:
        if best := told.get(language["name"]):
            for outcome, names in _others(language["selectors"], best).items():
                for name, rows in names.items():
                    found.setdefault(name, {}).setdefault(outcome, []).append(language["name"])
                    sizes.setdefault(name, set()).add(rows)
    for name, outcomes in found.items():
        count = next(iter(sizes[name])) if len(sizes[name]) == 1 else None
        each = [f"{_DO[one]} in {_of(names, len(languages))}" for one, names in outcomes.items()]
        yield f"{chosen_rows(name, count)} {listed(each)}"


def _shares(told: Mapping[str, Best]) -> str:
    specs = list(dict.fromkeys(best.spec for best in told.values()))
    start = f"of Embed Tuning's gain on the test pairs, {' or '.join(map(shown_rates, specs))} recovers"
    if len(told) <= MAX_LISTED:
        return f"{start} {listed([f'{share_text(best.share)} in {name}' for name, best in told.items()])}"
    ranked = sorted(told, key=lambda name: told[name].share["value"])
    low, high = (f"{share_text(told[name].share)} in {name}" for name in (ranked[0], ranked[-1]))
    return f"{start} between {low} and {high} ({len(told)} languages)"


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


def _of(names: Sequence[str], among: int) -> str:
    if len(names) == among:
        return "all languages" if len(names) > 1 else names[0]
    return listed(names) if len(names) <= MAX_LISTED else f"{len(names)} of {among} languages"


def _name(spec: str) -> str:
    return way_of(spec).partition(":")[0]
