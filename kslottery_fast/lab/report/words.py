"""Words and number formats that page, figures, tables and advice share: labels, counts, shares, tokens."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kslottery_fast.lab.experiment.settings import RUN_ARMS
from kslottery_fast.lab.experiment.specs import shown_rates

Outcome = Literal["better", "worse", "tie"]
Cell = tuple[str, str]  # of a table: a value, and under it an interval or nothing

MODELS = {
    "untuned": ("untuned", "Untuned"),
    "embed": ("embed_tuning", "Embed Tuning"),
    "transfer": ("partial_transfer", "Partial Transfer"),
    "partial": ("partial_tuning", "Partial Tuning"),
    "frequency": ("frequency_tuning", "Frequency Tuning"),
    "random": ("random_tuning", "Random rows"),
}
"""Keys (in a summary) and labels of the arms of a plain run, which have no size or the size "tickets"."""

SELECTORS = {
    "ks": ("KS", "the {}rows of largest D"),
    "frequency": ("frequency", "the rows of the {}most frequent tokens"),
    "random": ("random rows", "{}random rows"),
    "l2": ("L2 shift", "the {}rows of largest L2 shift"),
    "gradient": ("gradient", "the {}rows of largest gradient"),
    "contribution": ("contribution", "the {}rows that account for most of the loss's fall"),
}
"""What a way to choose rows is called, and the rows that it chooses, with a place for their number."""

NOTHING = "–"  # shown for a number that does not exist, never "nan" or "None"
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_model(spec: str) -> bool:
    name, _, size = spec.partition("@")
    return name in MODELS and size == ("" if name in ("untuned", "embed") else "tickets")


def model_key(spec: str) -> str:
    """The key of an arm in ``models`` of a summary: a name for the arms of a plain run, otherwise the spec itself."""
    return MODELS[spec.partition("@")[0]][0] if is_model(spec) else spec


def arm_label(spec: str, arm: Mapping[str, Any]) -> str:
    if is_model(spec):
        return MODELS[spec.partition("@")[0]][1]
    if spec.endswith("@tickets"):
        return str(arm["label"]).removesuffix(" (KS)")
    rest = re.search(r"[@:].*", spec)
    return arm["label"] + (f" {shown_rates(rest[0])}" if rest else "")


def options_of(spec: str, without: str = "") -> str:
    """Return what is written after the size of an arm.

    Parameters
    ----------
    spec : str
        The arm.
    without : str, optional
        The name of an option to leave out.

    Examples
    --------
    >>> options_of("random@18:lr=0.1:draw=2"), options_of("random@18:lr=0.1:draw=2", without="draw")
    (':lr=0.1:draw=2', ':lr=0.1')
    """
    options = spec.split(":")[1:]
    return "".join(f":{one}" for one in options if not (without and one.startswith(f"{without}=")))


def way_of(spec: str) -> str:
    """Return an arm without its size: arms of one way differ in their size alone.

    Examples
    --------
    >>> way_of("partial@18:lr=0.1"), way_of("partial@64:lr=0.1"), way_of("embed")
    ('partial:lr=0.1', 'partial:lr=0.1', 'embed')
    """
    return re.split("[@:]", spec)[0] + options_of(spec)


def selector_name(selector: str) -> str:
    """Return what a way to choose rows is called in a sentence.

    >>> selector_name("l2"), selector_name("mine")
    ('L2 shift', 'mine')
    """
    return SELECTORS[selector][0] if selector in SELECTORS else selector


def chosen_rows(selector: str, rows: float | None) -> str:
    """Return which rows a selector chooses, in words.

    Parameters
    ----------
    selector : str
        A key of ``SELECTORS`` in ``tickets/evidence.py``.
    rows : float or None
        Their number, a mean over seeds or languages. None if it is not to be said.

    Examples
    --------
    >>> chosen_rows("l2", 64), chosen_rows("ks", 52.5)
    ('the 64 rows of largest L2 shift', 'the rows of largest D (about 52)')
    """
    template = SELECTORS[selector][1] if selector in SELECTORS else f"the {{}}rows chosen by {selector}"
    if rows is None or rows != round(rows):
        return template.format("") + ("" if rows is None else f" (about {rows:,.0f})")
    return template.format(f"{rows:,.0f} ")


def outcome_of(difference: Mapping[str, float], by_seed: Sequence[float]) -> Outcome:
    """Return how a model did compared with another one.

    Parameters
    ----------
    difference : mapping
        Its NLL minus that of the other, with ``low`` and ``high``.
    by_seed : sequence of float
        The same difference of every training seed.

    Returns
    -------
    {"better", "worse", "tie"}
        Better or worse only if the interval excludes 0 and the difference has the same sign with every training seed.

    Examples
    --------
    >>> outcome_of({"low": 0.1, "high": 0.3}, [0.2]), outcome_of({"low": 0.1, "high": 0.3}, [0.5, -0.1])
    ('worse', 'tie')
    """
    if difference["low"] > 0 and min(by_seed) > 0:
        return "worse"
    return "better" if difference["high"] < 0 and max(by_seed) < 0 else "tie"


def is_plain(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is from a plain run: one seed, language and template, and only arms of ``kslottery run``."""
    return is_plain_grid(summary["grid"])


