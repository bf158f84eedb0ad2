"""From the finished stages of an experiment to ``summary.json``: every number of tables, figures, advice and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kslottery_fast import __version__
from kslottery_fast.base.files import read_json
from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.experiment import scoring
from kslottery_fast.lab.experiment.cell import EMBED, UNTUNED, Cell
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.settings import RunSettings
from kslottery_fast.lab.experiment.specs import ArmSpec

from . import advice, measures, ticket_facts
from .words import is_plain_grid, model_key

FORMAT = "kslottery-experiment/1"
COMPARED = ("frequency", "random", "l2", "gradient")
"""Controls that stand beside Partial Tuning of the same size."""

SAMPLES_SHOWN = 8


def summarize(experiment: Experiment) -> dict[str, Any]:
    """The content of ``summary.json``."""
    settings, folder = experiment.settings, experiment.folder
    languages = {code: Language(experiment, code) for code in experiment.shops}
    found = {code: language.summary() for code, language in languages.items()}
    first, shown = next(iter(languages.values())), next(iter(found.values()))
    arms = {model_key(spec): arm for spec, arm in shown["arms"].items()}
    summary: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "title": _title(list(languages.values())),
        "settings": asdict(settings.base),
        "grid": settings.grid,
        "signatures": first.signatures(),
        "models": {name: _values(arm) for name, arm in arms.items()},
        "intervals": {
            name: {metric: [score["low"], score["high"]] for metric, score in arm["scores"].items()}
            for name, arm in arms.items()
        },
        "tickets": shown["selection"],
        "certificate": next(iter(shown["certificates"].values())),
        "findings": shown["advice"],
        "languages": found,
    }
    if len(languages) > 1:
        summary["mean"] = _mean(list(languages.values()))
        summary["language_overlap"] = ticket_facts.of_languages({code: one.cells for code, one in languages.items()})
    summary["seconds"] = {job.stage: folder.seconds(job.stage) for job in experiment.jobs()}
    return summary


class Language:
    """One language of a finished experiment: its scores, aligned over arms, and what follows from them."""

    def __init__(self, experiment: Experiment, code: str) -> None:
        self.settings, self.shop, self.code = experiment.settings, experiment.shops[code], code
        self.base: RunSettings = self.settings.base
        self.cells = [experiment.cells[code, seed] for seed in self.settings.seeds]
        # The draws of one seed are those of its evaluations; several have draws that no other language has.
        self.seed = self.base.seed if len(self.cells) == 1 else language_seed(self.base.seed, code)

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """The recorded corpus and model."""
        return dict(read_json(self.shop.folder.stage_path("corpus") / "corpus.json"))

    def arm_cells(self, spec: ArmSpec) -> list[Cell]:
        """The cells of an arm: one of each seed, or one where the seed plays no part."""
        return self.cells if spec.facts.seeded else self.cells[:1]

    def _stages(self, spec: ArmSpec) -> list[Path]:
        return [cell.home(spec).stage_path(str(spec) + scoring.SCORE) for cell in self.arm_cells(spec)]

    @cached_property
    def _loaded(self) -> dict[ArmSpec, list[dict[str, Evaluation]]]:
        return {spec: [scoring.load_scores(stage) for stage in self._stages(spec)] for spec in self.settings.specs}

    def evaluations(self, spec: ArmSpec, template: str = "test") -> list[Evaluation]:
        """The evaluations of an arm, one for each seed."""
        return [found[template] for found in self._loaded[spec]]

    @cached_property
    def test(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """Replicates of every metric of every arm on the test split."""
        return self._replicates("test", measures.METRICS, self.seed)

    @cached_property
    def apart(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """The same from draws that no other language has, which a mean over languages needs."""
        seed = language_seed(self.base.seed, self.code)
        return self.test if seed == self.seed else self._replicates("test", measures.METRICS, seed)

    @cached_property
    def paraphrased(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """The same with the paraphrased template; empty where it was not asked for."""
        if not self.settings.paraphrase:
            return {}
        return self._replicates("paraphrased", measures.PARAPHRASE_METRICS, self.seed)

    def _replicates(self, template: str, metrics: Sequence[str], seed: int) -> dict[ArmSpec, dict[str, Replicates]]:
        references = [pair["target"] for pair in self.corpus["test"]]
        options: dict[str, Any] = {"bleu_tokenizer": self.base.bleu_tokenizer, "n_bootstrap": self.base.n_bootstrap}
        return {
            spec: measures.replicates(
                self.evaluations(spec, template), references, seed=seed, metrics=metrics, **options
            )
            for spec in self.settings.specs
        }

    @cached_property
    def validation(self) -> dict[ArmSpec, Replicates]:
        """Replicates of the validation NLL of every arm."""
        found = {spec: [scoring.load_nll(stage) for stage in self._stages(spec)] for spec in self.settings.specs}
        options = {"n_bootstrap": self.base.n_bootstrap, "seed": self.seed}
        return {spec: measures.nll_replicates(results, **options) for spec, results in found.items()}

    def summary(self) -> dict[str, Any]:
        """Everything of this language, as JSON takes it."""
        found = {
            "name": self.corpus["target_language"]["name"],
            "pairs": {split: len(self.corpus[split]) for split in ("train", "validation", "test")},
            "corpus": self.corpus["provenance"],
            "licences": self.corpus["licences"],
            "arms": {str(spec): self._arm(spec) for spec in self.settings.specs},
            "controls": self._controls(),
            "tickets": ticket_facts.of_language(self.cells, self._effects()),
            "selection": ticket_facts.selection(self.cells[0]),
            "certificates": {
                str(cell.seed): read_json(cell.folder.stage_path("certificate") / "certificate.json")
                for cell in self.cells
            },
            "interpretation": self._interpretation(),
            "gain": self._gain(),
            "recommendation": self._recommendation(),
            "samples": self._samples(),
        }
        return {**found, "advice": advice.sentences(found, self.base.correction)}

    def _arm(self, spec: ArmSpec) -> dict[str, Any]:
        cells, evaluations, test = self.arm_cells(spec), self.evaluations(spec), self.test[spec]
        records, sentences = [cell.record(spec) for cell in cells], len(self.corpus["test"])
        one = len(self.cells) == 1
        result: dict[str, Any] = {
            "label": spec.facts.label,
            "rows": [record["rows"] for record in records],
            "coverage": [cell.coverage(spec) for cell in cells],
            "trained_parameters": [record["trained_parameters"] for record in records],
            **measures.costs(spec, cells),
            "scores": evaluations[0].scores() if one else measures.score_intervals(test, sentences),
            "per_seed": self._per_seed(spec),
            "validation_nll": self.validation[spec].interval().to_dict(),
        }
        if self.paraphrased:
            result["paraphrased"] = measures.score_intervals(self.paraphrased[spec], sentences)
        if spec != UNTUNED:
            result["decomposition"] = measures.intervals(measures.decomposition(test, self.test[UNTUNED]))
            if self.paraphrased:
                paraphrased = measures.differences(self.paraphrased[spec], self.paraphrased[UNTUNED])
                result["paraphrased_against_untuned"] = paraphrased
        for name, other in (("untuned", UNTUNED), ("embed", EMBED)):
            if spec not in (UNTUNED, other):
                result[f"against_{name}"] = measures.differences(test, self.test[other])
                result[f"per_seed_against_{name}"] = self._seed_differences(spec, other)
        return result

    def _per_seed(self, spec: ArmSpec) -> list[dict[str, float]]:
        """The scores of an arm on the test split, seed by seed."""
        found = self.evaluations(spec)
        return [{metric: getattr(one, metric).value for metric in measures.METRICS} for one in found]

    def _seed_differences(self, first: ArmSpec, second: ArmSpec) -> list[dict[str, float]]:
        return measures.seed_differences(self._per_seed(first), self._per_seed(second))

    def _controls(self) -> list[dict[str, Any]]:
        """Each control minus Partial Tuning of the same size, paired."""
        pairs = [(spec, ArmSpec("partial", spec.size, spec.learning_rate)) for spec in self.settings.specs]
        return [
            {
                "control": str(spec),
                "own": str(own),
                "difference": measures.differences(self.test[spec], self.test[own]),
                "per_seed": self._seed_differences(spec, own),
            }
            for spec, own in pairs
            if spec.name in COMPARED and own in self.test
        ]

    def _effects(self) -> dict[str, Any]:
        """The effects of single tickets, of the first seed; empty where none were asked for."""
        folder, name = self.cells[0].folder, f"effects@{self.settings.effects}"
        return dict(read_json(folder.stage_path(name) / "effects.json")) if folder.finished(name) else {}

    def _interpretation(self) -> dict[str, Any]:
        """Shares of positions, by arm, of the first seed."""
        folder = self.cells[0].folder
        specs = [spec for spec in self.settings.specs if folder.finished(f"positions.{spec}")]
        found = {str(spec): read_json(folder.stage_path(f"positions.{spec}") / "positions.json") for spec in specs}
        return {spec: value for spec, value in found.items() if value is not None}

    def _gain(self) -> dict[str, Any]:
        """Embed Tuning's gain in test NLL, and the shares of it that copying and training the tickets recover."""
        untuned = self.test[UNTUNED]["nll"]
        gain, size = untuned - self.test[EMBED]["nll"], advice.main_size([str(spec) for spec in self.settings.specs])
        shares = {}
        for name in ("transfer", "partial"):
            spec = next((one for one in self.test if str(one) == f"{name}@{size}"), None)
            if spec is not None:
                share = (untuned - self.test[spec]["nll"]).share_of(gain)
                shares[str(spec)] = share and share.to_dict()
        return {**gain.interval().to_dict(), "shares": shares}

    def _recommendation(self) -> dict[str, Any] | None:
        def candidate(spec: ArmSpec) -> advice.Candidate:
            rows = fmean(int(str(cell.record(spec)["rows"])) for cell in self.arm_cells(spec))
            return advice.Candidate(str(spec), rows, self.validation[spec], self.test[spec]["nll"])

        sets = [candidate(spec) for spec in self.settings.specs if spec.name == "partial" and not spec.learning_rate]
        return advice.recommend(sets, candidate(UNTUNED), candidate(EMBED), self.settings.margin)

    def _samples(self) -> list[dict[str, str]]:
        """Test pairs with what each arm made of them, with the first seed."""
        outputs = {str(spec): self.evaluations(spec)[0].outputs for spec in self.settings.specs}
        return [
            {"source": pair["source"], "reference": pair["target"]}
            | {model_key(spec): texts[place].text for spec, texts in outputs.items()}
            for place, pair in enumerate(self.corpus["test"][:SAMPLES_SHOWN])
        ]

    def signatures(self) -> dict[str, str]:
        """What to cite: sacrebleu's signatures, and how the intervals were made."""
        found, seeds = self.evaluations(UNTUNED)[0].signatures, len(self.cells)
        if seeds == 1:
            return dict(found)
        intervals = f"level:0.95|bootstrap:sentences|resamples:{self.base.n_bootstrap}|seeds:t({seeds - 1})"
        intervals += "|differences:paired|ends:hull with clopper-pearson"
        return {**{name: text for name, text in found.items() if name != "bootstrap"}, "intervals": intervals}


