"""Pieces that every page of a report is made of: the document, tables, figures, lists of facts. Data are escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from .picture import Picture
from .report_data import NOTHING, visible_text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str, footer: str) -> str:
    """One HTML file that loads nothing, runs nothing, follows the reader's theme, prints; ``body`` is HTML."""
    css = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{prose(title)}</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
<footer><p>{prose(footer)}</p></footer>
</body>
</html>
"""


def html_figure(picture: Picture, place: int) -> str:
    """A figure with its number and caption."""
    return (
        f'<figure id="{picture.name}"><div class="scroll" tabindex="0" role="group" aria-label="Figure '
        f'{place}">'
        f"{picture.svg()}</div>\n<figcaption><b>Figure {place}.</b> "
        f"{prose(picture.caption)}</figcaption></figure>"
    )


def html_table(place: int, caption: str, names: Sequence[str], rows: Sequence[str], tall: bool = False) -> str:
    """A table; caption, names and rows (cells without ``<tr>``) are HTML. A tall one scrolls."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    # The caption stands before the box that scrolls: it must not scroll away with a wide or long table.
    return (
        f'<p class="caption"><b>Table {place}.</b> {caption}</p>\n'
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="group" aria-label="Table {place}">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def fact_list(values: Mapping[str, Any]) -> str:
    """Names and values, one a line."""
    rows = [f"<dt>{prose(key)}</dt><dd>{prose(_fact(value))}</dd>" for key, value in values.items()]
    return f'<dl class="facts">{"".join(rows)}</dl>' if rows else f"<p>{NOTHING}</p>"


def _fact(value: Any, separator: str = "\n") -> str:
    """A setting in words; a mapping one entry a line, what is nested deeper on one line."""
    if isinstance(value, Mapping):
        return separator.join(f"{key}: {_fact(item, ', ')}" for key, item in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return separator.join(_fact(item, ", ") for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def prose(value: Any) -> str:
    """Prose for HTML: escaped, invisible signs made visible."""
    return escape(visible_text(str(value)))
