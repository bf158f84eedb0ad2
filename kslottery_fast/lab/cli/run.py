"""``kslottery run``: the default experiment; and what every command about experiments does."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.experiment.settings import ExperimentSettings, RunSettings

if TYPE_CHECKING:
    from kslottery_fast.evaluation.evaluate import Evaluation
    from kslottery_fast.lab.experiment.console import RunConsole

HELP = {
    "model": "named model, Hugging Face id, folder or .gguf file",
    "corpus": "named corpus, .tsv/.csv/.jsonl file of pairs, or folder of .po files",
    "source": "source language: a code such as en, or code=Name",
    "target": "target language: a code such as es, or code=Name",
    "train": "training pairs",
    "validation": "pairs that advice and the effects of single tickets are measured on",
    "test": "held-out pairs that every model is scored on",
    "template": "prompt, with {source}, {source_language} and {target_language}",
    "alpha": "significance level of the KS test",
    "method": "p-values: auto, exact, asymp, or the paper's threshold",
    "correction": "for testing many rows: bonferroni or bh",
    "top_k": "rows to go on with, by largest D, where alpha selects none",
    "learning_rate": "of Embed Tuning; it decides how far rows move",
    "tuning_learning_rate": "of Partial Tuning and of its controls",
    "steps": "updates of every training",
    "batch_size": "examples of an update",
    "micro_batch_size": "examples that go through the model together, of similar lengths",
    "output_role": "tied tables: auto or frozen (the head keeps its weights), or tied (the head follows)",
    "dtype": "auto, bfloat16 or float32; trained rows are float32 always",
    "seed": "of the split, the batches, the random rows and the bootstrap",
    "max_new_tokens": "length of a translation at most",
    "eval_batch_size": "sentences in an evaluation batch",
    "n_bootstrap": "resamples of every interval",
    "bleu_tokenizer": "sacrebleu's: 13a, or flores101/flores200 for spBLEU",
}


def add_parser(commands: Any) -> None:
    """Add ``run`` to the command line."""
    parser = commands.add_parser(
        "run",
        help="the whole experiment: Embed Tuning, KS selection, Partial Transfer, Partial Tuning, controls, report",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser, "runs/run")
    parser.set_defaults(run=_run)


def add_arguments(parser: argparse.ArgumentParser, output: str, *, leave_out: tuple[str, ...] = ()) -> None:
    """The arguments of every command that works on an experiment: folder, settings, ``--json``."""
    parser.add_argument("--output", dest="folder", type=Path, default=Path(output), metavar="DIR", help="its folder")
    for field in fields(RunSettings):
        if field.name not in leave_out:
            kind: Any = str if field.default is None else type(field.default)
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, dest=field.name, type=kind, default=field.default, help=HELP[field.name])
    parser.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    parser.set_defaults(after_interrupt="; the same command goes on where this one ended")


def _run(options: argparse.Namespace) -> int:
    base = RunSettings(**{field.name: getattr(options, field.name) for field in fields(RunSettings)})
    _check_target(options.folder, base.target)
    return carry_out(ExperimentSettings.of_run(base), options)


def _check_target(folder: Path, target: str) -> None:
    """Refuse the folder of another language; ``compare`` is what adds languages to a folder."""
    from kslottery_fast.lab.experiment.run_folder import read_header, refuse

    if (folder / "stages").is_dir() and any((folder / "stages").iterdir()) and (folder / "run.json").exists():
        there = read_header(folder)["grid"]["targets"]
        if find_language(target).code not in [find_language(one).code for one in there]:
            refuse(folder, [f"target: {', '.join(map(repr, there))} there, {target!r} here"])


def carry_out(
    settings: ExperimentSettings, options: argparse.Namespace, *, only_finished: bool = False, remake: bool = False
) -> int:
    """Do what is left of an experiment in ``options.folder``, write its products and show them.

    The grid may differ from that of an earlier call in the same folder: what is finished is taken over, and the
    products show the grid of this call. ``only_finished``: refuse to do anything that is left. ``remake``: write the
    products again although they are those of this grid and version.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kslottery_fast.base.files import read_json
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder
    from kslottery_fast.lab.report.products import up_to_date, write_products

    console, output = RunConsole(), options.folder
    with open_run_folder(output, settings.binding, settings.grid) as folder:
        experiment = Experiment(settings, folder, console, _Rows(console))
        if not only_finished:
            folder.keep_grid(settings.grid)
        if experiment.work(options.command, only_finished=only_finished) or remake or not up_to_date(output, settings):
            with console.task("Writing tables, figures and report"):
                write_products(experiment)
        summary = dict(read_json(output / "summary.json"))
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    from kslottery_fast.lab.report.tables import print_summary

    print_summary(summary, Console(highlight=False), output)
    return 0


class _Rows:
    """Shows the scores of one model after the other while an experiment works."""

    def __init__(self, console: RunConsole) -> None:
        self.console, self.begun = console, False

    def __call__(self, label: str, evaluation: Evaluation) -> None:
        from kslottery_fast.lab.report.tables import score_header, score_row

        for line in () if self.begun else score_header():
            self.console.say(line)
        self.begun = True
        self.console.say(score_row(label, evaluation))
