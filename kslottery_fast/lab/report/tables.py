"""The table of a comparison: in the terminal, as CSV, as LaTeX. One list of columns serves terminal, LaTeX and page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.lab.experiment.console import duration

from .report_data import NOTHING, compact, percent, visible_text

Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: its ``heading`` and what a cell shows of an arm: a value and, under it, an interval or nothing."""

    heading: str
    cell: Callable[[Arm], tuple[str, str]]
    tex: str = ""  # heading in LaTeX, where another one is needed

    @property
    def latex(self) -> str:
        """The heading in LaTeX."""
        return self.tex or self.heading


def interval_cell(
    found: Mapping[str, float] | None, digits: int, ends: int | None = None, *, signed: bool = False
) -> tuple[str, str]:
    """A value and its interval, with a fixed number of digits; the ends of the interval may have fewer.

    >>> interval_cell({"value": 1.234, "low": -0.5, "high": 2.0}, 2, signed=True)
    ('+1.23', '-0.50…+2.00')
    """
    if found is None:
        return NOTHING, ""
    sign = "+" if signed else ""
    low, high = (f"{found[name]:{sign}.{digits if ends is None else ends}f}" for name in ("low", "high"))
    return f"{found['value']:{sign}.{digits}f}", f"{low}…{high}"


def _bleu(metric: str) -> Callable[[Arm], tuple[str, str]]:
    return lambda arm: interval_cell(arm["scores"][metric], 2, 1)


def _part(name: str) -> Callable[[Arm], tuple[str, str]]:
    return lambda arm: interval_cell((arm.get("decomposition") or {}).get(name), 2, 1, signed=True)


def _nll(arm: Arm) -> tuple[str, str]:
    return interval_cell(arm["scores"]["nll"], 3)


def _ends(arm: Arm) -> tuple[str, str]:
    found = arm["scores"]["ended"]
    return percent(found["value"]), f"{100 * found['low']:.0f}…{100 * found['high']:.0f}"


def _embed(arm: Arm) -> tuple[str, str]:
    return interval_cell((arm.get("against_embed") or {}).get("nll"), 3, signed=True)


def _paraphrased(arm: Arm) -> tuple[str, str]:
    return interval_cell((arm.get("paraphrased_against_untuned") or {}).get("bleu_first_line"), 2, 1, signed=True)


def _rows(arm: Arm) -> tuple[str, str]:
    rows = [row for row in arm.get("rows") or [] if row is not None]
    if not rows:
        return NOTHING, ""
    return (f"{rows[0]:,}", "") if len(set(rows)) == 1 else (f"{fmean(rows):,.0f}", f"{min(rows):,}…{max(rows):,}")


def _coverage(arm: Arm) -> tuple[str, str]:
    shares = [share for share in arm.get("coverage") or [] if share is not None]
    if not shares:
        return NOTHING, ""
    ends = [f"{100 * share:.0f}" for share in (min(shares), max(shares))]
    return percent(fmean(shares)), "" if ends[0] == ends[1] else "…".join(ends)


def _trained(arm: Arm) -> tuple[str, str]:
    trained = arm.get("trained_parameters")
    return (compact(fmean(trained)), "") if trained else (NOTHING, "")


def _time(arm: Arm) -> tuple[str, str]:
    seconds = arm.get("seconds")
    return (duration(fmean(seconds["making"])) if seconds else NOTHING), ""


def _from_scratch(arm: Arm) -> tuple[str, str]:
    seconds = arm.get("seconds")
    return (duration(fmean(seconds["from_scratch"])) if seconds else NOTHING), ""


def _memory(arm: Arm) -> tuple[str, str]:
    peak = (arm.get("peak_memory_mb") or {}).get("from_scratch")
    return (NOTHING if peak is None else f"{peak / 1000:.1f} GB"), ""


SCORES = (
    Column("NLL per token", _nll),
    Column("NLL minus Embed T.", _embed, "$\\Delta$ NLL (Embed)"),
    Column("BLEU raw", _bleu("bleu_raw")),
    Column("BLEU first line", _bleu("bleu_first_line")),
    Column("Ends", _ends),
)
GAINS = (
    Column("Raw gain", _part("gain")),
    Column("of it quality", _part("quality")),
    Column("of it stopping", _part("stopping")),
    Column("Gain, paraphrased", _paraphrased),
)
COSTS = (
    Column("Rows", _rows),
    Column("Covers", _coverage),
    Column("Trained", _trained),
    Column("Time", _time),
    Column("Time incl. Embed T.", _from_scratch),
    Column("Memory", _memory),
)
COLUMNS = (*SCORES, *GAINS, *COSTS)
WIDE = 180  # signs that all columns side by side need
NOTE = (
    "Values are means over training seeds; intervals: 95 %, bootstrap over sentences and Student's t over seeds, of "
    "differences paired in both. Raw gain: raw "
    "BLEU minus that of the untuned model; quality: the part on first lines, where running on is not counted; "
    "stopping: the rest. Gain, paraphrased: BLEU first line minus that of the untuned model with a template that was "
    "not trained. Covers: share of the tokens of the training examples, prompts included, whose rows the arm changes. "
    "Rows that are copied train 0 numbers of their own. Time: making the arm, mean over seeds, without "
    "scoring; incl. Embed T.: with the Embed Tuning that its rows come from or are chosen by (a size given as alpha is "
    "not counted). Memory: peak while making it, that Embed Tuning included."
)


