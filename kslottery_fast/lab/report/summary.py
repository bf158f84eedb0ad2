"""From finished stages to ``summary.json``, which has the numbers of all tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from kslottery_fast.base.files import read_json
from kslottery_fast.base.version import installed_version
from kslottery_fast.evaluation import comparison
from kslottery_fast.evaluation.evaluate import SCORES, Evaluation
from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.experiment.cell import EMBED, UNTUNED, Cell
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.scoring import SCORE, load_nll, load_scores
from kslottery_fast.lab.experiment.specs import ArmSpec, arms_of

from . import advice, contribution_facts, rates, ticket_facts
from .costs import costs
from .selector_facts import mean_over_languages, recommendation, selectors
from .verdict import on_test, on_test_over, verdict, verdict_over
from .words import is_plain_grid, model_key, plural

FORMAT = "kslottery-summary/1"
PARAPHRASE_METRICS = ("nll", "bleu_raw", "bleu_first_line", "ended")
COMPARED = ("partial", "frequency", "random", "l2", "gradient", "contribution")
"""Arms that are compared with those of the selector that is the method here, at the same size."""

SAMPLES_SHOWN = 8


def summarize(experiment: Experiment) -> dict[str, Any]:
    """Compute the content of ``summary.json``.

    Parameters
    ----------
    experiment : Experiment
        All of its stages must be finished.

    Returns
    -------
    dict
        As JSON takes it.
    """
    settings = experiment.settings
    languages = {code: Language(experiment, code) for code in experiment.shops}
    found = {code: language.summary() for code, language in languages.items()}
    first, shown = next(iter(languages.values())), next(iter(found.values()))
    arms = {model_key(spec): arm for spec, arm in shown["arms"].items()}
    summary: dict[str, Any] = {
        "format": FORMAT,
        "version": installed_version(),
        "title": _title(list(languages.values())),
        "verdict": "",
        "on_test": "",
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
        "recommendation": shown["recommendation"],
        "selectors": shown["selectors"],
    }
    if len(languages) > 1:
        summary |= _mean(list(languages.values()))
        summary["language_overlap"] = ticket_facts.of_languages({code: one.cells for code, one in languages.items()})
    summary |= {"verdict": verdict_over(summary), "on_test": on_test_over(summary)}
    return {**summary, "seconds": {job.stage: experiment.folder.seconds(job.stage) for job in experiment.jobs()}}


class Language:
    """One language of a finished experiment: its scores, aligned over arms, and what follows from them.

    Attributes
    ----------
    test, paraphrased, validation : dict
        Replicates by arm. ``paraphrased`` is empty without the paraphrase check. ``validation`` has the NLL only.
    per_seed : dict
        The scores of every training seed on the test pairs, by arm.
    rows : dict
        The number of rows of each arm, averaged over seeds. 0 if it changes other parameters.
    """

    def __init__(self, experiment: Experiment, code: str) -> None:
        self.settings, self.code, shop = experiment.settings, code, experiment.shops[code]
        self.base, self.specs = self.settings.base, self.settings.specs
        self.tuned, self.copied = arms_of(self.settings.select_by)
        self.cells = [experiment.cells[code, seed] for seed in self.settings.seeds]
        self.corpus: dict[str, Any] = dict(read_json(shop.folder.stage_path("corpus") / "corpus.json"))
        # One seed has the draws of its evaluations. Several seeds have draws that no other language has.
        self.seed = self.base.seed if len(self.cells) == 1 else comparison.language_seed(self.base.seed, code)
        scored = {
            spec: [cell.home(spec).stage_path(str(spec) + SCORE) for cell in self.arm_cells(spec)]
            for spec in self.specs
        }
        loaded = {spec: [load_scores(stage) for stage in stages] for spec, stages in scored.items()}
        self.evaluations = {spec: [one["test"] for one in found] for spec, found in loaded.items()}
        self.per_seed = {
            spec: [{metric: getattr(one, metric).value for metric in SCORES} for one in found]
            for spec, found in self.evaluations.items()
        }
        self.test = self._replicates(self.evaluations, self.seed)
        self.paraphrased: dict[ArmSpec, dict[str, Replicates]] = {}
        if self.settings.paraphrase:
            found = {spec: [one["paraphrased"] for one in seeds] for spec, seeds in loaded.items()}
            self.paraphrased = self._replicates(found, self.seed, PARAPHRASE_METRICS)
        self.likelihoods = {spec: [load_nll(stage) for stage in stages] for spec, stages in scored.items()}
        self.validation = self._validation(self.seed)
        records = {spec: [cell.record(spec) for cell in self.arm_cells(spec)] for spec in self.specs}
        self.rows = {spec: fmean(int(str(one["rows"] or 0)) for one in found) for spec, found in records.items()}

    def arm_cells(self, spec: ArmSpec) -> list[Cell]:
        """Return the cells of an arm: one for each seed, or a single one if the arm does not depend on the seed."""
        return self.cells if spec.facts.seeded else self.cells[:1]

    def apart(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """Return ``test`` computed with draws that no other language has, as a mean over languages needs."""
        seed = comparison.language_seed(self.base.seed, self.code)
        return self.test if seed == self.seed else self._replicates(self.evaluations, seed)

    def validation_apart(self) -> dict[ArmSpec, Replicates]:
        """Return ``validation`` computed with draws that no other language has."""
        seed = comparison.language_seed(self.base.seed, self.code)
        return self.validation if seed == self.seed else self._validation(seed)

    def _validation(self, seed: int) -> dict[ArmSpec, Replicates]:
        draws = {"n_bootstrap": self.base.n_bootstrap, "seed": seed}
        return {spec: comparison.nll_replicates(found, **draws) for spec, found in self.likelihoods.items()}

    def _replicates(
        self, evaluations: Mapping[ArmSpec, Sequence[Evaluation]], seed: int, metrics: Sequence[str] = SCORES
    ) -> dict[ArmSpec, dict[str, Replicates]]:
        references, base = [pair["target"] for pair in self.corpus["test"]], self.base
        how: dict[str, Any] = {"bleu_tokenizer": base.bleu_tokenizer, "n_bootstrap": base.n_bootstrap, "seed": seed}
        return {
            spec: comparison.score_replicates(found, references, metrics=metrics, **how)
            for spec, found in evaluations.items()
        }

    def summary(self) -> dict[str, Any]:
        """Return the entry of the language in ``summary.json``."""
        effects, measured = self.settings.effects, self.settings.needs_contributions
        positions = {str(spec): self._first("positions", f".{spec}") for spec in self.settings.interpreted}
        certificates = {cell.seed: cell.folder.stage_path("certificate") / "certificate.json" for cell in self.cells}
        found = {
            "name": self.corpus["target_language"]["name"],
            "select_by": self.settings.select_by,
            "pairs": {split: len(self.corpus[split]) for split in ("train", "validation", "test")},
            "corpus": self.corpus["provenance"],
            "licences": self.corpus["licences"],
            "arms": {str(spec): self._arm(spec) for spec in self.specs},
            "controls": self._controls(),
            "tickets": ticket_facts.of_language(
                self.cells, self._first("effects", f"@{effects}") if effects else {}, contributions=measured
            ),
            "selection": ticket_facts.selection(self.cells[0]),
            "contributions": contribution_facts.of_language(self.cells) if measured else None,
            "certificates": {str(seed): read_json(path) for seed, path in certificates.items()},
            "interpretation": {spec: shares for spec, shares in positions.items() if shares is not None},
            "gain": self._gain(),
            "recommendation": recommendation(self.validation, self.test, self.rows, self.settings.margin),
            "selectors": selectors(self.test, self.per_seed, self.rows),
            "samples": self._samples(),
        }
        updates = (self.base.steps, self.base.tuning_steps or self.base.steps)
        said = {"advice": advice.sentences(found, self.base.correction, updates), "verdict": verdict(found)}
        return {**found, **said, "on_test": on_test(found)}

    def _first(self, kind: str, of: str) -> Any:
        """The result of a stage of the first seed."""
        return read_json(self.cells[0].folder.stage_path(kind + of) / f"{kind}.json")

    def _arm(self, spec: ArmSpec) -> dict[str, Any]:
        cells, test, sentences = self.arm_cells(spec), self.test[spec], len(self.corpus["test"])
        records = [cell.record(spec) for cell in cells]
        several = len(self.cells) > 1
        scores = _plain(comparison.score_intervals(test, sentences)) if several else self.evaluations[spec][0].scores()
        result: dict[str, Any] = {
            "label": spec.facts.label,
            "rows": [record["rows"] for record in records],
            "coverage": [cell.coverage(spec) for cell in cells],
            "trained_parameters": [record["trained_parameters"] for record in records],
            **rates.of_arm(records),
            **costs(spec, cells),
            "scores": scores,
            "per_seed": self.per_seed[spec],
            "validation_nll": self.validation[spec].interval().to_dict(),
        }
        if self.paraphrased:
            result["paraphrased"] = _plain(comparison.score_intervals(self.paraphrased[spec], sentences))
        if spec != UNTUNED:
            result |= {
                "against_untuned": _plain(comparison.differences(test, self.test[UNTUNED])),
                "per_seed_against_untuned": self._by_seed(spec, UNTUNED),
                "decomposition": _plain(comparison.decomposition(test, self.test[UNTUNED])),
            }
            if self.paraphrased:
                differences = comparison.differences(self.paraphrased[spec], self.paraphrased[UNTUNED])
                result["paraphrased_against_untuned"] = _plain(differences)
        if spec not in (UNTUNED, EMBED):
            result["against_embed"] = _plain(comparison.differences(test, self.test[EMBED]))
            result["per_seed_against_embed"] = self._by_seed(spec, EMBED)
        return result

    def _by_seed(self, first: ArmSpec, second: ArmSpec) -> list[dict[str, float]]:
        return comparison.seed_differences(self.per_seed[first], self.per_seed[second])

    def _controls(self) -> list[dict[str, Any]]:
        """Each control minus the arm of the same size that trains the chosen rows, paired."""
        pairs = [(spec, replace(spec, name=self.tuned, draw=0)) for spec in self.specs]
        return [
            {
                "control": str(spec),
                "own": str(own),
                "difference": _plain(comparison.differences(self.test[spec], self.test[own])),
                "per_seed": self._by_seed(spec, own),
            }
            for spec, own in pairs
            if spec.name in COMPARED and own in self.test and own != spec
        ]

    def _gain(self) -> dict[str, Any]:
        """Embed Tuning's gain in test NLL, and the shares of it that copying and training the tickets recover."""
        untuned, scores = self.test[UNTUNED]["nll"], {str(spec): found["nll"] for spec, found in self.test.items()}
        gain, size = untuned - scores["embed"], advice.main_size(list(scores), self.tuned)
        specs = [spec for name in (self.copied, self.tuned) if (spec := f"{name}@{size}") in scores]
        shares = {spec: (untuned - scores[spec]).share_of(gain) for spec in specs}
        return {
            **gain.interval().to_dict(),
            "shares": {spec: share and share.to_dict() for spec, share in shares.items()},
        }

    def _samples(self) -> list[dict[str, str]]:
        """Test pairs with the outputs of every arm, for the first seed."""
        outputs = {model_key(str(spec)): found[0].outputs for spec, found in self.evaluations.items()}
        return [
            {"source": pair["source"], "reference": pair["target"]}
            | {name: texts[place].text for name, texts in outputs.items()}
            for place, pair in enumerate(self.corpus["test"][:SAMPLES_SHOWN])
        ]

    def signatures(self) -> dict[str, str]:
        """Return what to cite: the signatures of sacrebleu, and how the intervals were computed."""
        found, seeds = dict(self.evaluations[UNTUNED][0].signatures), len(self.cells)
        if seeds > 1:
            del found["bootstrap"]
            found["intervals"] = (
                f"level:0.95|bootstrap:sentences|resamples:{self.base.n_bootstrap}|seeds:t({seeds - 1})"
                "|differences:paired|ends:hull with clopper-pearson"
            )
        return found


