"""From finished stages to products: summary, environment, page, figures, tables, tickets and adapter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.files import (
    atomic_directory,
    atomic_path,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
    write_text,
)
from kslottery_fast.base.version import installed_version

if TYPE_CHECKING:  # a finished experiment can be shown without transformers and matplotlib
    from kslottery_fast.lab.experiment.cell import Cell
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.settings import ExperimentSettings
    from kslottery_fast.lab.experiment.specs import ArmSpec

    from .row_figures import MovedRows

PRODUCTS = ("scores.csv", "scores.tex", "report.html", "environment.json", "summary.json")
"""The products of every finished experiment apart from figures and rows-*.csv. ``summary.json`` is written last."""

TICKETS = ("tickets.json", "tickets.safetensors", "adapter")
"""Further products, if Partial Tuning trained rows."""

_FIGURES = [
    *("scores", "sizes", "losses", "costs", "tickets"),
    *("histogram", "frequency", "ecdf", "contributions", "selectors", "certificate"),
]
_BY_GRID = ("rows-*.csv", *(f"{name}-*.png" for name in _FIGURES), "languages.png", *TICKETS)
_LINKED_FILE = re.compile(r'href="([^"#:]+)"')
"""The products that depend on which arms and languages there are."""


def up_to_date(output: Path, settings: ExperimentSettings) -> bool:
    """Say whether the products in a folder belong to this grid and version.

    Parameters
    ----------
    output : Path
        The folder of an experiment.
    settings : ExperimentSettings
        What the experiment is about now.

    Returns
    -------
    bool
        False if a product is missing as well, or a file that the page links to.
    """
    if not all((output / name).exists() for name in PRODUCTS):
        return False
    summary = read_json(output / "summary.json")
    if (
        summary.get("grid") != settings.grid
        or summary.get("version") != installed_version()
        or "on_test" not in summary
    ):
        return False
    page = (output / "report.html").read_text(encoding="utf-8")
    if not all((output / name).exists() for name in _LINKED_FILE.findall(page)):
        return False
    spec, arms = _tuned_arm(settings), next(iter(summary["languages"].values()))["arms"]
    trained = spec is not None and arms[str(spec)]["rows"][0]
    return not trained or all((output / name).exists() for name in TICKETS)


def write_products(experiment: Experiment) -> dict[str, Any]:
    """Write every product from finished stages, each whole or not at all.

    Parameters
    ----------
    experiment : Experiment
        All of its stages must be finished.

    Returns
    -------
    dict
        The content of ``summary.json``.

    Notes
    -----
    The products of an earlier grid are removed first, beginning with ``summary.json``. If the process is killed
    half-way, no summary is left that would present files of two grids as those of one.
    """
    from .figures import pictures
    from .page import latex_text, render
    from .summary import summarize
    from .tables import csv_text

    output, seed = experiment.folder.path, experiment.settings.seeds[0]
    summary, environment = summarize(experiment), _environment(experiment)
    cells = {code: experiment.cells[code, seed] for code in experiment.shops}
    moved = {code: _moved_rows(summary, code, cell) for code, cell in cells.items()}
    curves = {code: _losses(cell, experiment.settings) for code, cell in cells.items()}
    figures = pictures(summary, moved, curves)
    page, table = render(summary, environment, figures), latex_text(summary)
    stale = [output / "summary.json", *(path for pattern in _BY_GRID for path in output.glob(pattern))]
    for path in stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for picture in figures:
        with atomic_path(output / f"{picture.name}.png") as temporary:
            picture.write_png(temporary)
    for code, cell in cells.items():
        write_text(output / f"rows-{code}.csv", _rows_csv(cell, experiment.settings))
    write_text(output / "scores.csv", csv_text(summary))
    write_text(output / "scores.tex", table)
    _write_tickets(output, next(iter(cells.values())), experiment.settings)
    write_json(output / "environment.json", environment)
    write_text(output / "report.html", page)
    # Last, so that everything else exists if there is a summary.
    write_json(output / "summary.json", summary)
    return summary


def _tuned_arm(settings: ExperimentSettings) -> ArmSpec | None:
    """The arm whose rows become an adapter: the one of as many rows as there are tickets, otherwise the first one."""
    arms = settings.tuned
    return next((spec for spec in arms if spec.size == "tickets" and not spec.learning_rate), next(iter(arms), None))


def _write_tickets(output: Path, cell: Cell, settings: ExperimentSettings) -> None:
    """Write the tickets, their rows after Embed Tuning and after Partial Tuning, and the latter as a PEFT adapter.

    If another selector than the KS test is the method, its rows are written in place of tickets.
    """
    spec = _tuned_arm(settings)
    if spec is None or not cell.record(spec)["rows"]:
        return
    from kslottery_fast.lab.experiment.trained import TrainedRows

    from .ticket_facts import rows_of, tickets_of

    stage, by = cell.stage(spec), settings.select_by
    tickets = tickets_of(cell, spec) if by == "ks" else rows_of(cell, spec, by)
    trained = TrainedRows.load(stage)
    tickets.save(output / "tickets.json")
    tensors = {
        "token_ids": tickets.token_ids,
        "embed_tuned": cell.tuned.only(tickets.token_ids).rows,
        "partial_tuned": trained.only(tickets.token_ids).rows,
    }
    write_safetensors(output / "tickets.safetensors", tensors, {"selected_by": tickets.selected_by})
    with atomic_directory(output / "adapter") as adapter:
        for file in (stage / "adapter").iterdir():
            shutil.copyfile(file, adapter / file.name)
        tickets.save(adapter / "tickets.json")  # ignored by PEFT; tells a person how the rows were chosen


def _environment(experiment: Experiment) -> dict[str, Any]:
    from kslottery_fast.lab.experiment.environment import combined

    folder, settings = experiment.folder, experiment.settings
    records = {job.stage: folder.record(job.stage) for job in experiment.jobs()}
    places = {code: shop.folder.stage_path("corpus") / "corpus.json" for code, shop in experiment.shops.items()}
    corpora = {code: read_json(path) for code, path in places.items()}
    first = next(iter(corpora.values()))
    return {
        **combined([record["environment"] for record in records.values()]),
        "commands": list(dict.fromkeys(record["environment"]["command"] for record in records.values())),
        "seed": settings.base.seed,
        "model": _model(first["model_name"], first["model_provenance"]),
        "corpus": first["provenance"] if len(corpora) == 1 else {c: one["provenance"] for c, one in corpora.items()},
        "licences": list(dict.fromkeys(licence for one in corpora.values() for licence in one["licences"])),
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
    }


def _model(name: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where the model comes from, with the id of its weights on the Hub if the package downloads it by name."""
    from kslottery_fast.lab.models.names import MODELS

    hub = {"hub_id": MODELS[name].hub_id} if provenance["kind"] == "wheel" and name in MODELS else {}
    return {"name": name, **hub, **provenance}


