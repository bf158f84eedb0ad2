"""The scores of every arm: on the test split, on the validation split, and with the paraphrased template."""

import shutil
from collections.abc import Callable
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
"""What the stages with the scores of an arm add to its name."""


def other_template(template: str) -> str:
    """The template of the paraphrase check, which asks the same in words that were not used in training."""
    return DEFAULT_TEMPLATE if template == PARAPHRASED_TEMPLATE else PARAPHRASED_TEMPLATE


def score(shop: Workshop, model: Any, stage: str, folder: Path, progress: ProgressCallback) -> None:
    """Score a model on the test split. The stage ``SCORE`` also holds its NLL on the validation split.

    Every test pair counts twice in the progress, once for its likelihood and once for its translation, and every
    validation pair once.
    """
    settings, tokenizer = shop.settings, shop.loaded.tokenizer
    template = settings.template if stage == SCORE else other_template(settings.template)
    test = shop.examples("test", template)
    validation = shop.examples("validation") if stage == SCORE else []  # for choices that must not see the test split
    total = 2 * len(test) + len(validation)

    def on_test(done: int, _: int) -> None:
        whole = done == 2 * len(test)
        progress(done, total, "test NLL" if done < len(test) else "intervals" if whole else "translations")

    def on_validation(done: int, _: int) -> None:
        progress(2 * len(test) + done, total, "validation NLL")

    with trimming_forward(model):
        found = evaluate(
            model,
            tokenizer,
            test,
            max_new_tokens=settings.max_new_tokens,
            bleu_tokenizer=settings.bleu_tokenizer,
            progress=on_test,
            **settings.measuring,
        )
    write_json(folder / (TEST if stage == SCORE else PARAPHRASED), found.to_dict())
    if validation:
        on_validation(0, len(validation))
        write_json(folder / VALIDATION, validation_nll(shop, model, on_validation).to_dict())


def validation_nll(shop: Workshop, model: Any, progress: Callable[[int, int], None]) -> TargetNll:
    """The NLL of a model on the validation split."""
    tokenizer, examples = shop.loaded.tokenizer, shop.examples("validation")
    with trimming_forward(model):
        return nll(model, tokenizer, examples, progress=progress, **shop.settings.measuring)


def copy_scores(source: Path, folder: Path) -> None:
    """Copy the scores of the same model from another stage."""
    for name in (TEST, PARAPHRASED, VALIDATION):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def load_nll(folder: Path) -> TargetNll:
    """The NLL of a scored arm on the validation split."""
    return TargetNll.from_dict(read_json(folder / VALIDATION))


def load_scores(folder: Path) -> dict[str, Evaluation]:
    """The evaluations of a scored arm: ``test``, and ``paraphrased`` if there is one.

    Parameters
    ----------
    folder : Path
        The folder of its finished stage ``SCORE``.
    """
    other = folder.with_name(folder.name.removesuffix(SCORE) + PARAPHRASE) / PARAPHRASED
    scores = {"test": Evaluation.from_dict(read_json(folder / TEST))}
    return scores | ({"paraphrased": Evaluation.from_dict(read_json(other))} if other.exists() else {})
