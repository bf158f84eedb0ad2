"""The jobs of an experiment, in the order in which they run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.evaluation.effects import position_effects, template_tokens, ticket_effects
from kslottery_fast.evaluation.encoding import Example
from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.scores import bleu_metric
from kslottery_fast.integrations.peft_adapters import check_peft
from kslottery_fast.lab.data.corpora import check_corpus
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.models.names import check_model_name

from . import contribution, scoring
from .arms import ARMS
from .cell import EMBED, UNTUNED, Cell
from .certificate import certify
from .console import ProgressCallback, RunConsole
from .jobs import Engine, Job, work_through
from .run_folder import RunFolder
from .scoring import PARAPHRASE, SCORE
from .search import keep_best, make_candidate, refuse_diverged
from .settings import ExperimentSettings
from .specs import ArmSpec
from .trained import TrainedRows
from .workshop import Workshop

ShowScores = Callable[[str, Evaluation], None]
Work = Callable[[Path, ProgressCallback], None]


class Experiment:
    """Arms over seeds and languages, in one folder and with one loaded model.

    Parameters
    ----------
    settings : ExperimentSettings
        What to do.
    folder : RunFolder
        Where the stages are.
    console : RunConsole
        Where progress is written.
    show_scores : callable(label, evaluation), optional
        Called with the scores of every arm as soon as they exist.
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
            base = replace(settings.base, target=target)
            shop = Workshop(base, folder.view(f"{code}."), console, neighbour=first)
            self.shops[code], first = shop, first or shop
        self.cells = {
            (code, seed): Cell(shop, code, seed) for seed in settings.seeds for code, shop in self.shops.items()
        }

    def work(self, command: str, *, only_finished: bool = False, engine: Engine = work_through) -> bool:
        """Do the jobs that are left.

        Parameters
        ----------
        command : str
            The command line, which is recorded with the stages that this call makes.
        only_finished : bool
            Whether to refuse an experiment that is not finished.
        engine : Engine
            What does the jobs, by default this process.

        Returns
        -------
        bool
            Whether any job was left.

        Raises
        ------
        InputError
            Something that a job needs is missing. This is checked before the first job.
        """
        jobs = self.jobs()
        if only_finished:
            self.check_finished()
        finished = sum(self.folder.finished(job.stage) for job in jobs)
        if finished < len(jobs):
            self.check_needs()
        if finished:
            rest = f"{len(jobs) - finished} left" if finished < len(jobs) else "none left"
            self.console.say(f"{self.folder.path}: {finished} of {len(jobs)} stages are finished already, {rest}")
        engine(jobs, self.folder, self.console, command)
        return finished < len(jobs)

    def check_finished(self) -> None:
        """Raise InputError if a job is left."""
        jobs = self.jobs()
        finished = sum(self.folder.finished(job.stage) for job in jobs)
        if finished < len(jobs):
            raise InputError(
                f"{self.folder.path}: only {finished} of {len(jobs)} stages are finished; "
                "run the command that made the folder again to finish it"
            )

    def check_needs(self) -> None:
        """Refuse what would fail later: a missing corpus, model or package."""
        base = self.settings.base
        bleu_metric(base.bleu_tokenizer)
        if any(spec.name in ("lora", "prefix") for spec in self.settings.specs):
            check_peft("the arms lora and prefix")
        if not all(shop.folder.finished("corpus") for shop in self.shops.values()):
            check_corpus(base.corpus, source=base.source)
            check_model_name(base.model)

    def jobs(self) -> list[Job]:
        """Every job. Shared stages come first, then seed after seed, so that the first seed is finished first.

        A job stands after those whose stages it needs.
        """
        jobs = [
            Job(shop.folder.prefix + "corpus", f"{self._where(code)}corpus and model", shop.record, kind="corpus")
            for code, shop in self.shops.items()
        ]
        for cell in self.cells.values():
            is_first = cell.seed == self.settings.seeds[0]
            for spec in self.settings.specs:
                if is_first or spec.facts.seeded:
                    jobs += self._arm(cell, spec)
                if spec == EMBED and self.settings.needs_contributions:
                    jobs.append(self._contribution(cell))
            jobs.append(self._job(cell, "certificate", "certifying", partial(_certificate, cell)))
            if is_first and self.settings.effects:
                jobs += self._interpretation(cell)
        once: dict[str, Job] = {}
        for job in jobs:  # two searches may train at the same rate
            once.setdefault(job.stage, job)
        return list(once.values())

    def _arm(self, cell: Cell, spec: ArmSpec) -> list[Job]:
        make = self._search(cell, spec) if spec.rates else [self._make(cell, spec, ARMS[spec.name].make)]
        return [*make, *(self._score(cell, spec, ending) for ending in self._endings)]

    def _make(self, cell: Cell, spec: ArmSpec, make: Callable[[Cell, ArmSpec, Path, ProgressCallback], None]) -> Job:
        arm, needs = ARMS[spec.name], [cell.corpus_stage]
        needs += [cell.embed_stage] * arm.reads_embed(spec) + [_contribution_stage(cell)] * spec.needs_contributions
        return Job(
            _stage(cell, spec),
            self._label(cell, spec),
            partial(make, cell, spec),
            kind=arm.kind,
            size=cell.steps(spec) / cell.shop.settings.steps,
            idle=partial(_did_less, cell, spec),
            needs=tuple(needs),
        )

    def _search(self, cell: Cell, spec: ArmSpec) -> list[Job]:
        """The training at each learning rate, and the choice among them."""
        choice = Job(
            _stage(cell, spec),
            f"choosing the learning rate of {self._label(cell, spec)}",
            partial(keep_best, cell, spec),
            afterwards=self._spend(cell, spec.candidates),
            kind="scoring.search",
            idle=partial(_unchanged, cell, spec),
            needs=(cell.corpus_stage, *(_stage(cell, candidate) for candidate in spec.candidates)),
        )
        return [*(self._make(cell, candidate, make_candidate) for candidate in spec.candidates), choice]

    def _score(self, cell: Cell, spec: ArmSpec, ending: str) -> Job:
        label, own, untuned = self._label(cell, spec), _stage(cell, spec), _stage(cell, UNTUNED) + ending
        needs = (cell.corpus_stage, own)
        return Job(
            own + ending,
            f"evaluating {label}" + (", paraphrased" if ending == PARAPHRASE else ""),
            partial(_scored, cell, spec, ending),
            afterwards=self._spend(cell, [spec]),
            kind="scoring",
            show=partial(self._show, label, cell.home(spec).stage_path(str(spec) + SCORE)) if ending == SCORE else None,
            idle=partial(_unchanged, cell, spec),
            needs=needs if spec == UNTUNED else (*needs, untuned),  # an arm without rows takes the untuned scores
        )

    @property
    def _endings(self) -> tuple[str, ...]:
        return (SCORE, PARAPHRASE) if self.settings.paraphrase else (SCORE,)

    def _spend(self, cell: Cell, specs: Sequence[ArmSpec]) -> Callable[[], None]:
        """A function that removes what arms need no more, once all stages are finished that read theirs."""
        readers = {
            spec: [_stage(cell, spec) + ending for ending in self._endings if spec in self.settings.specs]
            + [_stage(cell, search) for search in self.settings.specs if spec in search.candidates]
            for spec in specs
        }
        return partial(_spent, cell, readers, self.folder)

    def _label(self, cell: Cell, spec: ArmSpec) -> str:
        return self._where(cell.code, cell.seed if spec.facts.seeded else None) + spec.title

    def _contribution(self, cell: Cell) -> Job:
        title = self._where(cell.code, cell.seed) + "measuring contributions of rows"
        # A training, because it takes gradients: its time is more like that of a training than that of a score.
        stage, needs = _contribution_stage(cell), (cell.corpus_stage, cell.embed_stage)
        return Job(stage, title, partial(_contribution, cell), kind="training.slopes", needs=needs)

    def _show(self, label: str, stage: Path) -> None:
        if self.show_scores:
            self.show_scores(label, scoring.load_scores(stage)["test"])

    def _interpretation(self, cell: Cell) -> list[Job]:
        effects = self.settings.effects
        single = self._job(cell, f"effects@{effects}", "measuring single tickets", partial(_effects, cell, effects))
        return [single] + [
            self._job(cell, f"positions.{spec}", f"measuring {spec.title}", partial(_positions, cell, spec), spec)
            for spec in self.settings.interpreted
        ]

    def _job(self, cell: Cell, name: str, words: str, work: Work, spec: ArmSpec = EMBED) -> Job:
        title, kind = self._where(cell.code, cell.seed) + words, f"scoring.{name.partition('@')[0]}"
        needs = dict.fromkeys((cell.corpus_stage, cell.embed_stage, cell.folder.prefix + str(spec)))
        stage, idle = cell.folder.prefix + name, partial(_unchanged, cell, spec)
        return Job(stage, title, work, kind=kind, idle=idle, needs=tuple(needs))

    def _where(self, code: str, seed: int | None = None) -> str:
        """The language and seed of a title. Empty if there is only one cell."""
        if len(self.cells) == 1:
            return ""
        return f"{code}: " if seed is None else f"{code}, seed {seed}: "


