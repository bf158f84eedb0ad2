"""Rendering from templates: the page of an experiment, and its tables in LaTeX.

The page is one HTML file. It loads nothing, follows the reader's colour scheme and can be printed. It runs one script,
which sorts tables and says which boxes scroll. Its Content-Security-Policy allows this script (by its hash) and nothing
else. The page is complete without the script. Everything in ``{{ }}`` or ``<< >>`` is data and is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kslottery_fast.base.visible import visible_text, visible_token
from kslottery_fast.evaluation.effects import PARTS

from . import selector_table, tables, words
from .certified import certified_text
from .glossary import TERMS, link_first_uses
from .picture import CSS_VARIABLES, Picture, colour_of
from .words import NOTHING, arm_label, is_plain, model_key, selection_of

MAX_SAMPLE_CHARS = 240
_HEADING = re.compile(r'<h([23]) id="([^"]*)">(.*?)</h[23]>')
_LABELS = {  # of entries of environment.json; settings keep the names of run.json
    "cpu": "CPU",
    "cuda": "CUDA",
    "cuda_reason": "CUDA: reason",
    "hub_id": "id on the Hub",
    "isa": "instruction set",
    "left_out": "left out",
    "max_characters": "longest sentence, characters",
    "min_words": "shortest sentence, words",
    "peak_memory_mb": "peak memory, MB",
    "resumed_on": "resumed with",
    "seconds": "seconds by stage",
    "sha256": "SHA-256",
}
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
    """Render the page of an experiment.

    Parameters
    ----------
    summary, environment : mapping
        The contents of ``summary.json`` and ``environment.json``.
    pictures : sequence of Picture
        The figures, which are numbered in the order of the page.

    Returns
    -------
    str
        HTML.
    """
    templates = html_templates()
    shared = {
        "summary": summary,
        "languages": [{"code": code, **_view(summary, code)} for code in summary["languages"]],
    }
    content = _content(summary, environment, {picture.name: picture for picture in pictures})
    linked = link_first_uses(templates.get_template("body.html.j2").render(shared | content))
    header, end, body = linked.partition("</header>")
    return templates.get_template("page.html.j2").render(
        **shared,
        header=Markup(header + end),
        body=Markup(body),
        contents=[
            {"level": level, "id": Markup(place), "text": Markup(text)} for level, place, text in _HEADING.findall(body)
        ],
        **assets(templates),
    )


def html_templates() -> Environment:
    """Return the templates of HTML pages. All data is escaped, and invisible characters are made visible."""
    templates = _environment(autoescape=True, finalize=_visible)
    templates.filters |= {
        "certified": certified_text,
        "count": words.count_text,
        "groups": fact_groups,
        "interval": words.interval_cell,
        "number": words.number,
        "percent": words.percent,
        "plural": words.plural,
        "pvalue": words.pvalue_text,
        "token": visible_token,
    }
    return templates


def assets(templates: Environment) -> dict[str, str]:
    """Return the style sheet and the script of a page, and the hash of the script for the policy of the page."""
    script = templates.get_template("page.js.j2").render()
    return {
        "css": Markup(resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _content(
    summary: Mapping[str, Any], environment: Mapping[str, Any], figures: Mapping[str, Picture]
) -> dict[str, Any]:
    """What the body shows apart from the languages."""
    plain = is_plain(summary)
    hidden = {"commands"} if plain else {"command", "commands", "seconds"}
    return {
        "plain": plain,
        "mean": _tables(summary["mean"]) if "mean" in summary else None,
        "figures": figures,
        "drawing": lambda name: (svg := figures[name].svg())._replace(body=Markup(svg.body)),
        "next_figure": itertools.count(1).__next__,
        "next_table": itertools.count(1).__next__,
        "settings": {**summary["settings"], **({} if plain else summary["grid"])},
        "environment": _without_paths({name: one for name, one in environment.items() if name not in hidden}),
        "commands": environment["commands"],
        "parts": PARTS,
        "notes": {"gains": tables.GAINS_NOTE, "costs": tables.COSTS_NOTE, "selectors": selector_table.NOTE},
        "selector_headings": selector_table.HEADINGS,
        "selector_rows": selector_table.table_rows,
        "max_sample": MAX_SAMPLE_CHARS,
        "terms": TERMS,
    }


def _without_paths(environment: dict[str, Any]) -> dict[str, Any]:
    """Leave out the path of the model, which says nothing on another machine."""
    model = environment.get("model")
    if isinstance(model, Mapping) and model.get("kind") != "hub":
        environment["model"] = {name: value for name, value in model.items() if name != "path"}
    return environment


def latex_text(summary: Mapping[str, Any]) -> str:
    r"""Render a table for each language and for their mean, in LaTeX.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``.

    Returns
    -------
    str
        LaTeX that needs ``\usepackage{booktabs}``.
    """
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
    """The entry of a language in ``summary.json``, and what the templates need in addition."""
    language = summary["languages"][code]
    names = {model_key(spec): arm_label(spec, arm) for spec, arm in language["arms"].items()}
    return {
        **language,
        "tables": _tables(language["arms"]),
        "selected": (text := selection_of(summary, code))[0].upper() + text[1:],
        "noun": words.rows_noun(language["selection"]),
        "labels": {"source": "Source", "reference": "Reference", **names},
    }


def _tables(arms: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of arms by name: the columns that are not empty, and a row of cells for each arm."""
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
    """Text with its invisible characters made visible; a dash for None."""
    if value is None:
        return NOTHING
    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def latex(value: Any) -> str:
    """Text with LaTeX's special characters escaped. A hyphen before a number becomes a minus sign."""
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", str(value).translate(_LATEX))


def fact_groups(values: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Arrange settings or an environment for a table of two columns.

    Parameters
    ----------
    values : mapping
        As JSON holds it. A value may be a mapping.

    Returns
    -------
    list of tuple
        Groups, each with a title and its rows of name and value. The first group has no title and holds the single
        values; every mapping is a group of its own.

    Examples
    --------
    >>> fact_groups({"date": "today", "system": {"cpu": "x86", "kernels": {"native": True}}})
    [('', [('date', 'today')]), ('System', [('CPU', 'x86'), ('kernels: native', 'yes')])]
    """
    single = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    groups = [("", _rows(single))] if single else []
    for name, value in values.items():
        if isinstance(value, Mapping):
            groups.append(((label := _label(name))[:1].upper() + label[1:], _rows(value)))
    return groups


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += [(f"{_label(name)}: {inner}", text) for inner, text in _rows(value)]
        else:
            rows.append((_label(name), fact(value)))
    return rows


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def fact(value: Any, separator: str = "\n") -> str:
    """A value in words: a list has one entry on a line; whatever is nested deeper is on one line."""
    if isinstance(value, Mapping):
        return separator.join(f"{key}: {fact(item, ', ')}" for key, item in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return separator.join(fact(item, ", ") for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
