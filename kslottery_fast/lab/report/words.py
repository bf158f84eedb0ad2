"""Words and number formats that page, figures, tables and advice share: labels of models, counts, shares, tokens."""

from __future__ import annotations

import math
import re
import unicodedata
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


def is_model(spec: str) -> bool:
    """Whether an arm is one of a plain run.

    >>> is_model("partial@tickets"), is_model("partial@18"), is_model("embed"), is_model("l2@tickets")
    (True, False, True, False)
    """
    name, _, size = spec.partition("@")
    return name in MODELS and size == ("" if name in ("untuned", "embed") else "tickets")


def model_key(spec: str) -> str:
    """The key of an arm in a summary: that of version 0.1 where the arm is one of a plain run, else its text.

    >>> model_key("partial@tickets"), model_key("partial@18")
    ('partial_tuning', 'partial@18')
    """
    return MODELS[spec.partition("@")[0]][0] if is_model(spec) else spec


def arm_label(spec: str, arm: Mapping[str, Any]) -> str:
    """The label of an arm with its size.

    >>> arm_label("frequency@18", {"label": "Frequency Tuning"}), arm_label("full:lr=0.001", {"label": "Full Tuning"})
    ('Frequency Tuning @18', 'Full Tuning :lr=0.001')
    >>> arm_label("partial@tickets", {"label": "Partial Tuning (KS)"})
    'Partial Tuning'
    """
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
    """How a language's tickets were chosen, in the words that titles and captions repeat.

    They are those of the first seed; language and seed are named where there are several.
    """
    language, seeds = summary["languages"][code], summary["grid"]["seeds"]
    tickets = language["selection"]
    text = f"{plural(tickets['count'], 'ticket')} at alpha = {tickets['alpha']:g}"
    if tickets["selected_by"] == "top_k":
        text = f"top {tickets['count']} by D; alpha = {tickets['alpha']:g} selected none"
    named = [language["name"]] * (len(summary["languages"]) > 1) + [f"training seed {seeds[0]}"] * (len(seeds) > 1)
    return ", ".join([text, *named])


def plural(count: int, noun: str) -> str:
    """A count with its noun, also for none and one.

    >>> plural(0, "ticket"), plural(1, "ticket"), plural(2200, "row")
    ('no ticket', '1 ticket', '2,200 rows')
    """
    return f"no {noun}" if count == 0 else f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int) -> str:
    """A fixed number of digits, or a dash for what is not a finite number.

    >>> number(1.8634, 2), number(float("nan"), 2), number(None, 2)
    ('1.86', '–', '–')
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    r"""A share as a percentage, or a dash.

    >>> percent(0.971), percent(0.971, 1), percent(None)  # with a space that does not break
    ('97\xa0%', '97.1\xa0%', '–')
    """
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}\u00a0%"


def compact(value: float | None) -> str:
    """A count in at most six signs.

    >>> compact(576), compact(31680), compact(1297728), compact(2.1e9), compact(None)
    ('576', '31.7 k', '1.30 M', '2.10 G', '–')
    """
    if value is None or not math.isfinite(value) or value < 1000:
        return number(value, 0)
    unit, name = next((unit, name) for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= unit)
    return f"{value / unit:.3g} {name}" if value / unit >= 10 else f"{value / unit:.2f} {name}"


def pvalue_text(value: float) -> str:
    """A p-value: three decimals, or two digits where it is small.

    >>> pvalue_text(0.0312), pvalue_text(3.21e-7), pvalue_text(0.0)
    ('0.031', '3.2e-07', '< 1e-300')
    """
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-300:
        return "< 1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def visible_token(token: str) -> str:
    r"""A token with its white space and invisible characters made visible.

    >>> visible_token(" Spanish"), visible_token("\n"), visible_token("\u202e"), visible_token("")
    ('␣Spanish', '↵', '\\u202e', '(empty)')
    """
    signs = {" ": "␣", "\n": "↵", "\t": "⇥"}
    # C: control, format, surrogate, unassigned; Z: spaces other than U+0020.
    hidden = {sign: escape_sign(sign) for sign in token if unicodedata.category(sign)[0] in "CZ"}
    return "".join((hidden | signs).get(sign, sign) for sign in token) or "(empty)"


def visible_text(text: str) -> str:
    r"""Prose as it is, but for what a page cannot hold or what would reorder it: those become escapes.

    >>> visible_text("two\nlines\x00")
    'two\nlines\\u0000'
    """
    reordering = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    hidden = {sign for sign in text if sign in reordering or unicodedata.category(sign) in ("Cc", "Cs", "Cn")}
    return "".join(escape_sign(sign) if sign in hidden - {"\n", "\t"} else sign for sign in text)


def escape_sign(sign: str) -> str:
    r"""The character as ``\uXXXX`` or ``\UXXXXXXXX``."""
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"
