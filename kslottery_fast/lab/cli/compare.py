"""``kslottery compare``: the command line, the run, and the files that it leaves."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast import __version__
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_path, read_json, write_json, write_text
from kslottery_fast.lab.experiment.console import RunConsole, duration
from kslottery_fast.lab.experiment.run_folder import open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import DEFAULT_ARMS, CompareSettings

if TYPE_CHECKING:
    from kslottery_fast.lab.experiment.plan import Comparison

KIND = "kslottery-comparison-run/1"
PRODUCTS = ("scores.csv", "scores.tex", "report.html", "environment.json", "summary.json")
"""What a finished comparison shows beside figures and rows-*.csv; ``summary.json`` is written last."""

_BY_LANGUAGE = ("rows-*.csv", "scores-*.png", "tickets-*.png", "rank-*.png", "selectors-*.png", "languages.png")
"""The products that depend on which languages are shown."""

_NOT_ASKED = ("target", "seed")  # a comparison has several of each


def add_parser(commands: Any, help_texts: dict[str, str]) -> None:
    """Add ``compare`` to the command line; ``help_texts`` explain the fields of RunSettings."""
    parser = commands.add_parser(
        "compare",
        help="many ways to tune a model beside each other, over training seeds and languages",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", dest="folder", type=Path, default=Path("runs/compare"), metavar="DIR", help="folder"
    )
    arms = "comma-separated NAME[@SIZE][:lr=RATE]; SIZE: rows (18), alpha (0.05), or active; --list-arms names them"
    parser.add_argument("--arms", type=_words, default=",".join(DEFAULT_ARMS), help=arms)
    parser.add_argument("--seeds", type=_words, default="0,1,2", help="comma-separated training seeds")
    parser.add_argument("--targets", type=_words, default="es", help="comma-separated target languages")
    parser.add_argument("--effects", type=int, default=12, help="tickets whose effect is measured one by one")
    parser.add_argument("--margin", type=float, default=0.1, help="share of the gain that the recommended set may lose")
    parser.add_argument("--split-seed", dest="seed", type=int, default=0, help="of the split and of the bootstrap")
    help_texts = {**help_texts, "validation": "pairs that advice and the effects of single tickets are measured on"}
    for field in fields(RunSettings):
        if field.name not in _NOT_ASKED:
            kind: Any = str if field.default is None else type(field.default)
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, dest=field.name, type=kind, default=field.default, help=help_texts[field.name])
    parser.add_argument("--list-arms", action="store_true", help="name the arms and end")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs, finished or not, and end")
    parser.add_argument(
        "--remake", action="store_true", help="write tables, figures and report again, from finished jobs alone"
    )
    parser.add_argument("--json", action="store_true", help="print summary.json instead of the tables")
    parser.set_defaults(run=_run, after_interrupt="; the same command goes on after the last finished stage")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def settings_of(options: argparse.Namespace) -> CompareSettings:
    """The settings that the command line asks for."""
    base = {field.name: getattr(options, field.name) for field in fields(RunSettings) if field.name != "target"}
    try:
        seeds = tuple(int(seed) for seed in options.seeds)
    except ValueError:
        raise InputError(f"seeds is {','.join(options.seeds)!r}; expected integers, such as 0,1,2") from None
    return CompareSettings(
        base=RunSettings(**base, target=options.targets[0] if options.targets else "es"),
        arms=options.arms,
        seeds=seeds,
        targets=options.targets,
        effects=options.effects,
        margin=options.margin,
    )


def _run(options: argparse.Namespace) -> int:
    if options.list_arms:
        from kslottery_fast.lab.experiment.arms import ARMS

        for name, arm in ARMS.items():
            doc = " ".join((type(arm).__doc__ or "").split())
            print(f"{name + ('@SIZE' if arm.sized else ''):24} {arm.label}: {doc}")
        return 0
    settings = settings_of(options)
    console = RunConsole()
    summary = compare(
        settings, options.folder, console, command=options.command, dry=options.dry_run, remake=options.remake
    )
    if summary is None:
        return 0
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    from kslottery_fast.lab.report.tables import print_tables

    out = Console(highlight=False)
    print_tables(summary, out)
    for language in summary["languages"].values():
        out.print()
        for sentence in language["advice"]:
            out.print(f"- {language['name']}: {sentence}", markup=False)
    out.print()
    for what, name in (("Report", "report.html"), ("Numbers", "summary.json"), ("Table", "scores.csv")):
        out.print(f"{what + ':':10}{options.folder / name}", markup=False, soft_wrap=True)
    return 0


def compare(
    settings: CompareSettings,
    output: Path,
    console: RunConsole,
    *,
    command: str = "",
    dry: bool = False,
    remake: bool = False,
) -> dict[str, Any] | None:
    """Do what is left of a comparison in the folder ``output`` and return the content of ``summary.json``.

    The grid (arms, seeds, languages) may differ from that of an earlier call in the same folder: what is finished is
    taken over, and the products show the grid of this call.

    Parameters
    ----------
    settings : what to do.
    output : the folder; its other settings must be the same.
    console : where progress is shown.
    command : recorded with the stages that this call makes.
    dry : list the jobs and do nothing; returns None.
    remake : write the products again although they are those of this grid and version.

    Raises
    ------
    InputError : a folder of another comparison, jobs that are left to do where ``remake`` asks for products alone, or
        whatever a stage refuses. Finished stages stay.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kslottery_fast.evaluation.scores import bleu_metric
    from kslottery_fast.lab.experiment.adapters import check_peft
    from kslottery_fast.lab.experiment.jobs import work_through
    from kslottery_fast.lab.experiment.plan import Comparison

    bleu_metric(settings.base.bleu_tokenizer)  # refuses what is not at hand now, not after the first evaluation
    if any(spec.name in ("lora", "prefix") for spec in settings.specs):
        check_peft()
    with open_run_folder(output, settings.binding, kind=KIND) as folder:
        comparison = Comparison(settings, folder, console)
        jobs = comparison.jobs()
        todo = [job for job in jobs if not folder.finished(job.stage)]
        console.say(f"{output}: {len(jobs)} jobs, {len(jobs) - len(todo)} finished already")
        if dry:
            for job in jobs:
                done = folder.finished(job.stage)
                took = f"done in {duration(folder.seconds(job.stage))}" if done else "to do"
                console.say(f"{took:>18}  {job.title}")
            return None
        if remake and todo:
            raise InputError(
                f"{output}: remake writes products from finished jobs, but {len(todo)} of {len(jobs)} are left to do; "
                "leave --remake out to do them"
            )
        work_through(jobs, folder, console, command)
        if todo or remake or not _up_to_date(output, settings):
            with console.task("Writing tables, figures and report"):
                write_products(comparison, [job.stage for job in jobs])
        return dict(read_json(output / "summary.json"))