def _moved_rows(summary: Mapping[str, Any], code: str, cell: Cell) -> MovedRows:
    import torch

    from .row_figures import MAX_PANELS, MovedRows, Shift
    from .words import selection_of

    language, evidence = summary["languages"][code], cell.evidence
    listed = language["tickets"]["list"]
    before = read_safetensors(cell.folder.stage_path("certificate") / "before.safetensors")["rows"]
    first = listed[:MAX_PANELS]
    places = torch.searchsorted(evidence.token_ids, torch.tensor([ticket["token_id"] for ticket in first])).tolist()
    rows = [[table[place].double().numpy() for table in (before, cell.tuned.rows)] for place in places]
    return MovedRows(
        token_ids=evidence.token_ids.numpy(),
        statistic=evidence.counts.numpy() / evidence.dimension,
        frequency=evidence.frequency.numpy(),
        facts=language["selection"],
        tickets=listed,
        selection=selection_of(summary, code),
        shifts=[Shift(ticket["token"], *pair) for ticket, pair in zip(first, rows, strict=True)],
    )


def _losses(cell: Cell, settings: ExperimentSettings) -> dict[str, list[float]]:
    """The training losses of the arms of a cell that have some."""
    found = {str(spec): cell.stage(spec) / "losses.json" for spec in settings.specs}
    losses = {spec: list(read_json(path)) for spec, path in found.items() if path.exists()}
    return {spec: values for spec, values in losses.items() if values}


def _rows_csv(cell: Cell, settings: ExperimentSettings) -> str:
    from kslottery_fast.tickets.selectors import aligned

    found = cell.evidence
    columns = {"token_id": found.token_ids, "D": found.counts / found.dimension, "l2": found.l2}
    columns |= {"gradient": found.gradient, "frequency": found.frequency}
    if settings.needs_contributions:
        columns["contribution"] = aligned(found, cell.contributions)
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    return "".join(",".join(map(str, line)) + "\n" for line in [columns, *lines])