def _unchanged(cell: Cell, spec: ArmSpec) -> bool:
    """Whether alpha selected no row for an arm, so that its model is the original one."""
    return spec != UNTUNED and cell.record(spec)["rows"] == 0


def _did_less(cell: Cell, spec: ArmSpec) -> bool:
    """Whether an arm took less work than others: no row was selected for it, or its training diverged."""
    return _unchanged(cell, spec) or "diverged" in cell.record(spec)


def _stage(cell: Cell, spec: ArmSpec) -> str:
    """The name of an arm's own stage."""
    return cell.home(spec).prefix + str(spec)


def _contribution_stage(cell: Cell) -> str:
    return cell.folder.prefix + contribution.STAGE


def _spent(cell: Cell, readers: Mapping[ArmSpec, Sequence[str]], folder: RunFolder) -> None:
    for spec, stages in readers.items():
        if all(folder.finished(stage) for stage in stages):  # they may be made in any order
            ARMS[spec.name].spent(cell.stage(spec))


def _scored(cell: Cell, spec: ArmSpec, stage: str, folder: Path, progress: ProgressCallback) -> None:
    if _unchanged(cell, spec):
        scoring.copy_scores(cell.shop.folder.stage_path(str(UNTUNED) + stage), folder)
        return
    refuse_diverged(cell, spec)
    with ARMS[spec.name].wearing(cell, cell.stage(spec)) as model:
        scoring.score(cell.shop, model, stage, folder, progress)


