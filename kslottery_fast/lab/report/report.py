"""The report of a run: `write_report` makes page and figures, `print_table` the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kslottery_fast.base.files import atomic_path, write_text

from .figures import pictures
from .page import render
from .report_data import METRICS, ReportData, Shift, TicketRow, compact, model_label, selection_text, visible_text

__all__ = ["ReportData", "Shift", "TicketRow", "print_table", "write_report"]


def write_report(directory: Path, data: ReportData) -> list[Path]:
    """Write ``report.html`` and one PNG a figure into ``directory``; return their paths, the page first.

    Each file is written whole or not at all. The same data give the same bytes (with the same matplotlib).
    """
    figures = pictures(data)
    page = render(data, figures)  # all work that can fail on data comes before the first file
    paths = [Path(directory) / "report.html"]
    for picture in figures:
        paths.append(Path(directory) / f"{picture.name}.png")
        with atomic_path(paths[-1]) as temporary:
            picture.write_png(temporary)
    write_text(paths[0], page)
    return paths


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print all models of ``summary`` side by side, each value over its 95 % interval; 80 columns are enough.

    Nothing in it depends on colour. The page has what does not fit: the interval of the length, long counts.
    """
    roomy = console.width >= 90
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, int(roomy), 0, 0), pad_edge=False)
    table.add_column("Model", min_width=16 if roomy else 9)  # the labels have two words of nine letters at most
    for metric in METRICS:
        table.add_column(metric.heading.replace("first", "1st").replace(" ", "\n", 1), justify="right", no_wrap=True)
    for name, scores in summary["models"].items():
        bounds = (summary.get("intervals") or {}).get(name) or {}
        cells = [Text(model_label(name))]
        for metric in METRICS:
            value = scores.get(metric.key)
            shown = compact(value) if metric.key == "trained_parameters" else metric.text(value)
            interval = "" if metric.key == "mean_chars" else metric.interval(bounds.get(metric.key))
            cells.append(Text.assemble(shown, "\n", (interval, "dim")))
        table.add_row(*cells)
    console.print(Text(visible_text(str(summary["title"])), style="bold"))
    console.print(table)
    console.print(Text(f"Selected: {selection_text(summary)}. Second lines: 95 % intervals over sentences."))
