"""Words and number formats that page, figures, tables and advice share: labels, counts, shares, tokens."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.specs import shown_rates

MODELS = {
    "untuned": ("untuned", "Untuned"),
    "embed": ("embed_tuning", "Embed Tuning"),
    "transfer": ("partial_transfer", "Partial Transfer"),
    "partial": ("partial_tuning", "Partial Tuning"),
    "frequency": ("frequency_tuning", "Frequency Tuning"),
    "random": ("random_tuning", "Random rows"),
}
"""Keys (in a summary) and labels of the arms of a plain run, which have no size or the size "tickets"."""

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
    rest = re.search(r"[@:].*", spec)
    return arm["label"] + (f" {shown_rates(rest[0])}" if rest else "")


def is_plain(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is from a plain run: one seed, language and template, and only the arms in ``MODELS``."""
    return is_plain_grid(summary["grid"])


def is_plain_grid(grid: Mapping[str, Any]) -> bool:
    """Whether a grid is that of a plain run."""
    one_of_each = len(grid["seeds"]) == len(grid["targets"]) == 1 and not grid["paraphrase"]
    return one_of_each and all(map(is_model, grid["arms"]))


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
