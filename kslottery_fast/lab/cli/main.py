"""The command line: ``kslottery run``, ``report``, ``compare``, ``certify``, ``select``, ``scan`` and ``info``.

Exit codes: 0 done, 2 bad input (one line on stderr says what and how to mend it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.run_settings import RunSettings

from . import certify as certify_command
from . import compare as compare_command
from . import scan as scan_command
from . import select

_HELP = {
    "model": "named model, Hugging Face id, folder or .gguf file",
    "corpus": "named corpus, .tsv/.csv/.jsonl file of pairs, or folder of .po files",
    "source": "source language: a code such as en, or code=Name",
    "target": "target language: a code such as es, or code=Name",
    "train": "training pairs",
    "validation": "validation pairs, kept apart; `compare` chooses by them, `run` does not use them",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["kslottery", *arguments])
    try:
        return int(options.run(options))
    except InputError as error:
        # One line, whatever a library's message looks like inside.
        print(f"kslottery: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kslottery: interrupted{getattr(options, 'after_interrupt', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `| head`. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kslottery", description="Find the few token embeddings that fine-tuning really needs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="the whole experiment: Embed Tuning, KS selection, Partial Transfer, Partial Tuning, controls, report",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("--output", dest="folder", type=Path, default=Path("runs/run"), metavar="DIR", help="run folder")
    for field in fields(RunSettings):
        flag = "--" + field.name.replace("_", "-")
        kind: Any = str if field.default is None else type(field.default)
        run.add_argument(flag, dest=field.name, type=kind, default=field.default, help=_HELP[field.name])
    run.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    run.set_defaults(run=_run, after_interrupt="; the same command goes on after the last finished stage")

    report = commands.add_parser("report", help="print the table of a finished run and make its report anew")
    report.add_argument("folder", type=Path, metavar="DIR", help="the run's folder")
    report.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    report.set_defaults(run=_report)

    compare_command.add_parser(commands, _HELP)
    certify_command.add_parser(commands)
    select.add_parser(commands)
    scan_command.add_parser(commands)

    info = commands.add_parser("info", help="explain any file that a run writes, or, without PATH, this installation")
    info.add_argument("path", nargs="?", type=Path, metavar="PATH", help="run folder, artifact or adapter")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    return parser


class _Parser(argparse.ArgumentParser):
    """Errors of the command line look like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kslottery: error: {message}; see {self.prog} --help\n")


def _run(options: argparse.Namespace) -> int:
    settings = RunSettings(**{field.name: getattr(options, field.name) for field in fields(RunSettings)})
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.pipeline import run

    summary = run(settings, options.folder, RunConsole(), command=options.command)
    return _show(summary, options)


def _report(options: argparse.Namespace) -> int:
    from kslottery_fast.base.files import read_json
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.pipeline import run

    header = read_json(options.folder / "run.json")
    if str(header.get("format", "")).startswith("kslottery-comparison"):
        raise InputError(
            f"{options.folder} holds a comparison: `kslottery compare` with its arguments again prints the tables"
        )
    try:
        settings = RunSettings(**header["settings"])
    except (KeyError, TypeError):
        raise InputError(f"{options.folder}/run.json was not written by this version; run it anew") from None
    summary = run(settings, options.folder, RunConsole(), remake=True, only_finished=True)
    return _show(summary, options)


def _show(summary: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    from kslottery_fast.lab.report.report import print_table

    console = Console(highlight=False)
    print_table(summary, console)
    console.print()
    for sentence in summary["findings"]:
        console.print(f"- {sentence}", markup=False)
    console.print()
    folder = options.folder
    for what, name in (
        ("Report", "report.html"),
        ("Numbers", "summary.json"),
        ("Tickets", "tickets.json"),
        ("Their rows", "tickets.safetensors"),
        ("PEFT adapter", "adapter"),
    ):
        console.print(f"{what + ':':14}{folder / name}", markup=False, soft_wrap=True)
    return 0


def _info(options: argparse.Namespace) -> int:
    from .info import describe, describe_installation

    facts = describe_installation() if options.path is None else describe(options.path)
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