def is_plain_grid(grid: Mapping[str, Any]) -> bool:
    """Whether a grid is that of a plain run."""
    one_of_each = len(grid["seeds"]) == len(grid["targets"]) == 1 and not grid["paraphrase"]
    return one_of_each and all(is_model(spec) or spec in RUN_ARMS for spec in grid["arms"])


def selection_of(summary: Mapping[str, Any], code: str) -> str:
    """How the tickets of a language were chosen, with language and first seed if there are several."""
    language, seeds = summary["languages"][code], summary["grid"]["seeds"]
    count, alpha = int(language["selection"]["count"]), language["selection"]["alpha"]
    by_alpha = f"{plural(count, 'ticket')} at alpha = {alpha:g}"
    top_k = f"{plural(count, 'row')} of largest D, none significant at alpha = {alpha:g}"
    named = [language["name"]] * (len(summary["languages"]) > 1) + [f"training seed {seeds[0]}"] * (len(seeds) > 1)
    return ", ".join([top_k if language["selection"]["selected_by"] == "top_k" else by_alpha, *named])


def share_text(share: Mapping[str, float]) -> str:
    """Return a share with its interval.

    Parameters
    ----------
    share : mapping
        With ``value``, ``low`` and ``high``.

    Returns
    -------
    str
        Whole percentages.

    Examples
    --------
    >>> share_text({"value": 0.8555, "low": 0.8074, "high": 0.9089})
    '86% (81% to 91%)'
    """
    return f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def rows_noun(selection: Mapping[str, Any]) -> str:
    """Return what the selected rows are called: rows that are not significant are not tickets.

    Parameters
    ----------
    selection : mapping
        The entry ``selection`` of a language in ``summary.json``.

    Returns
    -------
    str
        "tickets" or "rows of largest D".

    Examples
    --------
    >>> rows_noun({"selected_by": "alpha"}), rows_noun({"selected_by": "top_k"})
    ('tickets', 'rows of largest D')
    """
    return "tickets" if selection["selected_by"] == "alpha" else "rows of largest D"


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence.

    Parameters
    ----------
    words : sequence of str
        At least one.

    Returns
    -------
    str
        The words with commas, and with "and" before the last.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    return f"no {noun}" if count == 0 else f"{count:,} {noun}{'' if count == 1 else 's'}"


def interval_cell(
    found: Mapping[str, float] | None, digits: int, ends: int | None = None, *, signed: bool = False
) -> Cell:
    """A value and its interval with a fixed number of digits; ``ends``: the digits of the interval, if other."""
    if found is None:
        return NOTHING, ""
    sign, to = ("+", "…") if signed else (",", "–")
    low, high = (f"{found[name]:{sign}.{digits if ends is None else ends}f}" for name in ("low", "high"))
    return f"{found['value']:{sign}.{digits}f}", f"{low}{to}{high}"


def about(count: float) -> str:
    """A mean count in words.

    >>> about(64), about(52.4)
    ('64', 'about 52')
    """
    return f"{count:,.0f}" if count == round(count) else f"about {count:,.0f}"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed number of digits, or a dash if it is not finite."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage, or a dash."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


count_text = functools.partial(number, digits=0)


def compact(value: float | None) -> str:
    """A count in at most six characters."""
    if value is None or not math.isfinite(value) or value < 1000:
        return number(value, 0)
    unit, name = next((unit, name) for unit, name in _UNITS if value >= unit)
    return f"{value / unit:.3g} {name}" if value / unit >= 10 else f"{value / unit:.2f} {name}"


def pvalue_text(value: float) -> str:
    """A p-value with three decimals, or two significant digits if it is small."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-300:
        return "< 1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
