"""Tables of arms: the columns that terminal, page and LaTeX share, the CSV file, and rows printed during a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kslottery_fast.base.visible import visible_text
from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.lab.experiment.console import duration

from . import rates, selector_table
from .words import (
    NOTHING,
    Cell,
    arm_label,
    compact,
    count_text,
    interval_cell,
    is_plain,
    number,
    percent,
    selection_of,
)

WIDE = 220  # characters that all columns side by side need
FILES = {
    "Report": "report.html",
    "Numbers": "summary.json",
    "Table": "scores.csv",
    "Tickets": "tickets.json",
    "Their rows": "tickets.safetensors",
    "PEFT adapter": "adapter",
}
_ROW = "{:21} {:>6} {:>8} {:>9} {:>8} {:>9} {:>6} {:>6}"

Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table of arms.

    Attributes
    ----------
    heading : str
    cell : callable
        Returns what the column shows of an arm.
    better : {"higher", "lower", ""}
        Which values are better; "" if neither.
    narrow : callable, optional
        Returns a shorter text for a narrow table.
    """

    heading: str
    cell: Callable[[Arm], Cell]
    better: Literal["higher", "lower", ""] = ""
    narrow: Callable[[Arm], Cell] | None = None

    def short(self, arm: Arm) -> Cell:
        """Return the cell for a narrow table."""
        return (self.narrow or self.cell)(arm)


def _score(metric: str, digits: int, ends: int) -> Callable[[Arm], Cell]:
    return lambda arm: interval_cell(arm["scores"][metric], digits, ends)


def _part(group: str, metric: str, digits: int, ends: int) -> Callable[[Arm], Cell]:
    return lambda arm: interval_cell((arm.get(group) or {}).get(metric), digits, ends, signed=True)


def _ends(arm: Arm) -> Cell:
    found = arm["scores"]["ended"]
    return percent(found["value"]), f"{100 * found['low']:.0f}–{100 * found['high']:.0f}"


def _over_seeds(name: str, show: Callable[[float], str], bound: Callable[[float], str]) -> Callable[[Arm], Cell]:
    """The mean over seeds, and the range if the seeds differ."""

    def cell(arm: Arm) -> Cell:
        found = [one for one in arm.get(name) or [] if one is not None]
        ends = list(dict.fromkeys([bound(min(found)), bound(max(found))])) if found else []
        return (show(fmean(found)) if found else NOTHING), "…".join(ends) if len(ends) > 1 else ""

    return cell


def _mean(show: Callable[[float], str], *path: str) -> Callable[[Arm], Cell]:
    def cell(arm: Any) -> Cell:
        for name in path:
            arm = arm.get(name) or {}
        return (show(fmean(arm)) if arm else NOTHING), ""

    return cell


def _memory(arm: Arm) -> Cell:
    peak = (arm.get("peak_memory_mb") or {}).get("from_scratch")
    return (NOTHING if peak is None else f"{peak / 1000:.1f} GB"), ""


NLL = Column("NLL per token", _score("nll", 3, 2), "lower")
BLEU = (
    Column("BLEU raw", _score("bleu_raw", 2, 1), "higher"),
    Column("BLEU first line", _score("bleu_first_line", 2, 1), "higher"),
)
CHRF = (
    Column("chrF++ raw", _score("chrf_raw", 2, 1), "higher"),
    Column("chrF++ first line", _score("chrf_first_line", 2, 1), "higher"),
)
ENDS = Column("Ends", _ends, "higher")
CHARS = Column("Chars", _score("mean_chars", 0, 0), narrow=lambda arm: (_score("mean_chars", 0, 0)(arm)[0], ""))
TRAINED = Column("Trained", _mean(count_text, "trained_parameters"), narrow=_mean(compact, "trained_parameters"))
EMBED = Column("NLL minus Embed T.", _part("against_embed", "nll", 3, 3))
MODELS = (NLL, *BLEU, *CHRF, ENDS, CHARS, TRAINED)
GAINS = (
    Column("Raw gain", _part("decomposition", "gain", 2, 1)),
    Column("Quality part", _part("decomposition", "quality", 2, 1)),
    Column("Stopping part", _part("decomposition", "stopping", 2, 1)),
    Column("Gain, paraphrased", _part("paraphrased_against_untuned", "bleu_first_line", 2, 1)),
)
COSTS = (
    Column("Rows", _over_seeds("rows", count_text, count_text)),
    Column("Covers", _over_seeds("coverage", percent, lambda share: f"{100 * share:.0f}")),
    TRAINED,
    Column("Time", _mean(duration, "seconds", "making")),
    Column("Time incl. Embed T.", _mean(duration, "seconds", "from_scratch")),
    Column("Memory", _memory),
    Column("Chosen rate", rates.cell),
)

GAINS_NOTE = (
    "Values are means over training seeds. The 95% intervals combine a bootstrap over sentences with Student's t over "
    "seeds, and those of differences are paired in both. Raw gain is raw BLEU minus that of the untuned model. The "
    "quality part is the gain on first lines, where text after the answer is not counted. The stopping part is the "
    "rest. The paraphrased gain is BLEU on the first line minus that of the untuned model, with a template that was "
    "not trained."
)
COSTS_NOTE = (
    "Covers is the coverage: the share of the tokens of the training examples (prompts included) whose rows the arm "
    "changes. Copied rows count as 0 trained numbers. Time is the time to make the arm, mean over seeds, without "
    'scoring. "Incl. Embed T." adds the Embed Tuning that its rows come from or are chosen by (a size given as alpha '
    "is not counted). Memory is the peak while the arm is made, that Embed Tuning included. Times depend on the "
    "processor."
)
NOTE = f"{GAINS_NOTE} {COSTS_NOTE}"


