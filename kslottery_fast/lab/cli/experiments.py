"""The commands about experiments: ``kslottery run``, ``compare`` and ``report``."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Selector
from kslottery_fast.lab.experiment.run_settings import EVALUATION, SELECTION, TASK, TRAINING, RunSettings
from kslottery_fast.lab.experiment.settings import COMPARE_ARMS, ExperimentSettings

from .carry_out import carry_out
from .jobs import print_jobs
from .options import (
    Renamed,
    add_command,
    add_force,
    add_results,
    at_least,
    below_one,
    place,
    positive,
    print_json,
    probability,
    rows,
    words,
    workers,
)
from .options import seed as one_seed
from .options import seeds as some_seeds

_SUMMARY = "print summary.json to stdout instead of the table"
ENGINE = "how the jobs run"
FOLDER = "folder of `kslottery run` or `kslottery compare`"


def add_run(commands: Any) -> None:
    """Add ``run``, the default experiment."""
    parser = add_command(
        commands,
        "run",
        _run,
        "run the whole experiment on one language",
        "The experiment tunes the embedding of the active vocabulary (Embed Tuning),\n"
        "selects tickets, copies their rows (Partial Transfer), trains only their rows\n"
        "(Partial Tuning), and trains two controls of the same size. It scores every\n"
        "model on held-out pairs.\n\n"
        "The same command resumes an experiment that was interrupted.",
        ["run --output runs/es --target es", "run --model HuggingFaceTB/SmolLM2-360M --corpus pairs.tsv --target fr"],
    )
    groups = _add_settings(parser, "runs/run", leave_out=())
    _add_selector(groups[SELECTION], "what the rows that the run copies and trains are chosen by")
    groups[SELECTION].add_argument(
        "--rows",
        type=rows,
        default="alpha",
        metavar="ROWS",
        help="how many: a number, `alpha` (as many as the KS test selects) or `enough` (the fewest that account for "
        "95%% of the fall of the loss, if contribution chooses them)",
    )
    groups[TRAINING].add_argument(
        "--seed", dest="seeds", type=one_seed, default=0, metavar="N", help="random seed of the trainings"
    )


def add_compare(commands: Any) -> None:
    """Add ``compare``, an experiment with any arms, seeds and languages."""
    parser = add_command(
        commands,
        "compare",
        _compare,
        "compare many ways to tune a model",
        "Each way is called an arm and is written NAME[@SIZE][:OPTION=VALUE]. Every arm\n"
        "is tried with several training seeds and languages. SIZE is a number of rows\n"
        "(18), an alpha (0.05: as many rows as the KS test selects), `tickets`, or\n"
        "`active` (the whole active vocabulary). --list-arms explains names and options.\n\n"
        "With several learning rates, as in partial@18:lr=1e-2/3e-2, an arm is trained at\n"
        "each of them, and the one that does best on the validation pairs is kept.\n\n"
        "The same command resumes an experiment that was interrupted. Arms, seeds and\n"
        "languages may be added later. The folder of `kslottery run` may be extended.",
        [
            "compare --output runs/es --arms partial@18,frequency@18,lora@18 --seed 0,1,2",
            "compare --arms partial@18:lr=1e-2/3e-2:steps=300,random@18:draw=1",
            "compare --list-arms",
        ],
    )
    grid = parser.add_argument_group("what is compared")
    grid.add_argument("--arms", type=words, default=", ".join(COMPARE_ARMS), metavar="ARM,...", help="the arms")
    grid.add_argument(
        "--target", dest="targets", type=words, default="es", metavar="CODE,...", help="the target languages"
    )
    grid.add_argument(
        "--seed", dest="seeds", type=some_seeds, default="0,1,2", metavar="N,...", help="random seeds of the trainings"
    )
    for old, dest, kind in (("--targets", "targets", words), ("--seeds", "seeds", some_seeds)):
        grid.add_argument(old, dest=dest, type=kind, action=Renamed, now=old.removesuffix("s"))
    grid.add_argument("--effects", type=at_least(0), default=12, metavar="N", help="tickets to measure one by one")
    grid.add_argument(
        "--margin",
        type=probability,
        default=0.1,
        metavar="SHARE",
        help="share of Embed Tuning's gain that the recommended rows may lose",
    )
    grid.add_argument(
        "--no-paraphrase",
        dest="paraphrase",
        action="store_false",
        help="do not score the arms with another template as well, which takes half of the time of scoring",
    )
    _add_selector(grid, "whose arms the others are compared with, and whose rows are written")
    groups = _add_settings(parser, "runs/compare", leave_out=("target",))
    groups[ENGINE].add_argument(
        "--cluster", choices=["ray"], help="run each job as a task of a Ray cluster that shares the folder"
    )
    listing = parser.add_argument_group("instead of the experiment")
    listing.add_argument("--list-arms", action="store_true", help="print what each arm is, and exit")
    listing.add_argument(
        "--print-jobs", action="store_true", help="print one command for every job that is left, for a batch system"
    )
    listing.add_argument("--dry-run", action="store_true", help="print the jobs and whether they are done, and exit")


def add_report(commands: Any) -> None:
    """Add ``report``, which shows a finished experiment again."""
    parser = add_command(
        commands,
        "report",
        _report,
        "show a finished experiment, and update its report",
        "The table is printed. Files of the report that are missing, or that another\n"
        "version wrote, are written. Nothing is trained or scored.",
        ["report runs/es"],
        "DIR",
    )
    parser.add_argument("folder", type=place, metavar="DIR", help=FOLDER)
    group = add_results(parser, as_json=f"{_SUMMARY}, and write no file")
    add_force(group, "write report, figures and tables again even if they are up to date")


def _add_settings(parser: argparse.ArgumentParser, output: str, *, leave_out: tuple[str, ...]) -> dict[str, Any]:
    """Add an option for every setting, in groups, which are returned."""
    groups: dict[str, Any] = {
        title: parser.add_argument_group(title) for title in (TASK, SELECTION, TRAINING, EVALUATION)
    }
    for field in fields(RunSettings):
        if field.name not in leave_out:
            _add_setting(groups[field.metadata["group"]], field)
    groups[SELECTION].add_argument("--top-k", dest="top_k", type=at_least(1), action=Renamed, now="--fallback-top-k")
    groups[ENGINE] = parser.add_argument_group(ENGINE)
    groups[ENGINE].add_argument(
        "--workers",
        type=workers,
        default=1,
        metavar="N",
        help="processes that share the jobs and the threads, or auto: as many as cores and free memory allow",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", dest="folder", type=place, default=Path(output), metavar="DIR", help="folder of the experiment"
    )
    add_results(parser, group, as_json=f"{_SUMMARY}; the folder is written in either case")
    parser.set_defaults(after_interrupt="; the same command resumes the experiment")
    return groups


def _add_selector(group: Any, text: str) -> None:
    group.add_argument("--select-by", choices=get_args(Selector), default="ks", help=text)


def _add_setting(group: Any, field: Any) -> None:
    metadata, options = field.metadata, {}
    if metadata["choices"]:
        options["choices"] = metadata["choices"]
    elif field.name == "seed":
        options |= {"type": one_seed, "metavar": "N"}
    elif isinstance(field.default, bool):
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(field.default, int) or field.default is None:  # None: as many as something else
        options |= {"type": at_least(1), "metavar": "N"}
    elif isinstance(field.default, float):
        read = {"alpha": probability, "stage1_beta2": below_one}.get(field.name, positive)
        options |= {"type": read, "metavar": "NUMBER"}
    flag = metadata["flag"] or field.name.replace("_", "-")
    group.add_argument(f"--{flag}", dest=field.name, default=field.default, help=metadata["help"], **options)


def _settings(options: argparse.Namespace) -> RunSettings:
    return RunSettings(**{field.name: getattr(options, field.name) for field in fields(RunSettings)})


def _run(options: argparse.Namespace) -> int:
    settings = ExperimentSettings.of_run(
        _settings(options), options.seeds, select_by=options.select_by, rows=options.rows
    )
    return carry_out(settings, options, extend=False)


def _compare(options: argparse.Namespace) -> int:
    if options.list_arms:
        return _list_arms(options)
    if options.cluster and options.workers != 1:
        raise InputError("give --workers or --cluster, not both: a cluster has its own workers")
    options.target = options.targets[0]
    settings = ExperimentSettings(
        _settings(options),
        options.arms,
        options.seeds,
        options.targets,
        options.effects,
        options.margin,
        paraphrase=options.paraphrase,
        select_by=options.select_by,
    )
    if options.print_jobs:
        return print_jobs(settings, options)
    return _list_jobs(settings, options) if options.dry_run else carry_out(settings, options)


def _list_arms(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.arms import ARMS, CHOSEN, ChosenRows
    from kslottery_fast.lab.experiment.specs import OPTIONS

    arms = {name: f"{arm.label}. {' '.join((type(arm).__doc__ or '').split())}" for name, arm in ARMS.items()}
    arms |= {
        name: f"{text} It chooses {CHOSEN[arm.selector]}."
        for name, text in arms.items()
        if isinstance(arm := ARMS[name], ChosenRows)
    }
    if options.json:
        print_json(arms)
    else:
        for name, text in arms.items():
            print(f"{name + ('@SIZE' if ARMS[name].sized else ''):24} {text}")
        print("\nOptions, which may be combined, as in partial@18:lr=1e-2/3e-2:steps=300:")
        for option, text in OPTIONS.items():
            print(f":{option:23} {text}")
    return 0


def _list_jobs(settings: ExperimentSettings, options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.console import RunConsole, duration
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import RunFolder, check_run_folder

    check_run_folder(options.folder, settings.binding)
    folder = RunFolder(options.folder)
    jobs = Experiment(settings, folder, RunConsole(quiet=True)).jobs()
    seconds = {job.stage: folder.seconds(job.stage) if folder.finished(job.stage) else None for job in jobs}
    if options.json:
        listed = [{"stage": job.stage, "title": job.title, "seconds": seconds[job.stage]} for job in jobs]
        print_json({"folder": str(options.folder), "jobs": listed})
        return 0
    done = sum(took is not None for took in seconds.values())
    print(f"{options.folder}: {len(jobs)} jobs, {done} finished already")
    for job in jobs:
        took = seconds[job.stage]
        print(f"{'to do' if took is None else f'done in {duration(took)}':>18}  {job.title}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header

    settings = ExperimentSettings.recorded(read_header(options.folder), options.folder)
    if not options.json:
        return carry_out(settings, options, only_report=True)
    from kslottery_fast.lab.report.summary import summarize

    experiment = Experiment(settings, RunFolder(options.folder), RunConsole(quiet=True))
    experiment.check_finished()
    print_json(summarize(experiment))
    return 0
