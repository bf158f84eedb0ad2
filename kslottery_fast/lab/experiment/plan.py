"""From the grid of a comparison to its jobs, in the order in which they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.files import write_json
from kslottery_fast.lab.data.languages import find_language

from . import interpret, scoring
from .arms import ARMS
from .cell import EMBED, UNTUNED, Cell
from .console import ProgressCallback, RunConsole
from .jobs import Job
from .run_folder import RunFolder
from .settings import ArmSpec, CompareSettings
from .stages import certificate_of
from .stages import corpus as corpus_stage
from .training import TrainedRows
from .workshop import Workshop

SCORE = ".score"


class Comparison:
    """The cells of a comparison over one folder and one loaded model."""

    def __init__(self, settings: CompareSettings, folder: RunFolder, console: RunConsole) -> None:
        self.settings, self.folder = settings, folder
        self.shops: dict[str, Workshop] = {}
        first: Workshop | None = None
        for target in settings.targets:
            code = find_language(target).code
            shop = Workshop(settings.language(target), folder.view(f"{code}."), console, neighbour=first)
            self.shops[code], first = shop, first or shop
        self.cells = {
            (code, seed): Cell(shop, code, seed) for seed in settings.seeds for code, shop in self.shops.items()
        }

    def jobs(self) -> list[Job]:
        """Every job: shared stages first, then seed by seed, so that the first seed is whole before the second."""
        jobs = []
        for code, shop in self.shops.items():
            work = partial(corpus_stage, shop)
            jobs.append(Job(shop.folder.prefix + "corpus", f"{code}: corpus and model", work))
        for cell in self.cells.values():  # seed by seed
            is_first = cell.seed == self.settings.seeds[0]
            specs = [spec for spec in self.settings.specs if ARMS[spec.name].seeded or is_first]
            jobs += [job for spec in specs for job in _arm_jobs(cell, spec)]
            jobs.append(_job(cell, "certificate", "certifying", partial(_certificate, cell)))
            if is_first and self.settings.effects:
                jobs += self._interpretation(cell)
        return jobs

    def _interpretation(self, cell: Cell) -> list[Job]:
        tuned = next((spec for spec in self.settings.specs if spec.name == "partial"), None)
        shown = [EMBED, *([tuned] if tuned else [])]
        effects = partial(_effects, cell, self.settings.effects)
        return [
            _job(cell, f"effects@{self.settings.effects}", "the effect of single tickets", effects),
            *(
                _job(cell, f"positions.{spec}", f"positions of {spec}", partial(_positions, cell, spec))
                for spec in shown
            ),
        ]


def _job(cell: Cell, name: str, words: str, work: Any) -> Job:
    return Job(cell.folder.prefix + name, f"{cell.code}, seed {cell.seed}: {words}", work)


def _arm_jobs(cell: Cell, spec: ArmSpec) -> list[Job]:
    arm, home = ARMS[spec.name], cell.home(spec)
    where = f"{cell.code}, seed {cell.seed}" if arm.seeded else cell.code
    stage = home.stage_path(str(spec))
    return [
        Job(home.prefix + str(spec), f"{where}: {arm.label} ({spec})", partial(arm.make, cell, spec)),
        Job(
            home.prefix + str(spec) + SCORE,
            f"{where}: evaluating {arm.label} ({spec})",
            partial(_score, cell, spec),
            partial(arm.spent, stage),
        ),
    ]


def _score(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    if spec != UNTUNED and cell.record(spec)["rows"] == 0:
        # Alpha selected nothing: the model is the original one.
        scoring.copy_scores(cell.shop.folder.stage_path(str(UNTUNED) + SCORE), folder)
        return
    with ARMS[spec.name].wearing(cell, cell.home(spec).stage_path(str(spec))) as model:
        scoring.score(cell.shop, model, folder, progress)


def _certificate(cell: Cell, folder: Path, progress: ProgressCallback) -> None:
    settings, spec = cell.shop.settings, cell.own_tickets()
    ids = cell.choose("ks", spec)
    alpha = spec.size if isinstance(spec.size, float) else None
    tickets = cell.evidence.tickets(len(ids), alpha, settings.method, settings.correction)
    tickets.save(folder / "tickets.json", cell.shop.loaded.tokenizer)
    key = tuple(sorted(ids.tolist()))
    write_json(folder / "certificate.json", certificate_of(cell.shop, cell.tuned, key, folder, progress).to_dict())


def _effects(cell: Cell, shown: int, folder: Path, progress: ProgressCallback) -> None:
    ids = cell.choose("ks", cell.own_tickets()).tolist()
    result = interpret.ticket_effects(cell.shop, cell.tuned, ids, shown, progress)
    result["template_tokens"] = sorted(interpret.template_tokens(cell.shop))
    write_json(folder / "effects.json", result)


def _positions(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    stage = cell.folder.stage_path(str(spec))
    rows = TrainedRows.load(stage) if cell.record(spec)["rows"] else None
    result = None if rows is None else interpret.position_effects(cell.shop, rows, progress)
    write_json(folder / "positions.json", result)
