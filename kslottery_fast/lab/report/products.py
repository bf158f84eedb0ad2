"""From finished stages to what a person takes away: tables, figures, report."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from kslottery_fast import __version__
from kslottery_fast.base.files import atomic_path, read_json, write_json, write_text
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.settings import ExperimentSettings

PRODUCTS = ("scores.csv", "scores.tex", "report.html", "environment.json", "summary.json")
"""What a finished experiment shows beside figures and rows-*.csv; ``summary.json`` is written last."""

_BY_LANGUAGE = ("rows-*.csv", "scores-*.png", "tickets-*.png", "rank-*.png", "selectors-*.png", "languages.png")
"""The products that depend on which languages are shown."""


def up_to_date(output: Path, settings: ExperimentSettings) -> bool:
    """Whether the products are there, of this grid and version."""
    if not all((output / name).exists() for name in PRODUCTS):
        return False
    summary = read_json(output / "summary.json")
    return bool(summary.get("grid") == settings.grid and summary.get("version") == __version__)


def write_products(comparison: Experiment) -> dict[str, Any]:
    """Write every product from finished stages, each whole or not at all, and return the content of ``summary.json``.

    The products of an earlier grid go first, ``summary.json`` before all others: killed half-way, this leaves no
    summary that would pass files of two grids for one.
    """
    from kslottery_fast.lab.experiment.environment import combined
    from kslottery_fast.lab.report.compare_figures import pictures
    from kslottery_fast.lab.report.compare_page import render
    from kslottery_fast.lab.report.summary import summarize
    from kslottery_fast.lab.report.tables import csv_text, latex_text

    folder, output = comparison.folder, comparison.folder.path
    stages = [job.stage for job in comparison.jobs()]
    summary = summarize(comparison)
    cells = {code: comparison.cells[code, comparison.settings.seeds[0]] for code in comparison.shops}
    figures = pictures(summary, {code: cell.evidence for code, cell in cells.items()})
    records = [folder.record(stage) for stage in stages]
    corpus = read_json(next(iter(comparison.shops.values())).folder.stage_path("corpus") / "corpus.json")
    environment = {
        **combined([record["environment"] for record in records]),
        "commands": list(dict.fromkeys(record["environment"]["command"] for record in records)),
        "model": {"name": corpus["model_name"], **corpus["model_provenance"]},
        "seconds": {stage: record["seconds"] for stage, record in zip(stages, records, strict=True)},
    }
    page = render(summary, {name: value for name, value in environment.items() if name != "seconds"}, figures)
    for stale in [output / "summary.json", *(path for pattern in _BY_LANGUAGE for path in output.glob(pattern))]:
        stale.unlink(missing_ok=True)
    for picture in figures:
        with atomic_path(output / f"{picture.name}.png") as temporary:
            picture.write_png(temporary)
    for code, cell in cells.items():
        write_text(output / f"rows-{code}.csv", _rows_csv(cell.evidence))
    write_text(output / "scores.csv", csv_text(summary))
    write_text(output / "scores.tex", latex_text(summary))
    write_json(output / "environment.json", environment)
    write_text(output / "report.html", page)
    # Last: who finds a summary finds everything else beside it.
    write_json(output / "summary.json", summary)
    return summary


def _rows_csv(evidence: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["token_id", "D", "l2", "gradient", "frequency"])
    d = evidence.dimension
    columns = (evidence.token_ids, evidence.counts / d, evidence.l2, evidence.gradient, evidence.frequency)
    writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
    return buffer.getvalue()
