"""The page of an experiment: one HTML file that loads nothing, runs nothing, follows the reader's theme, prints.

Its Content-Security-Policy enforces the first two. The templates beside this file say what stands where.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from kslottery_fast.lab.experiment.interpret import PARTS

from .columns import COSTS, EMBED, GAINS, MODELS, shown
from .picture import CSS_VARIABLES, Picture, colour_of
from .tables import COSTS_NOTE, GAINS_NOTE
from .templating import html_environment
from .words import arm_label, is_plain, model_key, selection_of

MAX_SAMPLE_CHARS = 240
CITATION = """\
@inproceedings{yuan-etal-2025-ks,
  title     = {{KS}-Lottery: Finding Certified Lottery Tickets for Multilingual Transfer
               in Large Language Models},
  author    = {Yuan, Fei and Ma, Chang and Yuan, Shuai and Sun, Qiushi and Li, Lei},
  booktitle = {Proceedings of NAACL 2025 (Volume 1: Long Papers)},
  pages     = {9077--9090},
  year      = {2025},
  note      = {arXiv:2402.02801}
}"""


def render(summary: Mapping[str, Any], environment: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page as text.

    Parameters
    ----------
    summary, environment : the content of ``summary.json`` and of ``environment.json``.
    pictures : the figures, which the page numbers in the order in which it shows them.
    """
    figures = {picture.name: picture for picture in pictures}
    hidden = ("commands",) if is_plain(summary) else ("command", "commands", "seconds")
    settings = {**summary["settings"], **({} if is_plain(summary) else summary["grid"])}
    return (
        html_environment()
        .get_template("page.html.j2")
        .render(
            summary=summary,
            plain=is_plain(summary),
            languages=[{"code": code, **_view(summary, code)} for code in summary["languages"]],
            mean=_tables(summary["mean"]) if "mean" in summary else None,
            figures=figures,
            drawing=lambda name: (svg := figures[name].svg())._replace(body=Markup(svg.body)),
            next_figure=itertools.count(1).__next__,
            next_table=itertools.count(1).__next__,
            settings=settings,
            environment={name: value for name, value in environment.items() if name not in hidden},
            commands=environment["commands"],
            parts=PARTS,
            notes={"gains": GAINS_NOTE, "costs": COSTS_NOTE},
            max_sample=MAX_SAMPLE_CHARS,
            css=Markup(resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")),
            citation=CITATION,
        )
    )


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
    groups = {"models": MODELS, "gains": (EMBED, *GAINS), "costs": [one for one in COSTS if one not in MODELS]}
    tables = {}
    for name, group in groups.items():
        columns = shown(group, list(arms.values()))
        rows = [
            (CSS_VARIABLES[colour_of(spec)], arm_label(spec, arm), [column.cell(arm) for column in columns])
            for spec, arm in arms.items()
        ]
        tables[name] = {"columns": columns, "rows": rows}
    return tables