def _up_to_date(output: Path, settings: CompareSettings) -> bool:
    if not all((output / name).exists() for name in PRODUCTS):
        return False
    summary = read_json(output / "summary.json")
    return bool(summary.get("grid") == settings.grid and summary.get("version") == __version__)


def write_products(comparison: Comparison, stages: Sequence[str]) -> None:
    """Write every product from finished stages, each whole or not at all.

    The products of an earlier grid go first, ``summary.json`` before all others: killed half-way, this leaves no
    summary that would pass files of two grids for one.
    """
    from kslottery_fast.lab.experiment.environment import combined
    from kslottery_fast.lab.report.compare_figures import pictures
    from kslottery_fast.lab.report.compare_page import render
    from kslottery_fast.lab.report.summary import summarize
    from kslottery_fast.lab.report.tables import csv_text, latex_text

    folder, output = comparison.folder, comparison.folder.path
    summary = summarize(comparison)
    cells = {code: comparison.cells[code, comparison.settings.seeds[0]] for code in comparison.shops}
    figures = pictures(summary, {code: cell.evidence for code, cell in cells.items()})
    records = [folder.record(stage) for stage in stages]
    corpus = read_json(next(iter(comparison.shops.values())).folder.stage_path("corpus") / "corpus.json")
    environment = {
        **combined([record["environment"] for record in records]),
        "commands": list(dict.fromkeys(record["environment"]["command"] for record in records)),
        "model": {"name": corpus["model_name"], **corpus["model_provenance"]},
        "seconds": {stage: record["seconds"] for stage, record in zip(stages, records, strict=True)},
    }
    page = render(summary, {name: value for name, value in environment.items() if name != "seconds"}, figures)
    for stale in [output / "summary.json", *(path for pattern in _BY_LANGUAGE for path in output.glob(pattern))]:
        stale.unlink(missing_ok=True)
    for picture in figures:
        with atomic_path(output / f"{picture.name}.png") as temporary:
            picture.write_png(temporary)
    for code, cell in cells.items():
        write_text(output / f"rows-{code}.csv", _rows_csv(cell.evidence))
    write_text(output / "scores.csv", csv_text(summary))
    write_text(output / "scores.tex", latex_text(summary))
    write_json(output / "environment.json", environment)
    write_text(output / "report.html", page)
    # Last: who finds a summary finds everything else beside it.
    write_json(output / "summary.json", summary)


def _rows_csv(evidence: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["token_id", "D", "l2", "gradient", "frequency"])
    d = evidence.dimension
    columns = (evidence.token_ids, evidence.counts / d, evidence.l2, evidence.gradient, evidence.frequency)
    writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
    return buffer.getvalue()
