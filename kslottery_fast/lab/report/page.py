"""What is rendered from templates: the page of an experiment, and its table in LaTeX.

The page is one HTML file that loads nothing, runs nothing, follows the reader's theme, prints; its
Content-Security-Policy enforces the first two. Whatever stands in ``{{ }}`` or ``<< >>`` is data and is escaped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kslottery_fast.base.visible import visible_text, visible_token
from kslottery_fast.evaluation.effects import PARTS

from . import tables, words
from .picture import CSS_VARIABLES, Picture, colour_of
from .words import NOTHING, arm_label, is_plain, model_key, selection_of

MAX_SAMPLE_CHARS = 240
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\u00a0": "~",
        "…": r"\,..\,",
        "–": "--",
    }
)


def render(summary: Mapping[str, Any], environment: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page as text, from what ``summary.json`` and ``environment.json`` hold, with its figures numbered."""
    figures, plain = {picture.name: picture for picture in pictures}, is_plain(summary)
    hidden = ("commands",) if plain else ("command", "commands", "seconds")
    templates = _environment(autoescape=True, finalize=_visible)
    templates.filters |= {
        "count": words.count_text,
        "fact": fact,
        "interval": tables.interval_cell,
        "number": words.number,
        "percent": words.percent,
        "plural": words.plural,
        "pvalue": words.pvalue_text,
        "token": visible_token,
    }
    return templates.get_template("page.html.j2").render(
        summary=summary,
        plain=plain,
        languages=[{"code": code, **_view(summary, code)} for code in summary["languages"]],
        mean=_tables(summary["mean"]) if "mean" in summary else None,
        figures=figures,
        drawing=lambda name: (svg := figures[name].svg())._replace(body=Markup(svg.body)),
        next_figure=itertools.count(1).__next__,
        next_table=itertools.count(1).__next__,
        settings={**summary["settings"], **({} if plain else summary["grid"])},
        environment={name: value for name, value in environment.items() if name not in hidden},
        commands=environment["commands"],
        parts=PARTS,
        notes={"gains": tables.GAINS_NOTE, "costs": tables.COSTS_NOTE},
        max_sample=MAX_SAMPLE_CHARS,
        css=Markup(resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")),
    )


def latex_text(summary: Mapping[str, Any]) -> str:
    r"""A booktabs table for each language, and of their mean; needs ``\usepackage{booktabs}``."""
    columns = (*tables.COSTS[1:3], tables.NLL, tables.EMBED, *tables.BLEU, tables.ENDS, *tables.GAINS)
    filled = [
        (code, name, [(arm_label(spec, arm), [column.short(arm) for column in columns]) for spec, arm in arms.items()])
        for code, name, arms in tables.parts(summary)
    ]
    brackets = {"block_start_string": "<%", "block_end_string": "%>", "comment_start_string": "<#"}
    brackets |= {"variable_start_string": "<<", "variable_end_string": ">>", "comment_end_string": "#>"}
    template = _environment(finalize=latex, **brackets).get_template("scores.tex.j2")
    return template.render(title=summary["title"], columns=columns, tables=filled, note=tables.NOTE)


def _environment(**options: Any) -> Environment:
    loader = PackageLoader(str(__package__), "templates")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def _view(summary: Mapping[str, Any], code: str) -> dict[str, Any]:
    """What the templates show of a language beside what ``summary.json`` has."""
    language = summary["languages"][code]
    names = {model_key(spec): arm_label(spec, arm) for spec, arm in language["arms"].items()}
    return {
        **language,
        "tables": _tables(language["arms"]),
        "selected": selection_of(summary, code),
        "labels": {"source": "Source", "reference": "Reference", **names},
    }


def _tables(arms: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of arms, by name: columns that have something to show, and a row of cells for each arm."""
    costs = [one for one in tables.COSTS if one not in tables.MODELS]
    groups = {"models": tables.MODELS, "gains": (tables.EMBED, *tables.GAINS), "costs": costs}
    found = {}
    for name, group in groups.items():
        columns = tables.shown(group, list(arms.values()))
        rows = [
            (CSS_VARIABLES[colour_of(spec)], arm_label(spec, arm), [column.cell(arm) for column in columns])
            for spec, arm in arms.items()
        ]
        found[name] = {"columns": columns, "rows": rows}
    return found


def _visible(value: Any) -> Any:
    """Text with its invisible signs made visible; what is missing is a dash."""
    if value is None:
        return NOTHING
    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def latex(value: Any) -> str:
    """Text with LaTeX's special signs escaped; a minus before a number becomes a real one."""
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", str(value).translate(_LATEX))


def fact(value: Any, separator: str = "\n") -> str:
    """A setting in words; a mapping one entry a line, what is nested deeper on one line."""
    if isinstance(value, Mapping):
        return separator.join(f"{key}: {fact(item, ', ')}" for key, item in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return separator.join(fact(item, ", ") for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
