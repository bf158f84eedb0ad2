"""``kslottery compare``: an experiment of any arms, seeds and languages."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.settings import COMPARE_ARMS, ExperimentSettings, RunSettings

from .run import add_arguments, carry_out


def add_parser(commands: Any) -> None:
    """Add ``compare`` to the command line."""
    parser = commands.add_parser(
        "compare",
        help="many ways to tune a model beside each other, over training seeds and languages",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    arms = (
        "comma-separated NAME[@SIZE][:lr=RATE]; SIZE: rows (18), alpha (0.05), tickets, or active; "
        "--list-arms names them"
    )
    parser.add_argument("--arms", type=_words, default=",".join(COMPARE_ARMS), help=arms)
    parser.add_argument("--seeds", type=_words, default="0,1,2", help="comma-separated training seeds")
    parser.add_argument("--targets", type=_words, default="es", help="comma-separated target languages")
    parser.add_argument("--effects", type=int, default=12, help="tickets whose effect is measured one by one")
    parser.add_argument("--margin", type=float, default=0.1, help="share of the gain that the recommended set may lose")
    parser.add_argument("--split-seed", dest="seed", type=int, default=0, help="of the split and of the bootstrap")
    add_arguments(parser, "runs/compare", leave_out=("target", "seed"))  # there are several of each
    parser.add_argument("--list-arms", action="store_true", help="name the arms and end")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs, finished or not, and end")
    parser.set_defaults(run=_run)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def settings_of(options: argparse.Namespace) -> ExperimentSettings:
    """The settings that the command line asks for."""
    base = {field.name: getattr(options, field.name) for field in fields(RunSettings) if field.name != "target"}
    try:
        seeds = tuple(int(seed) for seed in options.seeds)
    except ValueError:
        raise InputError(f"seeds is {','.join(options.seeds)!r}; expected integers, such as 0,1,2") from None
    return ExperimentSettings(
        base=RunSettings(**base, target=options.targets[0] if options.targets else "es"),
        arms=options.arms,
        seeds=seeds,
        targets=options.targets,
        effects=options.effects,
        margin=options.margin,
    )


def _run(options: argparse.Namespace) -> int:
    if options.list_arms:
        return _list_arms()
    settings = settings_of(options)
    return _list_jobs(settings, options) if options.dry_run else carry_out(settings, options)


def _list_arms() -> int:
    from kslottery_fast.lab.experiment.arms import ARMS

    for name, arm in ARMS.items():
        doc = " ".join((type(arm).__doc__ or "").split())
        print(f"{name + ('@SIZE' if arm.sized else ''):24} {arm.label}: {doc}")
    return 0


def _list_jobs(settings: ExperimentSettings, options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.console import RunConsole, duration
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder

    console = RunConsole()
    with open_run_folder(options.folder, settings.binding, settings.grid) as folder:
        for job in Experiment(settings, folder, console).jobs():
            done = folder.finished(job.stage)
            took = f"done in {duration(folder.seconds(job.stage))}" if done else "to do"
            console.say(f"{took:>18}  {job.title}")
    return 0