def arm_label(spec: str, arm: Arm) -> str:
    """The label of an arm with its size.

    >>> arm_label("frequency@18", {"label": "Frequency Tuning"})
    'Frequency Tuning @18'
    """
    _, _, rest = spec.partition("@")
    rate = re.search(r":lr=.*", spec)
    return arm["label"] + (f" @{rest}" if rest else f" {rate[0]}" if rate else "")


def print_tables(summary: Mapping[str, Any], console: Console) -> None:
    """One table a language, and one of their mean; each value over its interval."""
    parts = [(language["name"], language["arms"]) for language in summary["languages"].values()]
    if "mean" in summary:
        parts.append(("Mean over languages", summary["mean"]))
    console.print(Text(visible_text(str(summary["title"])), style="bold"))
    for name, arms in parts:
        console.print()
        console.print(Text(visible_text(name), style="bold"))
        for columns in (COLUMNS,) if console.width >= WIDE else (SCORES, GAINS, COSTS):
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column("Arm", min_width=14)
            for column in columns:
                table.add_column(column.heading, justify="right")
            for spec, arm in arms.items():
                shown = [column.cell(arm) for column in columns]
                gap = "\n" if any(bounds for _, bounds in shown) else ""
                cells = [Text.assemble(value, gap, (bounds, "dim")) for value, bounds in shown]
                table.add_row(Text(arm_label(spec, arm)), *cells)
            # Columns that rich shrinks, of a table without edges, take a little more than they are given.
            console.print(table, width=console.width - 2)
    console.print(Text(NOTE))


def print_summary(summary: Mapping[str, Any], console: Console, folder: Path) -> None:
    """Tables, advice, and where the files are."""
    print_tables(summary, console)
    for language in summary["languages"].values():
        console.print()
        for sentence in language["advice"]:
            console.print(f"- {language['name']}: {sentence}", markup=False)
    console.print()
    for what, name in (("Report", "report.html"), ("Numbers", "summary.json"), ("Table", "scores.csv")):
        console.print(f"{what + ':':10}{folder / name}", markup=False, soft_wrap=True)


def score_header() -> list[str]:
    """The lines above rows of :func:`score_row`."""
    return [f"{'':36}{'NLL':>7}{'BLEU':>7}{'1st line':>9}{'chrF++':>8}{'Ends':>7}"]


def score_row(label: str, evaluation: Evaluation) -> str:
    """The scores of one model, as soon as there are any."""
    e = evaluation
    return (
        f"{label[:35]:36}{e.nll.value:7.3f}{e.bleu_raw.value:7.2f}{e.bleu_first_line.value:9.2f}"
        f"{e.chrf_raw.value:8.2f}{percent(e.ended.value):>7}"
    )


def csv_text(summary: Mapping[str, Any]) -> str:
    """All arms in all languages, a line each: every score and difference with its bounds, and the costs."""
    lines = [
        {"language": code, "arm": spec, "label": arm["label"], **_flat(arm)}
        for code, arms in [
            *((code, language["arms"]) for code, language in summary["languages"].items()),
            *([("mean", summary["mean"])] if "mean" in summary else []),
        ]
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
    groups = (
        "scores",
        "against_untuned",
        "against_embed",
        "decomposition",
        "paraphrased",
        "paraphrased_against_untuned",
    )
    for group in groups:
        for metric, found in (arm.get(group) or {}).items():
            prefix = metric if group == "scores" else f"{group}.{metric}"
            flat |= {prefix: found["value"], f"{prefix}.low": found["low"], f"{prefix}.high": found["high"]}
    return flat


def latex_text(summary: Mapping[str, Any]) -> str:
    r"""A booktabs table for each language, and of their mean; needs ``\usepackage{booktabs}``."""
    columns = (*COSTS[1:3], *SCORES, *GAINS)
    parts = [(code, language["name"], language["arms"]) for code, language in summary["languages"].items()]
    if "mean" in summary:
        parts.append(("mean", "mean over languages", summary["mean"]))
    tables = []
    for code, name, arms in parts:
        head = " & ".join(["Arm", *(column.latex for column in columns)])
        body = [_latex_row(spec, arm, columns) for spec, arm in arms.items()]
        tables.append(
            "\n".join(
                [
                    "\\begin{table*}[t]",
                    "\\centering\\small",
                    f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
                    "\\toprule",
                    head + " \\\\",
                    "\\midrule",
                    *body,
                    "\\bottomrule",
                    "\\end{tabular}",
                    f"\\caption{{{latex(str(summary['title']))}; {latex(name)}. {latex(NOTE)}}}",
                    f"\\label{{tab:kslottery-{code}}}",
                    "\\end{table*}",
                ]
            )
        )
    return "\n\n".join(tables) + "\n"


def _latex_row(spec: str, arm: Arm, columns: Sequence[Column]) -> str:
    cells = [latex(arm_label(spec, arm))]
    for column in columns:
        value, bounds = column.cell(arm)
        cells.append(latex(value) + (f" {{\\scriptsize [{latex(bounds)}]}}" if bounds else ""))
    return " & ".join(cells) + " \\\\"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00a0": "~",
    "…": r"\,..\,",
    NOTHING: "--",
}


def latex(text: str) -> str:
    r"""Text with LaTeX's special signs escaped; a minus before a number becomes a real one.

    >>> latex("95 % of a_b, -0.5")
    '95 \\% of a\\_b, $-$0.5'
    """
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w$])-(?=\d)", "$-$", escaped)
