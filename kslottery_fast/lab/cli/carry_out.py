"""How ``kslottery run``, ``compare`` and ``report`` do what is left of an experiment and show what it found."""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.experiment.settings import ExperimentSettings

from .options import print_json

if TYPE_CHECKING:
    from kslottery_fast.evaluation.evaluate import Evaluation
    from kslottery_fast.lab.experiment.jobs import Engine
    from kslottery_fast.lab.experiment.run_folder import RunFolder


def carry_out(
    settings: ExperimentSettings, options: argparse.Namespace, *, only_report: bool = False, extend: bool = True
) -> int:
    """Do what is left of an experiment in ``options.folder``, write its products and show them.

    The grid may differ from that of an earlier call in the same folder. Finished stages are reused, and the products
    show the grid of this call. With ``only_report`` an experiment that is not finished is refused. Without ``extend``
    the folder of other languages and seeds is refused.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers are imported
    from rich.console import Console

    from kslottery_fast.base.files import read_json
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import open_run_folder
    from kslottery_fast.lab.report.products import up_to_date, write_products
    from kslottery_fast.lab.report.tables import print_summary, score_header, score_row

    console, output = RunConsole(quiet=options.quiet), options.folder
    header = score_header()

    def show(label: str, evaluation: "Evaluation") -> None:
        while header:  # above the first row
            console.say(header.pop(0))
        console.say(score_row(label, evaluation))

    with open_run_folder(output, settings.binding, settings.grid) as folder:
        if not extend:
            _check_grid(output, settings)
        experiment = Experiment(settings, folder, console, show)
        if not only_report:
            folder.keep_grid(settings.grid)
        engine = _engine(settings, folder, options)
        worked = experiment.work(options.command, only_finished=only_report, engine=engine)
        if worked or getattr(options, "force", False) or not up_to_date(output, settings):
            with console.task("Writing tables, figures and report"):
                write_products(experiment)
        summary = dict(read_json(output / "summary.json"))
    if options.json:
        print_json(summary)
    else:
        print_summary(summary, Console(highlight=False), output)
    return 0


def _check_grid(folder: Path, settings: ExperimentSettings) -> None:
    """Refuse the folder of another language or training seed, which only ``compare`` may extend."""
    from kslottery_fast.lab.experiment.run_folder import refuse

    names = [stage.name for stage in (folder / "stages").glob("[!.]*")]
    codes = sorted(name.removesuffix(".corpus") for name in names if name.endswith(".corpus"))
    seeds = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"[^.]+\.(\d+)\.embed", name)))
    (target,), (seed,) = settings.targets, settings.seeds
    if codes and find_language(target).code not in codes:
        refuse(folder, [f"target: {', '.join(map(repr, codes))} there, {target!r} here"])
    if seeds and seed not in seeds:
        refuse(folder, [f"seed: {', '.join(map(str, dict.fromkeys(seeds)))} there, {seed} here"])


def _engine(settings: ExperimentSettings, folder: "RunFolder", options: argparse.Namespace) -> "Engine":
    """What does the jobs."""
    from kslottery_fast.lab.experiment.jobs import work_through
    from kslottery_fast.lab.experiment.workers import LocalWorkers, fitting

    if getattr(options, "cluster", None) == "ray":
        from kslottery_fast.lab.experiment.cluster import RayCluster

        return RayCluster(settings)
    count = getattr(options, "workers", 1)
    if count is None:
        count = fitting(settings, folder)
    return work_through if count == 1 else LocalWorkers(settings, count)