def _contribution(cell: Cell, folder: Path, progress: ProgressCallback) -> None:
    contribution.measure(cell.shop, cell.tuned, cell.seed, folder, progress)


def _certificate(cell: Cell, folder: Path, progress: ProgressCallback) -> None:
    cell.tickets.save(folder / "tickets.json", cell.shop.loaded.tokenizer)
    key = tuple(sorted(cell.tickets.token_ids.tolist()))
    certificate = certify(cell.shop, cell.tuned, cell.evidence.table(), key, folder, progress)
    write_json(folder / "certificate.json", certificate.to_dict())


def _effects(cell: Cell, shown: int, folder: Path, progress: ProgressCallback) -> None:
    model, tokenizer, examples, sources, options = _on_validation(cell)
    tickets = cell.tuned.only(cell.tickets.token_ids)
    ids, rows = tickets.token_ids, tickets.rows
    result = ticket_effects(model, tokenizer, examples, ids, rows, shown=shown, progress=progress, **options)
    prompts = [example.prompt for example in examples]
    write_json(
        folder / "effects.json", {**result, "template_tokens": sorted(template_tokens(tokenizer, prompts, sources))}
    )


def _positions(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    result = None
    if cell.record(spec)["rows"]:
        model, tokenizer, examples, sources, options = _on_validation(cell)
        found = TrainedRows.load(cell.stage(spec))
        ids, rows = found.token_ids, found.rows
        result = position_effects(model, tokenizer, examples, sources, ids, rows, progress=progress, **options)
    write_json(folder / "positions.json", result)


def _on_validation(cell: Cell) -> tuple[Any, Any, list[Example], list[str], dict[str, Any]]:
    """Model, tokenizer, examples, their sources, and the options of measuring effects."""
    shop = cell.shop
    sources = [pair.source for pair in shop.corpus.validation]
    options = {"output": shop.settings.output_role, **shop.settings.measuring}
    return shop.model, shop.loaded.tokenizer, shop.examples("validation"), sources, options
