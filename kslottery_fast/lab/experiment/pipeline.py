"""KS-Lottery from end to end: the stages in their order, then summary, artifacts and report."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

from .console import RunConsole
from .run_folder import RunFolder, open_run_folder
from .run_settings import RunSettings

STAGES = (
    ("corpus", "Corpus and model"),
    ("evaluate_untuned", "Evaluating the untuned model"),
    ("embed_tuning", "Embed Tuning over the active vocabulary"),
    ("evaluate_embed_tuning", "Evaluating Embed Tuning"),
    ("select", "Selecting tickets with the KS test"),
    ("evaluate_partial_transfer", "Evaluating Partial Transfer"),
    ("partial_tuning", "Partial Tuning"),
    ("evaluate_partial_tuning", "Evaluating Partial Tuning"),
    ("frequency_tuning", "Control: Frequency Tuning"),
    ("evaluate_frequency_tuning", "Evaluating Frequency Tuning"),
    ("random_tuning", "Control: random corpus rows"),
    ("evaluate_random_tuning", "Evaluating random corpus rows"),
    ("certify", "Certifying"),
)
"""Name and title of every stage, in order. A stage reads only what stands above it."""

PRODUCTS = (
    "summary.json",
    "environment.json",
    "tickets.json",
    "tickets.safetensors",
    "adapter",
    "report.html",
)
"""What a finished run shows: made from the stages, and made again if one is missing."""


def run(
    settings: RunSettings,
    output: Path,
    console: RunConsole,
    *,
    command: str = "",
    remake: bool = False,
    only_finished: bool = False,
) -> dict[str, Any]:
    """Run what is left to run in the folder ``output`` and return the content of ``summary.json``.

    Parameters
    ----------
    settings : what to do.
    output : the run's folder; finished stages in it are taken over, their settings must be the same.
    console : where progress is shown.
    command : recorded in ``environment.json``.
    remake : write the products again even if all are there.
    only_finished : refuse a run with stages left instead of going on with it.

    Raises
    ------
    InputError : a folder of another run, or whatever a stage refuses. Finished stages stay.
    """
    with open_run_folder(output, settings.to_dict()) as folder:
        done = [title for name, title in STAGES if folder.finished(name)]
        if done:
            todo = len(STAGES) - len(done)
            rest = f"{todo} left; going on with the next" if todo else "none left"
            console.say(f"{output}: {len(done)} of {len(STAGES)} stages are finished already, {rest}")
        if only_finished and len(done) < len(STAGES):
            raise InputError(
                f"{output}: only {len(done)} of {len(STAGES)} stages are finished; `kslottery run` goes on"
            )
        _run_stages(settings, folder, console, command)
        if remake or len(done) < len(STAGES) or not all((output / name).exists() for name in PRODUCTS):
            from kslottery_fast.lab.report.results import write_results

            with console.task("Writing artifacts and report"):
                write_results(settings, folder)
        return dict(read_json(output / "summary.json"))


def _run_stages(settings: RunSettings, folder: RunFolder, console: RunConsole, command: str) -> None:
    if all(folder.finished(name) for name, _ in STAGES):
        return
    # Only now: transformers takes seconds to import, and a finished run does not need it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kslottery_fast.evaluation.scores import bleu_metric

    from . import stages
    from .jobs import Job, work_through

    bleu_metric(settings.bleu_tokenizer)  # refuses what is not at hand now, not after the first evaluation

    shop = stages.Workshop(settings, folder, console)
    jobs = []
    for name, title in STAGES:
        work: Callable[..., None]
        if name.startswith("evaluate_"):
            work = _evaluation(stages, name.removeprefix("evaluate_"))
        else:
            work = getattr(stages, name)
        jobs.append(Job(name, title, partial(work, shop)))
    work_through(jobs, folder, console, command)


def _evaluation(stages: Any, model: str) -> Callable[..., None]:
    return lambda shop, folder, progress: stages.evaluate_model(model, shop, folder, progress)
