"""From the grid of an experiment to its jobs, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.scores import bleu_metric
from kslottery_fast.lab.data.languages import find_language

from . import interpret, scoring
from .adapters import check_peft
from .arms import ARMS
from .cell import EMBED, UNTUNED, Cell
from .certificate import certify
from .console import ProgressCallback, RunConsole
from .jobs import Job, work_through
from .run_folder import RunFolder
from .scoring import PARAPHRASE, SCORE
from .settings import ExperimentSettings
from .specs import ArmSpec
from .trained import TrainedRows
from .workshop import Workshop

ShowScores = Callable[[str, Evaluation], None]
Work = Callable[[Path, ProgressCallback], None]


class Experiment:
    """Arms over seeds and languages, in one folder and with one loaded model.

    ``show_scores`` is called with label and scores of every arm as soon as there are any.
    """

    def __init__(
        self,
        settings: ExperimentSettings,
        folder: RunFolder,
        console: RunConsole,
        show_scores: ShowScores | None = None,
    ) -> None:
        self.settings, self.folder, self.console, self.show_scores = settings, folder, console, show_scores
        self.shops: dict[str, Workshop] = {}
        first: Workshop | None = None
        for target in settings.targets:
            code = find_language(target).code
            shop = Workshop(settings.language(target), folder.view(f"{code}."), console, neighbour=first)
            self.shops[code], first = shop, first or shop
        self.cells = {
            (code, seed): Cell(shop, code, seed) for seed in settings.seeds for code, shop in self.shops.items()
        }

    def work(self, command: str, *, only_finished: bool = False) -> bool:
        """Do what is left to do, or with ``only_finished`` refuse to; returns whether anything was left.

        ``command`` is recorded with the stages that this call makes. Stages that are finished stay, whatever a later
        one refuses.
        """
        bleu_metric(self.settings.base.bleu_tokenizer)  # refused now, not after the first evaluation
        if any(spec.name in ("lora", "prefix") for spec in self.settings.specs):
            check_peft()
        jobs = self.jobs()
        finished = sum(self.folder.finished(job.stage) for job in jobs)
        if only_finished and finished < len(jobs):
            raise InputError(
                f"{self.folder.path}: only {finished} of {len(jobs)} stages are finished; "
                "the command that made the folder goes on with the next"
            )
        if finished:
            rest = f"{len(jobs) - finished} left; going on with the next" if finished < len(jobs) else "none left"
            self.console.say(f"{self.folder.path}: {finished} of {len(jobs)} stages are finished already, {rest}")
        work_through(jobs, self.folder, self.console, command)
        return finished < len(jobs)

    def jobs(self) -> list[Job]:
        """Every job: shared stages first, then seed by seed, so that the first seed is whole before the second."""
        jobs = [
            Job(shop.folder.prefix + "corpus", f"{self._where(code)}corpus and model", shop.record, kind="corpus")
            for code, shop in self.shops.items()
        ]
        for cell in self.cells.values():
            is_first = cell.seed == self.settings.seeds[0]
            for spec in self.settings.specs:
                if is_first or spec.facts.seeded:
                    jobs += self._arm(cell, spec)
            jobs.append(self._job(cell, "certificate", "certifying", partial(_certificate, cell)))
            if is_first and self.settings.effects:
                jobs += self._interpretation(cell)
        return jobs

    def _arm(self, cell: Cell, spec: ArmSpec) -> list[Job]:
        arm, home = ARMS[spec.name], cell.home(spec)
        label = self._where(cell.code, cell.seed if arm.seeded else None) + spec.title
        spent = partial(arm.spent, cell.stage(spec))
        score = Job(
            home.prefix + str(spec) + SCORE,
            f"evaluating {label}",
            partial(_scored, cell, spec, SCORE, scoring.score),
            kind="scoring",
            show=partial(self._show, label, home.stage_path(str(spec) + SCORE)),
            **({} if self.settings.paraphrase else {"afterwards": spent}),
        )
        make = Job(home.prefix + str(spec), label, partial(arm.make, cell, spec), kind=arm.kind)
        if not self.settings.paraphrase:
            return [make, score]
        paraphrased = partial(_scored, cell, spec, PARAPHRASE, scoring.score_paraphrased)
        stage, title = home.prefix + str(spec) + PARAPHRASE, f"evaluating {label}, paraphrased"
        return [make, score, Job(stage, title, paraphrased, spent, "scoring")]

    def _show(self, label: str, stage: Path) -> None:
        if self.show_scores:
            self.show_scores(label, scoring.load_scores(stage)["test"])

    def _interpretation(self, cell: Cell) -> list[Job]:
        shown, tuned = self.settings.effects, [spec for spec in self.settings.specs if spec.name == "partial"]
        effects = self._job(cell, f"effects@{shown}", "the effect of single tickets", partial(_effects, cell, shown))
        return [
            effects,
            *(
                self._job(cell, f"positions.{spec}", f"positions of {spec.title}", partial(_positions, cell, spec))
                for spec in (EMBED, *tuned[:1])
            ),
        ]

    def _job(self, cell: Cell, name: str, words: str, work: Work) -> Job:
        kind = f"scoring.{name.partition('@')[0]}"
        return Job(cell.folder.prefix + name, self._where(cell.code, cell.seed) + words, work, kind=kind)

    def _where(self, code: str, seed: int | None = None) -> str:
        """Which cell a title speaks of, where there are several."""
        if len(self.cells) == 1:
            return ""
        return f"{code}: " if seed is None else f"{code}, seed {seed}: "


def _scored(
    cell: Cell,
    spec: ArmSpec,
    stage: str,
    measure: Callable[[Workshop, object, Path, ProgressCallback], None],
    folder: Path,
    progress: ProgressCallback,
) -> None:
    if spec != UNTUNED and cell.record(spec)["rows"] == 0:
        # Alpha selected nothing: the model is the original one.
        scoring.copy_scores(cell.shop.folder.stage_path(str(UNTUNED) + stage), folder)
        return
    with ARMS[spec.name].wearing(cell, cell.stage(spec)) as model:
        measure(cell.shop, model, folder, progress)


def _certificate(cell: Cell, folder: Path, progress: ProgressCallback) -> None:
    cell.tickets.save(folder / "tickets.json", cell.shop.loaded.tokenizer)
    key = tuple(sorted(cell.tickets.token_ids.tolist()))
    certificate = certify(cell.shop, cell.tuned, cell.evidence.table(), key, folder, progress)
    write_json(folder / "certificate.json", certificate.to_dict())


def _effects(cell: Cell, shown: int, folder: Path, progress: ProgressCallback) -> None:
    result = interpret.ticket_effects(cell.shop, cell.tuned, cell.tickets.token_ids.tolist(), shown, progress)
    result["template_tokens"] = sorted(interpret.template_tokens(cell.shop))
    write_json(folder / "effects.json", result)


def _positions(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    rows = TrainedRows.load(cell.stage(spec)) if cell.record(spec)["rows"] else None
    result = None if rows is None else interpret.position_effects(cell.shop, rows, progress)
    write_json(folder / "positions.json", result)
