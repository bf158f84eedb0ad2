"""From the finished stages of a comparison to ``summary.json``: every number of tables, figures and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kslottery_fast import __version__
from kslottery_fast.base.files import read_json
from kslottery_fast.evaluation.evaluate import Evaluation, TargetNll
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.experiment import scoring
from kslottery_fast.lab.experiment.arms import ARMS
from kslottery_fast.lab.experiment.cell import EMBED, UNTUNED, Cell
from kslottery_fast.lab.experiment.controls import frequency_ranks
from kslottery_fast.lab.experiment.plan import SCORE
from kslottery_fast.lab.experiment.plan import Experiment as Comparison
from kslottery_fast.lab.experiment.settings import ALPHA_GRID, ArmSpec
from kslottery_fast.tickets.tickets import Tickets

from . import advice, measures, overlaps
from .costs import costs

FORMAT = "kslottery-comparison/1"
COMPARED = ("frequency", "random", "l2", "gradient")
"""Controls that stand beside Partial Tuning of the same size."""


def summarize(comparison: Comparison) -> dict[str, Any]:
    """The content of ``summary.json``."""
    settings = comparison.settings
    languages = {code: Language(comparison, code) for code in comparison.shops}
    first = next(iter(languages.values()))
    summary: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "title": f"{first.corpus['model_name']}: {len(settings.specs)} arms, {len(settings.seeds)} training seeds",
        "settings": settings.binding,
        "grid": settings.grid,
        "signatures": _signatures(first),
        "languages": {code: language.summary() for code, language in languages.items()},
    }
    if len(languages) > 1:
        summary["mean"] = _mean(list(languages.values()))
        cells = {code: language.cells for code, language in languages.items()}
        summary["language_overlap"] = overlaps.of_languages(cells)
    return summary


class Language:
    """One language of a finished comparison: its scores, aligned over arms, and what follows from them."""

    def __init__(self, comparison: Comparison, code: str) -> None:
        self.settings, self.shop = comparison.settings, comparison.shops[code]
        self.cells = [comparison.cells[code, seed] for seed in self.settings.seeds]
        self.options = {
            "n_bootstrap": self.settings.base.n_bootstrap,
            "seed": language_seed(self.settings.base.seed, code),
        }

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """The recorded corpus and model."""
        return dict(read_json(self.shop.folder.stage_path("corpus") / "corpus.json"))

    @property
    def sentences(self) -> int:
        """Pairs of the test split."""
        return len(self.corpus["test"])

    def arm_cells(self, spec: ArmSpec) -> list[Cell]:
        """The cells of an arm: one of each seed, or one where the seed plays no part."""
        return self.cells if ARMS[spec.name].seeded else self.cells[:1]

    def evaluations(self, spec: ArmSpec, template: str) -> list[Evaluation]:
        """The evaluations of an arm, one for each seed."""
        return [
            scoring.load_scores(cell.home(spec).stage_path(str(spec) + SCORE))[template]
            for cell in self.arm_cells(spec)
        ]

    @cached_property
    def test(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """Replicates of every metric of every arm on the test split."""
        return {spec: self._replicates(spec, "test", measures.METRICS) for spec in self.settings.specs}

    @cached_property
    def paraphrased(self) -> dict[ArmSpec, dict[str, Replicates]]:
        """The same with the paraphrased template."""
        return {
            spec: self._replicates(spec, "paraphrased", measures.PARAPHRASE_METRICS) for spec in self.settings.specs
        }

    def _replicates(self, spec: ArmSpec, template: str, metrics: Sequence[str]) -> dict[str, Replicates]:
        references = [pair["target"] for pair in self.corpus["test"]]
        tokenizer = self.settings.base.bleu_tokenizer
        found = self.evaluations(spec, template)
        return measures.replicates(found, references, bleu_tokenizer=tokenizer, metrics=metrics, **self.options)

    @cached_property
    def validation(self) -> dict[ArmSpec, Replicates]:
        """Replicates of the validation NLL of every arm."""
        results = {}
        for spec in self.settings.specs:
            parts: list[TargetNll] = [
                scoring.load_nll(cell.home(spec).stage_path(str(spec) + SCORE)) for cell in self.arm_cells(spec)
            ]
            results[spec] = measures.nll_replicates(parts, **self.options)
        return results

    def summary(self) -> dict[str, Any]:
        """Everything of this language, as JSON takes it."""
        tickets, controls, found = self._tickets(), self._controls(), self._recommendation()
        return {
            "name": self.corpus["target_language"]["name"],
            "pairs": {split: len(self.corpus[split]) for split in ("train", "validation", "test")},
            "corpus": self.corpus["provenance"],
            "licences": self.corpus["licences"],
            "arms": {str(spec): self._arm(spec) for spec in self.settings.specs},
            "controls": controls,
            "tickets": tickets,
            "certificates": {
                str(cell.seed): read_json(cell.folder.stage_path("certificate") / "certificate.json")
                for cell in self.cells
            },
            "interpretation": self._interpretation(),
            "recommendation": found,
            "advice": self._advice(found, tickets, controls),
        }

    def _arm(self, spec: ArmSpec) -> dict[str, Any]:
        arm, cells = ARMS[spec.name], self.arm_cells(spec)
        test = self.test[spec]
        untuned, embed = self.test[UNTUNED], self.test[EMBED]
        records = [cell.record(spec) for cell in cells]
        result: dict[str, Any] = {
            "label": arm.label,
            "rows": [record["rows"] for record in records],
            "coverage": [cell.coverage(spec) for cell in cells],
            "trained_parameters": [record["trained_parameters"] for record in records],
            **costs(spec, cells),
            "scores": measures.score_intervals(test, self.sentences),
            "per_seed": self._per_seed(spec),
            "validation_nll": self.validation[spec].interval().to_dict(),
        }
        if self.settings.paraphrase:
            result["paraphrased"] = measures.score_intervals(self.paraphrased[spec], self.sentences)
        if spec != UNTUNED:
            result["against_untuned"] = measures.differences(test, untuned)
            result["per_seed_against_untuned"] = self._seed_differences(spec, UNTUNED)
            result["decomposition"] = measures.intervals(measures.decomposition(test, untuned))
            if self.settings.paraphrase:
                other = self.paraphrased
                result["paraphrased_against_untuned"] = measures.differences(other[spec], other[UNTUNED])
        if spec not in (UNTUNED, EMBED):
            result["against_embed"] = measures.differences(test, embed)
            result["per_seed_against_embed"] = self._seed_differences(spec, EMBED)
        return result

    def _per_seed(self, spec: ArmSpec) -> list[dict[str, float]]:
        """The scores of an arm on the test split, seed by seed."""
        return [
            {metric: getattr(evaluation, metric).value for metric in measures.METRICS}
            for evaluation in self.evaluations(spec, "test")
        ]

    def _seed_differences(self, first: ArmSpec, second: ArmSpec) -> list[dict[str, float]]:
        return measures.seed_differences(self._per_seed(first), self._per_seed(second))

    def _controls(self) -> list[dict[str, Any]]:
        """Each control minus Partial Tuning of the same size, paired."""
        found = []
        for spec in self.settings.specs:
            own = ArmSpec("partial", spec.size, spec.learning_rate)
            if spec.name in COMPARED and own in self.test:
                found.append(
                    {
                        "control": str(spec),
                        "own": str(own),
                        "difference": measures.differences(self.test[spec], self.test[own]),
                        "per_seed": self._seed_differences(spec, own),
                    }
                )
        return found

    def _tickets(self) -> dict[str, Any]:
        """Counts over alpha and steps, overlap of seeds and selectors, and the list of the first seed's tickets."""
        base, evidence = self.settings.base, [cell.evidence for cell in self.cells]
        alphas = sorted({*ALPHA_GRID, base.alpha, base.alpha / 2, min(2 * base.alpha, (1 + base.alpha) / 2)})

        def count(one: Any, alpha: float, counts: Any = None) -> int:
            return int(one.significant(alpha, base.method, base.correction, counts))

        saved = Tickets.load(self.cells[0].folder.stage_path("certificate") / "tickets.json")
        return {
            "alpha": base.alpha,
            "selected_by": saved.selected_by,
            "active_rows": [len(one) for one in evidence],
            "dimension": evidence[0].dimension,
            "vocab_size": evidence[0].vocab_size,
            "by_alpha": [{"alpha": alpha, "counts": [count(one, alpha) for one in evidence]} for alpha in alphas],
            "by_steps": [
                {"step": step, "counts": [count(one, base.alpha, one.trajectory[place][1]) for one in evidence]}
                for place, (step, _) in enumerate(evidence[0].trajectory)
            ],
            **overlaps.of_seeds(self.cells),
            "overlap_of_selectors": overlaps.of_selectors(self.cells, len(saved)),
            "spec": str(self.cells[0].own_tickets()),
            "list": self._list(saved),
        }

    def _list(self, tickets: Tickets) -> list[dict[str, Any]]:
        """The tickets of the first seed with all that is known of each."""
        evidence = self.cells[0].evidence
        ranks = frequency_ranks(evidence.frequency)
        effects = self._effects()
        in_template = set(effects.get("template_tokens", []))
        by_token = {effect["token_id"]: effect for effect in effects.get("tickets", [])}
        texts = tickets.token_texts or ("",) * len(tickets)
        places = torch.searchsorted(evidence.token_ids, tickets.token_ids).tolist()
        return [
            {
                "token_id": token,
                "token": text,
                "statistic": statistic,
                "pvalue": pvalue,
                "count": int(evidence.frequency[place]),
                "rank": int(ranks[place]),
                "in_template": token in in_template if effects else None,
                "alone": by_token.get(token, {}).get("alone"),
                "left_out": by_token.get(token, {}).get("left_out"),
            }
            for token, text, statistic, pvalue, place in zip(
                tickets.token_ids.tolist(),
                texts,
                tickets.statistic.tolist(),
                tickets.pvalue.tolist(),
                places,
                strict=True,
            )
        ]

    def _effects(self) -> dict[str, Any]:
        folder, name = self.cells[0].folder, f"effects@{self.settings.effects}"
        return dict(read_json(folder.stage_path(name) / "effects.json")) if folder.finished(name) else {}

    def _interpretation(self) -> dict[str, Any]:
        """Shares of positions, by arm, of the first seed."""
        folder = self.cells[0].folder
        specs = [spec for spec in self.settings.specs if folder.finished(f"positions.{spec}")]
        found = {str(spec): read_json(folder.stage_path(f"positions.{spec}") / "positions.json") for spec in specs}
        return {spec: value for spec, value in found.items() if value is not None}

    def _recommendation(self) -> dict[str, Any] | None:
        def candidate(spec: ArmSpec) -> advice.Candidate:
            rows = [int(str(cell.record(spec)["rows"])) for cell in self.arm_cells(spec)]
            return advice.Candidate(str(spec), sum(rows) / len(rows), self.validation[spec], self.test[spec]["nll"])

        sets = [spec for spec in self.settings.specs if spec.name == "partial" and spec.learning_rate is None]
        return advice.recommend(
            [candidate(spec) for spec in sets], candidate(UNTUNED), candidate(EMBED), self.settings.margin
        )

    def _advice(
        self, found: Mapping[str, Any] | None, tickets: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        counts = {entry["alpha"]: entry["counts"] for entry in tickets["by_alpha"]}
        sentences = [advice.recommendation_text(found)]
        sentences += advice.ticket_warnings(
            tickets["alpha"], counts, tickets["active_rows"], tickets["overlap_of_seeds"], tickets["overlap_of"]
        )
        for entry in controls:
            seeds = [seed["nll"] for seed in entry["per_seed"]]
            covered = self._covered(entry["control"]), self._covered(entry["own"])
            difference = entry["difference"]["nll"]
            sentences.append(advice.control_sentence(entry["control"], entry["own"], difference, seeds, covered))
        return sentences

    def _covered(self, arm: str) -> float:
        """Mean coverage of an arm that changes rows."""
        spec = next(spec for spec in self.settings.specs if str(spec) == arm)
        return float(np.mean([cell.coverage(spec) for cell in self.arm_cells(spec)]))


def _signatures(language: Language) -> dict[str, str]:
    """What to cite: sacrebleu's signatures, and how the intervals of a comparison were made."""
    scores = language.evaluations(UNTUNED, "test")[0].signatures
    seeds = len(language.cells)
    intervals = (
        f"level:0.95|bootstrap:sentences|resamples:{language.options['n_bootstrap']}|"
        + (f"seeds:t({seeds - 1})" if seeds > 1 else "seeds:one")
        + "|differences:paired|ends:hull with clopper-pearson"
    )
    return {**{name: text for name, text in scores.items() if name != "bootstrap"}, "intervals": intervals}


def _mean(languages: Sequence[Language]) -> dict[str, Any]:
    """Every arm averaged over languages."""
    result = {}
    for spec in languages[0].settings.specs:
        arm = measures.mean_over([language.test[spec] for language in languages])
        untuned = measures.mean_over([language.test[UNTUNED] for language in languages])
        embed = measures.mean_over([language.test[EMBED] for language in languages])
        result[str(spec)] = {
            "label": ARMS[spec.name].label,
            "scores": measures.score_intervals(arm, sum(language.sentences for language in languages)),
            "against_untuned": measures.differences(arm, untuned),
            "against_embed": measures.differences(arm, embed),
            "decomposition": measures.intervals(measures.decomposition(arm, untuned)),
        }
    return result


def language_seed(seed: int, code: str) -> int:
    """The seed of a language's draws: the same whatever stands beside it, another than that of other languages.

    >>> language_seed(0, "es") == language_seed(0, "es") != language_seed(0, "ca")
    True
    """
    return int(np.random.SeedSequence((seed, *code.encode())).generate_state(1)[0])
