"""The commands about experiments: ``kslottery run``, ``compare``, ``report`` and ``certify``."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.experiment.settings import COMPARE_ARMS, ExperimentSettings, RunSettings

if TYPE_CHECKING:
    from kslottery_fast.evaluation.evaluate import Evaluation

_AS_JSON = "print summary.json instead of the table"


def add_run(commands: Any) -> None:
    """``run``: the default experiment."""
    parser = commands.add_parser(
        "run",
        help="the whole experiment: Embed Tuning, KS selection, Partial Transfer, Partial Tuning, controls, report",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_settings(parser, "runs/run")
    parser.set_defaults(run=_run)


def add_compare(commands: Any) -> None:
    """``compare``: an experiment of any arms, seeds and languages."""
    parser = commands.add_parser(
        "compare",
        help="many ways to tune a model beside each other, over training seeds and languages",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = "rows (18), alpha (0.05), tickets, or active"
    arms = f"comma-separated NAME[@SIZE][:lr=RATE]; SIZE: {sizes}; --list-arms names them"
    parser.add_argument("--arms", type=_words, default=",".join(COMPARE_ARMS), help=arms)
    parser.add_argument("--seeds", type=_words, default="0,1,2", help="comma-separated training seeds")
    parser.add_argument("--targets", type=_words, default="es", help="comma-separated target languages")
    parser.add_argument("--effects", type=int, default=12, help="tickets whose effect is measured one by one")
    parser.add_argument("--margin", type=float, default=0.1, help="share of the gain that the recommended set may lose")
    parser.add_argument("--split-seed", dest="seed", type=int, default=0, help="of the split and of the bootstrap")
    _add_settings(parser, "runs/compare", leave_out=("target", "seed"))  # there are several of each
    parser.add_argument("--list-arms", action="store_true", help="name the arms and end")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs, finished or not, and end")
    parser.set_defaults(run=_compare)


def add_report(commands: Any) -> None:
    """``report``: the table of a finished experiment, and its products anew."""
    parser = commands.add_parser(
        "report", help="print the table of a finished run or comparison, and make report, figures and tables anew"
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="its folder")
    parser.add_argument("--json", action="store_true", help=_AS_JSON)
    parser.set_defaults(run=_report)


def add_certify(commands: Any) -> None:
    """``certify``: the certificates of an experiment again from its files."""
    parser = commands.add_parser(
        "certify",
        help="compute the certificates of a finished run or comparison again, and say what they guarantee",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of `kslottery run` or `kslottery compare`")
    parser.add_argument("--json", action="store_true", help="print the certificates as JSON")
    parser.set_defaults(run=_certify)


def _add_settings(parser: argparse.ArgumentParser, output: str, *, leave_out: tuple[str, ...] = ()) -> None:
    parser.add_argument("--output", dest="folder", type=Path, default=Path(output), metavar="DIR", help="its folder")
    for field in fields(RunSettings):
        if field.name not in leave_out:
            kind: Any = str if field.default is None else type(field.default)
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help=field.metadata["help"])
    parser.add_argument("--json", action="store_true", help=_AS_JSON)
    parser.set_defaults(after_interrupt="; the same command goes on where this one ended")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _settings(options: argparse.Namespace) -> RunSettings:
    return RunSettings(**{field.name: getattr(options, field.name) for field in fields(RunSettings)})


def _run(options: argparse.Namespace) -> int:
    base = _settings(options)
    return _carry_out(ExperimentSettings.of_run(base), options, only_target=base.target)


def _check_target(folder: Path, target: str) -> None:
    """Refuse the folder of another language; ``compare`` is what adds languages to a folder."""
    from kslottery_fast.lab.experiment.run_folder import refuse

    there = sorted(stage.name.removesuffix(".corpus") for stage in (folder / "stages").glob("*.corpus"))
    if there and find_language(target).code not in there:
        refuse(folder, [f"target: {', '.join(map(repr, there))} there, {target!r} here"])


def _compare(options: argparse.Namespace) -> int:
    if options.list_arms:
        return _list_arms()
    try:
        seeds = tuple(map(int, options.seeds))
    except ValueError:
        raise InputError(f"seeds is {','.join(options.seeds)!r}; expected integers, such as 0,1,2") from None
    options.target = next(iter(options.targets), "es")
    settings = ExperimentSettings(
        _settings(options), options.arms, seeds, options.targets, options.effects, options.margin
    )
    return _list_jobs(settings, options.folder) if options.dry_run else _carry_out(settings, options)


def _list_arms() -> int:
    from kslottery_fast.lab.experiment.arms import ARMS

    for name, arm in ARMS.items():
        doc = " ".join((type(arm).__doc__ or "").split())
        print(f"{name + ('@SIZE' if arm.sized else ''):24} {arm.label}: {doc}")
    return 0


def _list_jobs(settings: ExperimentSettings, output: Path) -> int:
    from kslottery_fast.lab.experiment.console import RunConsole, duration
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder

    console = RunConsole()
    with open_run_folder(output, settings.binding, settings.grid) as folder:
        jobs = Experiment(settings, folder, console).jobs()
        console.say(f"{output}: {len(jobs)} jobs, {sum(folder.finished(job.stage) for job in jobs)} finished already")
        for job in jobs:
            done = folder.finished(job.stage)
            took = f"done in {duration(folder.seconds(job.stage))}" if done else "to do"
            console.say(f"{took:>18}  {job.title}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.run_folder import read_header

    settings = ExperimentSettings.recorded(read_header(options.folder), options.folder)
    return _carry_out(settings, options, only_report=True)


def _certify(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.certificate import recomputed

    found = recomputed(options.folder)
    if options.json:
        print(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=2, ensure_ascii=False))
    else:
        for name, certificate in found.items():
            print(f"{name}\n{certificate}\n")
    return 0


def _carry_out(
    settings: ExperimentSettings, options: argparse.Namespace, *, only_report: bool = False, only_target: str = ""
) -> int:
    """Do what is left of an experiment in ``options.folder``, write its products and show them.

    The grid may differ from that of an earlier call in the same folder: what is finished is taken over, and the
    products show the grid of this call. ``only_report``: refuse to do anything that is left, and write the products
    again although they are those of this grid and version. ``only_target``: refuse the folder of other languages.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers are imported
    from rich.console import Console

    from kslottery_fast.base.files import read_json
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder
    from kslottery_fast.lab.report.products import up_to_date, write_products
    from kslottery_fast.lab.report.tables import print_summary, score_header, score_row

    console, output = RunConsole(), options.folder
    header = score_header()

    def show(label: str, evaluation: Evaluation) -> None:
        while header:  # above the first row
            console.say(header.pop(0))
        console.say(score_row(label, evaluation))

    with open_run_folder(output, settings.binding, settings.grid) as folder:
        if only_target:
            _check_target(output, only_target)
        experiment = Experiment(settings, folder, console, show)
        if not only_report:
            folder.keep_grid(settings.grid)
        worked = experiment.work(options.command, only_finished=only_report)
        if worked or only_report or not up_to_date(output, settings):
            with console.task("Writing tables, figures and report"):
                write_products(experiment)
        summary = dict(read_json(output / "summary.json"))
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_summary(summary, Console(highlight=False), output)
    return 0
