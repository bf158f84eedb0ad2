"""Which rows to take, and which selector wins: at every size, each one minus frequency and minus KS, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kslottery_fast.evaluation import comparison
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.experiment.cell import EMBED, UNTUNED
from kslottery_fast.lab.experiment.specs import ArmSpec

from .words import options_of, outcome_of, way_of

BASELINES = ("frequency", "ks")
"""The selectors that every other one is compared with: the simplest one, and that of the paper."""

SHOWN = ("nll", "bleu_raw", "bleu_first_line")

PerSeed = Sequence[Mapping[str, float]]


def recommendation(
    validation: Mapping[ArmSpec, Replicates],
    test: Mapping[ArmSpec, comparison.Scores],
    rows: Mapping[ArmSpec, float],
    margin: float,
) -> dict[str, Any] | None:
    """Return the recommended set among all arms that train or copy rows that a selector chose.

    Parameters
    ----------
    validation : mapping
        Replicates of the NLL on the validation split, by arm.
    test, rows : mapping
        As for :func:`selectors`.
    margin : float
        The share of Embed Tuning's gain that the set may lose.

    Returns
    -------
    dict or None
        What :func:`~kslottery_fast.evaluation.comparison.recommend` returns. Random rows are a control.
    """

    def candidate(spec: ArmSpec) -> comparison.Candidate:
        way, control = way_of(str(spec)), spec.facts.selector == "random"
        return comparison.Candidate(str(spec), rows[spec], validation[spec], test[spec]["nll"], way, control)

    sets = [candidate(spec) for spec in test if spec.facts.selector]
    return comparison.recommend(sets, candidate(UNTUNED), candidate(EMBED), margin)


def selectors(
    test: Mapping[ArmSpec, comparison.Scores],
    per_seed: Mapping[ArmSpec, PerSeed],
    rows: Mapping[ArmSpec, float],
) -> list[dict[str, Any]]:
    """Compare the selectors at every size at which rows of several of them were trained, and likewise if copied.

    Parameters
    ----------
    test : mapping
        Replicates of the scores on the test split, by arm. All arms were resampled with the same draws.
    per_seed : mapping
        The same scores of every training seed, by arm.
    rows : mapping
        The number of rows of each arm, averaged over seeds.

    Returns
    -------
    list of dict
        Groups of arms that differ in their selector alone, in the order of size. Each has ``size`` and ``options`` as
        they are written, ``copied``, ``rows`` and ``models``. A model is a selector with its ``arms`` (several draws of
        random rows are one model), its ``nll`` with a 95% interval, and the lowest and highest NLL of its draws under
        ``range`` (None for one draw). Under ``against`` it has its differences from ``frequency`` and from ``ks``, if
        these are in the group: every score minus theirs with a paired interval, ``per_seed``, and the ``outcome``.
    """
    groups: dict[tuple[bool, str, str], dict[str, list[ArmSpec]]] = {}
    for spec in test:
        if spec.facts.selector and rows[spec]:
            key = (not spec.facts.trains, str(spec.size), options_of(str(spec), without="draw"))
            groups.setdefault(key, {}).setdefault(spec.facts.selector, []).append(spec)
    found = []
    for (copied, size, options), models in groups.items():
        if len(models) > 1:
            scores = {name: comparison.mean_over([test[spec] for spec in arms]) for name, arms in models.items()}
            seeds = {name: _over_draws([per_seed[spec] for spec in arms]) for name, arms in models.items()}
            told = [_model(name, arms, scores, seeds, test) for name, arms in models.items()]
            least = min(rows[spec] for arms in models.values() for spec in arms)
            found.append({"size": size, "options": options, "copied": copied, "rows": least, "models": told})
    return sorted(found, key=lambda group: (group["copied"], group["rows"]))


def mean_over_languages(
    parts: Sequence[Mapping[ArmSpec, comparison.Scores]],
    per_seed: Sequence[Mapping[ArmSpec, PerSeed]],
    rows: Sequence[Mapping[ArmSpec, float]],
) -> list[dict[str, Any]]:
    """Compare the selectors in the mean over languages.

    Parameters
    ----------
    parts, per_seed, rows : sequence of mapping
        What :func:`selectors` takes, for each language. Languages were resampled with different draws.

    Returns
    -------
    list of dict
        As :func:`selectors` returns.
    """
    return selectors(
        {spec: comparison.mean_over([one[spec] for one in parts]) for spec in parts[0]},
        {spec: _over_draws([one[spec] for one in per_seed]) for spec in per_seed[0]},
        {spec: fmean(one[spec] for one in rows) for spec in rows[0]},
    )


def _model(
    name: str,
    arms: Sequence[ArmSpec],
    scores: Mapping[str, comparison.Scores],
    seeds: Mapping[str, PerSeed],
    test: Mapping[ArmSpec, comparison.Scores],
) -> dict[str, Any]:
    draws = [test[spec]["nll"].value for spec in arms]
    others = [other for other in BASELINES if other in scores and other != name]
    return {
        "selector": name,
        "arms": list(map(str, arms)),
        "nll": scores[name]["nll"].interval().to_dict(),
        "range": [min(draws), max(draws)] if len(draws) > 1 else None,
        "against": {other: _difference(scores, seeds, name, other) for other in others},
    }


def _difference(
    scores: Mapping[str, comparison.Scores], seeds: Mapping[str, PerSeed], name: str, other: str
) -> dict[str, Any]:
    found = comparison.differences(_only(scores[name]), _only(scores[other]))
    by_seed = [seed["nll"] for seed in comparison.seed_differences(seeds[name], seeds[other])]
    differences = {metric: one.to_dict() for metric, one in found.items()}
    return {**differences, "per_seed": by_seed, "outcome": outcome_of(differences["nll"], by_seed)}


def _only(scores: comparison.Scores) -> dict[str, Replicates]:
    return {metric: scores[metric] for metric in SHOWN if metric in scores}


def _over_draws(draws: Sequence[PerSeed]) -> PerSeed:
    """The mean over draws, or over languages, seed by seed."""
    return [{metric: fmean(one[metric] for one in seed) for metric in seed[0]} for seed in zip(*draws, strict=True)]
