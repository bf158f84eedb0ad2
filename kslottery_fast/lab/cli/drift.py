"""``kslottery drift``: tests every numeric column of two tables, with an exit code of its own for drift."""

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction

from .options import (
    AS_JSON,
    add_command,
    add_force,
    add_results,
    at_least,
    place,
    print_json,
    probability,
    refuse_existing,
    words,
)

if TYPE_CHECKING:
    from kslottery_fast.ks.frame_result import KsFrameResult

DRIFT = 3
"""The exit code if a column drifted."""

_TABLE = "parquet, feather or CSV file, or folder of parquet files"
_SUFFIXES = (".json", ".csv")


def add_drift(commands: Any) -> None:
    """Add ``drift``, which tests the columns of two tables."""
    parser = add_command(
        commands,
        "drift",
        _drift,
        "test every numeric column of two tables for drift",
        "The two-sample KS test compares the values of each column that both tables have.\n"
        "Missing values are left out. Columns that cannot be tested are named with the\n"
        "reason. Files may be larger than memory. This needs the extra `frames`.\n\n"
        f"Exit codes: 0 if no column drifted, {DRIFT} if one did (0 with --exit-zero), 2 for bad\n"
        "input, and also if no column can be tested.",
        [
            "drift reference.parquet current.parquet",
            "drift reference.csv current.csv --columns age,income --alpha 0.01",
            "drift reference.parquet current.parquet --correction bh --output drift.json",
        ],
        "REFERENCE",
        "CURRENT",
    )
    parser.add_argument("reference", type=place, metavar="REFERENCE", help=f"the table to compare with: {_TABLE}")
    parser.add_argument("current", type=place, metavar="CURRENT", help="the table to test, likewise")
    test = parser.add_argument_group("test")
    test.add_argument(
        "--columns", type=words, metavar="NAME[,NAME...]", help="columns to test (default: all that both tables have)"
    )
    test.add_argument("--alpha", type=probability, default=0.05, metavar="NUMBER", help="significance level")
    test.add_argument(
        "--correction", choices=get_args(Correction), help="correction for testing many columns (default: none)"
    )
    test.add_argument("--method", choices=("auto", "exact", "asymp"), default="auto", help="how p-values are computed")
    group = parser.add_argument_group("output")
    group.add_argument("--limit", type=at_least(0), default=20, metavar="N", help="columns in the table")
    group.add_argument(
        "--output",
        type=place,
        metavar="FILE",
        help="file for all results, .json or .csv (default: none)",
    )
    add_force(group, "overwrite the file if it exists")
    group.add_argument("--exit-zero", action="store_true", help=f"exit with 0 instead of {DRIFT} if a column drifted")
    add_results(parser, group, as_json=f"{AS_JSON}, and write no file")


def _drift(options: argparse.Namespace) -> int:
    _check_output(options)
    from kslottery_fast.ks.frames import ks_frames
    from kslottery_fast.lab.experiment.console import RunConsole

    console = RunConsole(quiet=options.quiet)
    test = {name: getattr(options, name) for name in ("columns", "alpha", "correction", "method")}
    with warnings.catch_warnings(record=True) as notes, console.task("Testing columns") as progress:
        warnings.simplefilter("always", RuntimeWarning)
        result = ks_frames(options.reference, options.current, progress=progress, **test)
    for note in dict.fromkeys(str(note.message) for note in notes):
        console.note(note)
    if not len(result):
        reasons = [f"{name} ({reason})" for name, reason in list(result.skipped.items())[:5]]
        raise InputError(f"no column can be tested: {', '.join(reasons)}")
    if options.json:
        print_json(result.to_dict())
    else:
        _write(result, options.output)
        _show(result, options.limit)
        if options.output is not None:
            print(f"Written to {options.output}")
    return DRIFT if result.drifted and not options.exit_zero else 0


def _check_output(options: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before any work."""
    path: Path | None = options.output
    if options.json and (path or options.force):
        raise InputError("--json writes no file; leave out --output and --force, or --json")
    if path is None:
        return
    from kslottery_fast.base.files import check_writable

    if path.suffix not in _SUFFIXES:
        raise InputError(f"--output {path}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    check_writable(path, path.parent, "--output")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; give a file, such as {path / 'drift.json'}")
    refuse_existing([path], force=options.force)


def _write(result: "KsFrameResult", path: Path | None) -> None:
    from kslottery_fast.base.files import write_json, write_text

    if path is None:
        return
    if path.suffix == ".csv":
        write_text(path, result.to_csv())
    else:
        write_json(path, result.to_dict())


def _show(result: "KsFrameResult", limit: int) -> None:
    """Print the columns of smallest p. Nothing depends on colour."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.base.visible import visible_text

    console = Console(highlight=False)
    console.print(result.summary(), markup=False, soft_wrap=True)
    if cells := result.lines(limit):
        heading, *lines = cells
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for at, name in enumerate(heading):
            table.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*(Text(visible_text(cell)) for cell in line))
        console.print(table)
    for note in result.notes(limit):
        console.print(visible_text(note), markup=False, soft_wrap=True)