def _title(languages: Sequence[Language]) -> str:
    """The model, the languages, and the size of the grid where it is not that of a plain run."""
    first, settings = languages[0].corpus, languages[0].settings
    targets = " and ".join(one.corpus["target_language"]["name"] for one in languages)
    title = f"{first['model_name']}, {first['source_language']['name']} to {targets}"
    seeds = len(settings.seeds)
    if is_plain_grid(settings.grid):
        return title
    return f"{title}: {len(settings.specs)} arms, {seeds} training seed{'s' if seeds > 1 else ''}"


def _mean(languages: Sequence[Language]) -> dict[str, Any]:
    """Every arm averaged over languages."""
    result, sentences = {}, sum(len(language.corpus["test"]) for language in languages)
    for spec in languages[0].settings.specs:
        arm, untuned, embed = (
            measures.mean_over([language.apart[one] for language in languages]) for one in (spec, UNTUNED, EMBED)
        )
        result[str(spec)] = {
            "label": spec.facts.label,
            "scores": measures.score_intervals(arm, sentences),
            "against_untuned": measures.differences(arm, untuned),
            "against_embed": measures.differences(arm, embed),
            "decomposition": measures.intervals(measures.decomposition(arm, untuned)),
        }
    return result


def _values(arm: Mapping[str, Any]) -> dict[str, float]:
    """What an arm scores and how many numbers it trained, means over seeds."""
    trained = arm["trained_parameters"]
    scores = {metric: score["value"] for metric, score in arm["scores"].items()}
    return scores | {"trained_parameters": trained[0] if len(set(trained)) == 1 else fmean(trained)}


def language_seed(seed: int, code: str) -> int:
    """The seed of a language's draws: the same whatever stands beside it, another than that of other languages.

    >>> language_seed(0, "es") == language_seed(0, "es") != language_seed(0, "ca")
    True
    """
    return int(np.random.SeedSequence((seed, *code.encode())).generate_state(1)[0])
