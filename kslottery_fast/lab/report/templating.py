"""Jinja's environments for pages and for LaTeX: whatever stands in ``{{ }}`` or ``<< >>`` is data and is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .columns import interval_cell
from .words import NOTHING, number, percent, plural, pvalue_text, visible_text, visible_token

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00a0": "~",
    "…": r"\,..\,",
    "–": "--",
}
_LOADER = PackageLoader(__name__.rpartition(".")[0], "templates")
_OPTIONS: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}


def html_environment() -> Environment:
    """For pages: text is escaped and its invisible signs are made visible, what is missing is a dash."""
    found = Environment(loader=_LOADER, autoescape=True, finalize=_visible, **_OPTIONS)
    found.filters |= {
        "count": lambda count: number(count, 0),
        "fact": fact,
        "interval": interval_cell,
        "number": number,
        "percent": percent,
        "plural": plural,
        "pvalue": pvalue_text,
        "token": visible_token,
    }
    return found


def latex_environment() -> Environment:
    """For LaTeX, which needs other brackets; text is escaped by ``finalize``."""
    brackets = {"block_start_string": "<%", "block_end_string": "%>"}
    brackets |= {"variable_start_string": "<<", "variable_end_string": ">>", "comment_start_string": "<#"}
    options: dict[str, Any] = {**brackets, "comment_end_string": "#>", **_OPTIONS}
    return Environment(loader=_LOADER, autoescape=False, finalize=latex, **options)


def latex(value: Any) -> str:
    r"""Text with LaTeX's special signs escaped; a minus before a number becomes a real one.

    >>> latex("95 % of a_b, -0.5, 1–2")
    '95 \\% of a\\_b, $-$0.5, 1--2'
    """
    escaped = "".join(_LATEX.get(sign, sign) for sign in str(value))
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", escaped)


def _visible(value: Any) -> Any:
    if value is None:
        return NOTHING
    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def fact(value: Any, separator: str = "\n") -> str:
    r"""A setting in words; a mapping one entry a line, what is nested deeper on one line.

    >>> fact({"on": True, "sizes": [1, 2]}), fact(None), fact(0.1 + 0.2)
    ('on: yes\nsizes: 1, 2', '–', '0.3')
    """
    if isinstance(value, Mapping):
        return separator.join(f"{key}: {fact(item, ', ')}" for key, item in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return separator.join(fact(item, ", ") for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
