"""The table of an experiment: in the terminal, as CSV and as LaTeX; and rows for the terminal while a run works."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kslottery_fast.evaluation.evaluate import Evaluation

from .columns import BLEU, CHARS, CHRF, COSTS, EMBED, ENDS, GAINS, MODELS, NLL, Arm, Column, shown
from .words import arm_label, is_plain, number, percent, selection_of, visible_text

WIDE = 220  # signs that all columns side by side need
GAINS_NOTE = (
    "Values are means over training seeds; intervals: 95 %, bootstrap over sentences and Student's t over seeds, of "
    "differences paired in both. Raw gain: raw BLEU minus that of the untuned model; quality: the part on first lines, "
    "where running on is not counted; stopping: the rest. Gain, paraphrased: BLEU first line minus that of the untuned "
    "model with a template that was not trained."
)
COSTS_NOTE = (
    "Covers: share of the tokens of the training examples, prompts included, whose rows the arm changes. Rows that are "
    "copied train 0 numbers of their own. Time: making the arm, mean over seeds, without scoring; incl. Embed T.: with "
    "the Embed Tuning that its rows come from or are chosen by (a size given as alpha is not counted). Memory: peak "
    "while making it, that Embed Tuning included."
)
NOTE = f"{GAINS_NOTE} {COSTS_NOTE}"
FILES = {
    "Report": "report.html",
    "Numbers": "summary.json",
    "Table": "scores.csv",
    "Tickets": "tickets.json",
    "Their rows": "tickets.safetensors",
    "PEFT adapter": "adapter",
}
_ROW = "{:21} {:>6} {:>8} {:>9} {:>8} {:>9} {:>6} {:>6}"


def score_header() -> list[str]:
    """The two lines above rows of :func:`score_row`."""
    heads = (
        ("", "NLL", "BLEU", "BLEU", "chrF++", "chrF++", "", ""),
        ("Model", "", "raw", "1st line", "raw", "1st line", "Ends", "Chars"),
    )
    return [_ROW.format(*head).rstrip() for head in heads]


def score_row(label: str, evaluation: Evaluation) -> str:
    """One model on a line of 80 columns, for a terminal on which they appear one by one; a long label stands above."""
    found = {name: score["value"] for name, score in evaluation.scores().items()}
    scores = [number(found[name], 2) for name in ("bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line")]
    above, label = (f"{label}\n", "") if len(label) > 21 else ("", label)
    ends, chars = percent(found["ended"]), number(found["mean_chars"], 0)
    return above + _ROW.format(label, number(found["nll"], 3), *scores, ends, chars)


def print_summary(summary: Mapping[str, Any], console: Console, folder: Path) -> None:
    """Print all arms side by side, each value over its 95 % interval, then the advice and where the files are.

    80 columns are enough, and nothing depends on colour. The page has what does not fit.
    """
    plain = is_plain(summary)
    console.print(Text(visible_text(str(summary["title"])), style="bold"))
    for _, name, arms in _parts(summary):
        if not plain:
            console.print()
            console.print(Text(visible_text(name), style="bold"))
        for place, columns in enumerate(_groups(plain, console.width)):
            if place:
                console.print()
            if found := shown(columns, list(arms.values())):
                # Columns that rich shrinks, of a table without edges, take a little more than they are given.
                console.print(_table(arms, found, console.width, plain), width=None if plain else console.width - 2)
    if plain:
        selected = selection_of(summary, next(iter(summary["languages"])))
        console.print(Text(f"Selected: {selected}. Second lines: 95 % intervals over sentences."))
    else:
        console.print(Text(NOTE))
    for language in summary["languages"].values():
        console.print()
        start = f"- {language['name']}: " if len(summary["languages"]) > 1 else "- "
        for sentence in language["advice"]:
            console.print(f"{start}{sentence}", markup=False)
    console.print()
    for what, file in FILES.items():
        if (folder / file).exists():
            console.print(f"{what + ':':14}{folder / file}", markup=False, soft_wrap=True)


def _groups(plain: bool, width: int) -> tuple[tuple[Column, ...], ...]:
    """The columns of each table that is printed below the other."""
    if plain:
        return (MODELS,)
    scores = (NLL, EMBED, *BLEU, ENDS)
    return ((*scores, *CHRF, CHARS, *GAINS, *COSTS),) if width >= WIDE else (scores, GAINS, COSTS)


def _table(arms: Mapping[str, Arm], columns: list[Column], width: int, plain: bool) -> Table:
    roomy = width >= 90 or not plain
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, int(roomy), 0, 0), pad_edge=False)
    table.add_column("Model" if plain else "Arm", min_width=(16 if roomy else 9) if plain else 14)
    for column in columns:
        heading = column.heading.replace("first", "1st").replace(" ", "\n", 1) if plain else column.heading
        table.add_column(heading, justify="right", no_wrap=plain)
    for spec, arm in arms.items():
        cells = [column.short(arm) for column in columns]
        gap = "\n" if any(bounds for _, bounds in cells) else ""
        shown_cells = [Text.assemble(value, gap, (bounds, "dim")) for value, bounds in cells]
        table.add_row(Text(visible_text(arm_label(spec, arm))), *shown_cells)
    return table


def _parts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Arm]]]:
    """Code, name and arms of each language, and of their mean."""
    for code, language in summary["languages"].items():
        yield code, language["name"], language["arms"]
    if "mean" in summary:
        yield "mean", "Mean over languages", summary["mean"]


def csv_text(summary: Mapping[str, Any]) -> str:
    """All arms in all languages, a line each: every score and difference with its bounds, and the costs."""
    lines = [
        {"language": code, "arm": spec, "label": arm["label"], **_flat(arm)}
        for code, _, arms in _parts(summary)
        for spec, arm in arms.items()
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _flat(arm: Arm) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in ("rows", "coverage", "trained_parameters"):
        values = [value for value in arm.get(name) or [] if value is not None]
        flat[name] = fmean(values) if values else ""
    if arm.get("seconds"):
        flat |= {f"seconds_{name}": fmean(values) for name, values in arm["seconds"].items()}
    flat |= {f"peak_memory_mb_{name}": peak or "" for name, peak in (arm.get("peak_memory_mb") or {}).items()}
    groups = ("against_untuned", "against_embed", "decomposition", "paraphrased", "paraphrased_against_untuned")
    for group in ("scores", *groups):
        for metric, found in (arm.get(group) or {}).items():
            prefix = metric if group == "scores" else f"{group}.{metric}"
            flat |= {prefix: found["value"], f"{prefix}.low": found["low"], f"{prefix}.high": found["high"]}
    return flat


def latex_text(summary: Mapping[str, Any]) -> str:
    r"""A booktabs table for each language, and of their mean; needs ``\usepackage{booktabs}``."""
    from .templating import latex_environment

    columns = (*COSTS[1:3], NLL, EMBED, *BLEU, ENDS, *GAINS)
    tables = [
        (code, name, [(arm_label(spec, arm), [column.short(arm) for column in columns]) for spec, arm in arms.items()])
        for code, name, arms in _parts(summary)
    ]
    template = latex_environment().get_template("scores.tex.j2")
    return template.render(title=summary["title"], columns=columns, tables=tables, note=NOTE)
