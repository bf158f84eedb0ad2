"""Words and number formats that page, figures, tables and advice share: labels of models, counts, shares, tokens."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

MODELS = {
    "untuned": ("untuned", "Untuned"),
    "embed": ("embed_tuning", "Embed Tuning"),
    "transfer": ("partial_transfer", "Partial Transfer"),
    "partial": ("partial_tuning", "Partial Tuning"),
    "frequency": ("frequency_tuning", "Frequency Tuning"),
    "random": ("random_tuning", "Random rows"),
}
"""The arms of a plain run, without a size or of the size "tickets": their keys in a summary, and their labels."""

NOTHING = "–"  # what is shown where a number does not exist; never "nan" or "None"
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_model(spec: str) -> bool:
    name, _, size = spec.partition("@")
    return name in MODELS and size == ("" if name in ("untuned", "embed") else "tickets")


def model_key(spec: str) -> str:
    """The key of an arm in a summary: that of version 0.1 where the arm is one of a plain run, else its text."""
    return MODELS[spec.partition("@")[0]][0] if is_model(spec) else spec


def arm_label(spec: str, arm: Mapping[str, Any]) -> str:
    if is_model(spec):
        return MODELS[spec.partition("@")[0]][1]
    rest = re.search(r"[@:].*", spec)
    return arm["label"] + (f" {rest[0]}" if rest else "")


def is_plain(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is that of a plain run: one seed, language and template, and no arm but those of ``MODELS``."""
    return is_plain_grid(summary["grid"])


def is_plain_grid(grid: Mapping[str, Any]) -> bool:
    """The same of a grid."""
    one_of_each = len(grid["seeds"]) == len(grid["targets"]) == 1 and not grid["paraphrase"]
    return one_of_each and all(map(is_model, grid["arms"]))


def selection_of(summary: Mapping[str, Any], code: str) -> str:
    """How a language's tickets were chosen; with its name and first seed where there are several."""
    language, seeds = summary["languages"][code], summary["grid"]["seeds"]
    count, alpha = int(language["selection"]["count"]), language["selection"]["alpha"]
    by_alpha = f"{plural(count, 'ticket')} at alpha = {alpha:g}"
    top_k = f"top {count} by D; alpha = {alpha:g} selected none"
    named = [language["name"]] * (len(summary["languages"]) > 1) + [f"training seed {seeds[0]}"] * (len(seeds) > 1)
    return ", ".join([top_k if language["selection"]["selected_by"] == "top_k" else by_alpha, *named])


def plural(count: int, noun: str) -> str:
    """A count with its noun, also for none and one."""
    return f"no {noun}" if count == 0 else f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int) -> str:
    """A fixed number of digits, or a dash for what is not a finite number."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage, with a space that does not break, or a dash."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}\u00a0%"


count_text = functools.partial(number, digits=0)


def compact(value: float | None) -> str:
    """A count in at most six signs."""
    if value is None or not math.isfinite(value) or value < 1000:
        return number(value, 0)
    unit, name = next((unit, name) for unit, name in _UNITS if value >= unit)
    return f"{value / unit:.3g} {name}" if value / unit >= 10 else f"{value / unit:.2f} {name}"


def pvalue_text(value: float) -> str:
    """A p-value: three decimals, or two digits where it is small."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-300:
        return "< 1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