def shown(columns: Iterable[Column], arms: Sequence[Arm]) -> list[Column]:
    """Return the columns that are not empty for all arms."""
    return [column for column in columns if any(column.cell(arm)[0] != NOTHING for arm in arms)]


def parts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Arm]]]:
    """Yield code, name and arms of each language and of their mean."""
    for code, language in summary["languages"].items():
        yield code, language["name"], language["arms"]
    if "mean" in summary:
        yield "mean", "Mean over languages", summary["mean"]


def score_header() -> list[str]:
    """Return the two heading lines above rows of :func:`score_row`."""
    heads = (
        ("", "NLL", "BLEU", "BLEU", "chrF++", "chrF++", "", ""),
        ("Model", "", "raw", "1st line", "raw", "1st line", "Ends", "Chars"),
    )
    return [_ROW.format(*head).rstrip() for head in heads]


def score_row(label: str, evaluation: Evaluation) -> str:
    """Return the scores of one model on a line of 80 columns. A long label has a line of its own above."""
    found = {name: score["value"] for name, score in evaluation.scores().items()}
    scores = [number(found[name], 2) for name in ("bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line")]
    above, label = (f"{label}\n", "") if len(label) > 21 else ("", label)
    ends, chars = percent(found["ended"]), number(found["mean_chars"], 0)
    return above + _ROW.format(label, number(found["nll"], 3), *scores, ends, chars)


def print_summary(summary: Mapping[str, Any], console: Console, folder: Path) -> None:
    """Print all arms with their 95% intervals, the findings, the list of files, and the verdict.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``.
    console : Console
        Where to print. 80 columns are enough, and nothing depends on colour.
    folder : Path
        The folder of the experiment, whose files are listed.
    """
    plain = is_plain(summary)
    tables: tuple[tuple[Column, ...], ...] = (MODELS,) if plain else ((NLL, EMBED, *BLEU, ENDS), GAINS, COSTS)
    if not plain and console.width >= WIDE:
        tables = ((*tables[0], *CHRF, CHARS, *GAINS, *COSTS),)
    console.print(Text(visible_text(str(summary["title"])), style="bold"))
    for code, name, arms in parts(summary):
        if not plain:
            console.print()
            console.print(Text(visible_text(name), style="bold"))
        for place, columns in enumerate(tables):
            if place:
                console.print()
            if found := shown(columns, list(arms.values())):
                # In a table without edges, columns that rich shrinks take a little more room than they are given.
                console.print(_table(arms, found, console.width, plain), width=None if plain else console.width - 2)
        if groups := selector_table.groups_of(summary, code):
            console.print()
            console.print(_selectors(groups))
    if plain:
        selected = selection_of(summary, next(iter(summary["languages"])))
        console.print(Text(f"Selected: {selected}. Second lines: 95% intervals over sentences."))
    else:
        console.print(Text(NOTE))
    if summary["selectors"]:
        console.print(Text(selector_table.NOTE))
    for language in summary["languages"].values():
        console.print()
        start = f"- {language['name']}: " if len(summary["languages"]) > 1 else "- "
        for sentence in language["advice"]:
            if sentence != summary["verdict"]:
                console.print(f"{start}{sentence}", markup=False)
    console.print()
    for what, file in FILES.items():
        if (folder / file).exists():
            console.print(f"{what + ':':14}{folder / file}", markup=False, soft_wrap=True)
    console.print()
    console.print(f"Verdict: {summary['verdict']}", markup=False)
    console.print(summary["on_test"], markup=False)


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


def _selectors(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for place, heading in enumerate(selector_table.HEADINGS):
        table.add_column(heading, justify="right" if place > 1 else "left")
    for cells in selector_table.table_rows(groups):
        gap = "\n" if any(bounds for _, bounds in cells) else ""
        table.add_row(*(Text.assemble(value, gap, (bounds, "dim")) for value, bounds in cells))
    return table


def csv_text(summary: Mapping[str, Any]) -> str:
    """Write every score and difference with its bounds, and the costs, as CSV.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``.

    Returns
    -------
    str
        A line for every arm of every language, and for the mean of several draws of random rows. Shares are numbers
        between 0 and 1. The columns ``against_frequency`` and ``against_ks`` compare selectors of the same size.
    """
    lines: list[dict[str, Any]] = []
    for code, _, arms in parts(summary):
        columns, means = selector_table.csv_columns(selector_table.groups_of(summary, code))
        lines += [
            {"language": code, "arm": spec, "label": arm["label"], **_flat(arm), **columns.get(spec, {})}
            for spec, arm in arms.items()
        ]
        lines += [{"language": code, **line} for line in means]
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
    if arm.get("learning_rates"):
        flat["learning_rates"] = " ".join(str(one["kept"]) for one in arm["learning_rates"])
    if arm.get("seconds"):
        flat |= {f"seconds_{name}": fmean(values) for name, values in arm["seconds"].items()}
    flat |= {f"peak_memory_mb_{name}": peak or "" for name, peak in (arm.get("peak_memory_mb") or {}).items()}
    groups = ("against_untuned", "against_embed", "decomposition", "paraphrased", "paraphrased_against_untuned")
    for group in ("scores", *groups):
        for metric, found in (arm.get(group) or {}).items():
            prefix = metric if group == "scores" else f"{group}.{metric}"
            flat |= {prefix: found["value"], f"{prefix}.low": found["low"], f"{prefix}.high": found["high"]}
    return flat
