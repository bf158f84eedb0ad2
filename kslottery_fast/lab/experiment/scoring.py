"""What is measured of every arm: test sentences in the template, validation NLL, and the paraphrased template."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.evaluation.encoding import Example
from kslottery_fast.evaluation.evaluate import Evaluation, TargetNll, evaluate, nll
from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, PARAPHRASED_TEMPLATE

from .console import ProgressCallback
from .memory import trimming_forward
from .workshop import Workshop

TEST, PARAPHRASED, VALIDATION = "evaluation.json", "paraphrased.json", "validation.json"
SCORE, PARAPHRASE = ".score", ".paraphrase"
"""What the stages of an arm's scores add to its name: test and validation, and the paraphrased template."""


def other_template(template: str) -> str:
    """The template of the paraphrase check: the same request in words that the models were not tuned with."""
    return DEFAULT_TEMPLATE if template == PARAPHRASED_TEMPLATE else PARAPHRASED_TEMPLATE


def score(shop: Workshop, model: Any, folder: Path, progress: ProgressCallback) -> None:
    """Score a model on the test split, and its NLL on validation; write both into the stage's folder."""
    with trimming_forward(model):
        _evaluate(shop, model, shop.examples("test"), folder / TEST, progress)
        write_json(folder / VALIDATION, nll_record(validation_nll(shop, model)))


def score_paraphrased(shop: Workshop, model: Any, folder: Path, progress: ProgressCallback) -> None:
    """Score a model on the test split with the other template."""
    examples = shop.examples("test", other_template(shop.settings.template))
    with trimming_forward(model):
        _evaluate(shop, model, examples, folder / PARAPHRASED, progress)


def _evaluate(shop: Workshop, model: Any, examples: Sequence[Example], path: Path, progress: ProgressCallback) -> None:
    settings = shop.settings
    result = evaluate(
        model,
        shop.loaded.tokenizer,
        examples,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
        bleu_tokenizer=settings.bleu_tokenizer,
        progress=progress,
    )
    write_json(path, result.to_dict())


def copy_scores(source: Path, folder: Path) -> None:
    """Take over the scores of the same model from another stage."""
    for name in (TEST, PARAPHRASED, VALIDATION):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def validation_nll(shop: Workshop, model: Any) -> TargetNll:
    """NLL on the validation split: for choices that the test split must not see."""
    settings = shop.settings
    return nll(
        model,
        shop.loaded.tokenizer,
        shop.examples("validation"),
        batch_size=settings.eval_batch_size,
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
    )


def nll_record(result: TargetNll) -> dict[str, Any]:
    """As JSON takes it."""
    return {**result._asdict(), "interval": asdict(result.interval)}


def load_nll(folder: Path, name: str = VALIDATION) -> TargetNll:
    """Read what :func:`nll_record` made."""
    record = read_json(folder / name)
    return TargetNll(Interval.from_dict(record["interval"]), record["sentence_nll"], record["sentence_tokens"])


def load_scores(folder: Path) -> dict[str, Evaluation]:
    """The evaluations of a scored arm by template, ``test`` and, where that was asked for, ``paraphrased``.

    ``folder``: of its finished stage ``SCORE``.
    """
    other = folder.with_name(folder.name.removesuffix(SCORE) + PARAPHRASE)
    paths = {"test": folder / TEST, "paraphrased": other / PARAPHRASED}
    return {
        name: Evaluation.from_dict(read_json(path)) for name, path in paths.items() if path.exists() or name == "test"
    }