def _title(languages: Sequence[Language]) -> str:
    """The model and the languages; also the size of the grid, unless it is that of a plain run."""
    first, settings = languages[0].corpus, languages[0].settings
    targets = " and ".join(one.corpus["target_language"]["name"] for one in languages)
    title = f"{first['model_name']}, {first['source_language']['name']} to {targets}"
    if is_plain_grid(settings.grid):
        return title
    return f"{title}: {len(settings.specs)} arms, {plural(len(settings.seeds), 'training seed')}"


def _mean(languages: Sequence[Language]) -> dict[str, Any]:
    """The mean over languages: scores of the arms, recommendation, and comparison of the selectors."""
    result, sentences = {}, sum(len(language.corpus["test"]) for language in languages)
    scores, specs = [language.apart() for language in languages], languages[0].specs
    test = {spec: comparison.mean_over([one[spec] for one in scores]) for spec in specs}
    for spec in specs:
        arm, untuned, embed = (test[of] for of in (spec, UNTUNED, EMBED))
        result[str(spec)] = {
            "label": spec.facts.label,
            "scores": _plain(comparison.score_intervals(arm, sentences)),
            "against_untuned": _plain(comparison.differences(arm, untuned)),
            "against_embed": _plain(comparison.differences(arm, embed)),
            "decomposition": _plain(comparison.decomposition(arm, untuned)),
        }
    likelihoods = [language.validation_apart() for language in languages]
    validation = {spec: comparison.mean_over([{"nll": one[spec]} for one in likelihoods])["nll"] for spec in specs}
    rows = {spec: fmean(language.rows[spec] for language in languages) for spec in specs}
    per_seed = [language.per_seed for language in languages]
    return {
        "mean": result,
        "recommendation": recommendation(validation, test, rows, languages[0].settings.margin),
        "selectors": mean_over_languages(scores, per_seed, [language.rows for language in languages]),
    }


def _plain(found: Mapping[str, Interval | Replicates]) -> dict[str, dict[str, float]]:
    """Values and 95% intervals in a form that JSON can hold."""
    intervals = {name: one.interval() if isinstance(one, Replicates) else one for name, one in found.items()}
    return {name: one.to_dict() for name, one in intervals.items()}


def _values(arm: Mapping[str, Any]) -> dict[str, float]:
    """The scores of an arm and how many numbers it trained, means over seeds."""
    trained = arm["trained_parameters"]
    scores = {metric: score["value"] for metric, score in arm["scores"].items()}
    return scores | {"trained_parameters": trained[0] if len(set(trained)) == 1 else fmean(trained)}
