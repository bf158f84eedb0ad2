"""What is measured of every arm: test sentences in the template, validation NLL, and the paraphrased template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.memory import trimming_forward
from kslottery_fast.evaluation.evaluate import Evaluation, TargetNll, evaluate, nll
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, PARAPHRASED_TEMPLATE

from .console import ProgressCallback
from .workshop import Workshop

TEST, PARAPHRASED, VALIDATION = "evaluation.json", "paraphrased.json", "validation.json"
SCORE, PARAPHRASE = ".score", ".paraphrase"
"""What the stages of an arm's scores add to its name: test and validation, and the paraphrased template."""


def other_template(template: str) -> str:
    """The template of the paraphrase check: the same request in words that the models were not tuned with."""
    return DEFAULT_TEMPLATE if template == PARAPHRASED_TEMPLATE else PARAPHRASED_TEMPLATE


def score(shop: Workshop, model: Any, stage: str, folder: Path, progress: ProgressCallback) -> None:
    """Score a model on the test split; for the stage ``SCORE`` its NLL on validation, too."""
    settings, tokenizer = shop.settings, shop.loaded.tokenizer
    template = settings.template if stage == SCORE else other_template(settings.template)
    with trimming_forward(model):
        found = evaluate(
            model,
            tokenizer,
            shop.examples("test", template),
            max_new_tokens=settings.max_new_tokens,
            bleu_tokenizer=settings.bleu_tokenizer,
            progress=progress,
            **settings.measuring,
        )
        write_json(folder / (TEST if stage == SCORE else PARAPHRASED), found.to_dict())
        if stage == SCORE:  # for choices that the test split must not see
            likelihood = nll(model, tokenizer, shop.examples("validation"), **settings.measuring)
            write_json(folder / VALIDATION, likelihood.to_dict())


def copy_scores(source: Path, folder: Path) -> None:
    """Take over the scores of the same model from another stage."""
    for name in (TEST, PARAPHRASED, VALIDATION):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def load_nll(folder: Path) -> TargetNll:
    return TargetNll.from_dict(read_json(folder / VALIDATION))


def load_scores(folder: Path) -> dict[str, Evaluation]:
    """The evaluations of a scored arm by template, ``test`` and, where that was asked for, ``paraphrased``.

    ``folder``: of its finished stage ``SCORE``.
    """
    other = folder.with_name(folder.name.removesuffix(SCORE) + PARAPHRASE) / PARAPHRASED
    scores = {"test": Evaluation.from_dict(read_json(folder / TEST))}
    return scores | ({"paraphrased": Evaluation.from_dict(read_json(other))} if other.exists() else {})
