"""Single jobs of an experiment: ``kslottery job``, and the list that ``kslottery compare --print-jobs`` prints."""

import argparse
import difflib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.settings import ExperimentSettings

from .options import add_command, place, print_json

if TYPE_CHECKING:
    from kslottery_fast.lab.experiment.jobs import Job

NOT_NOW = os.EX_TEMPFAIL
"""The exit code of a job that cannot be done yet: 75, as in sysexits.h."""


def add_job(commands: Any) -> None:
    """Add ``job``, which makes one stage of an experiment."""
    parser = add_command(
        commands,
        "job",
        _job,
        "make one stage of an experiment, or all that are left",
        "`kslottery compare --print-jobs` prints one such command for every stage. Any\n"
        "number of them may run at a time, on any machines that share the folder. No\n"
        "stage is made twice. If a process is killed, the next one that asks for its\n"
        "stage takes it over: at once on the same machine, and elsewhere after three\n"
        "minutes. Without STAGE, the command does every job that no other process does,\n"
        "until none is left. It may be called in any directory: relative paths in the\n"
        "settings begin where the experiment was begun.\n\n"
        "Exit codes: 0 if the stage is finished, now or before; 75 if a stage that it\n"
        "needs is not finished, or if another process makes it now; 2 for an error; 130\n"
        "if interrupted.",
        ["job runs/es es.0.embed", "job runs/es"],
        "DIR [STAGE]",
    )
    parser.add_argument("folder", type=place, metavar="DIR", help="folder of the experiment")
    parser.add_argument("stage", nargs="?", metavar="STAGE", help="name of the stage")
    group = parser.add_argument_group("output")
    group.add_argument("-q", "--quiet", action="store_true", help="leave out progress; notes and errors still appear")
    parser.set_defaults(after_interrupt="; the same command resumes the job")


def _job(options: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers are imported
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.directory import in_directory
    from kslottery_fast.lab.experiment.jobs import work_through
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import join_run_folder, read_header

    header = read_header(options.folder)
    settings = ExperimentSettings.recorded(header, options.folder)
    with in_directory(header, options.folder) as path, join_run_folder(path) as folder:
        jobs = Experiment(settings, folder, console := RunConsole(quiet=options.quiet)).jobs()
        if options.stage is None:
            work_through(jobs, folder, console, options.command)
            return 0
        job = _named(options.stage, jobs)
        if folder.finished(job.stage):
            console.say(f"{job.stage} is finished already")
            return 0
        if missing := [need for need in job.needs if not folder.finished(need)]:
            return _not_now(f"{job.stage} needs {', '.join(missing)}, which must be finished first")
        if folder.claims.held(job.stage):
            return _not_now(f"another process makes {job.stage}")
        work_through([job], folder, console, options.command)
    return 0


def _named(stage: str, jobs: "list[Job]") -> "Job":
    found = {job.stage: job for job in jobs}
    if stage not in found:
        near = difflib.get_close_matches(stage, found, n=1)
        hint = f"did you mean {near[0]}?" if near else "`kslottery compare --print-jobs` lists the stages"
        raise InputError(f"the experiment has no stage {stage!r}; {hint}")
    return found[stage]


def _not_now(why: str) -> int:
    print(f"kslottery: not now: {why}", file=sys.stderr)
    return NOT_NOW


def print_jobs(settings: ExperimentSettings, options: argparse.Namespace) -> int:
    """Print a command for every job that is left, after those that it needs, with the report as the last one.

    The folder is made, because the commands read the settings there.
    """
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.jobs import levels
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder

    with open_run_folder(options.folder, settings.binding, settings.grid, keep=True) as folder:
        folder.keep_grid(settings.grid)
        experiment = Experiment(settings, folder, RunConsole(quiet=True))
        experiment.check_needs()
        left = [job for job in experiment.jobs() if not folder.finished(job.stage)]
    level = levels(left)
    left.sort(key=lambda job: level[job.stage])
    commands = {job.stage: shlex.join(["kslottery", "job", str(options.folder), job.stage]) for job in left}
    report = shlex.join(["kslottery", "report", str(options.folder)])
    if options.json:
        listed = [
            {
                "stage": job.stage,
                "title": job.title,
                "level": level[job.stage],
                "needs": [need for need in job.needs if need in level],
                "command": commands[job.stage],
            }
            for job in left
        ]
        print_json({"folder": str(options.folder), "jobs": listed, "report": report})
        return 0
    for job in left:
        print(f"{commands[job.stage]}  # level {level[job.stage]}")
    print(f"{report}  # level {max(level.values(), default=0) + 1}")
    return 0
