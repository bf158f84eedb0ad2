"""``kslottery scan BEFORE AFTER``: how far every matrix moved, as a table, a picture, JSON and CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

from .select import check_writable, pair_parser

if TYPE_CHECKING:
    from rich.console import Console

    from kslottery_fast.tickets.scan import Scan

_FILES = ("scan.json", "scan.csv", "scan.png")
_LISTED = 5


def add_parser(commands: Any) -> None:
    """Add ``scan`` to the subcommands of ``kslottery``."""
    purpose = "how far the rows of every matrix moved between two checkpoints: table, picture, JSON, CSV"
    parser = pair_parser(commands, run, "scan", purpose)
    files = f"folder for {', '.join(_FILES)}"
    parser.add_argument("--output", type=Path, default=Path("scan"), metavar="DIR", help=files)
    parser.add_argument("--json", action="store_true", help="print scan.json instead of the table")


def run(options: argparse.Namespace) -> int:
    """Scan, write the three files, show the table."""
    from rich.console import Console

    from kslottery_fast.base.files import atomic_path, write_json, write_text
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.report.scan_figure import scan_figure
    from kslottery_fast.tickets.scan import scan_checkpoints

    before, after, folder = options.before, options.after, options.output
    _check_output(folder)
    with RunConsole().task("Comparing all matrices, MiB") as progress:
        scan = scan_checkpoints(before, after, alpha=options.alpha, method=options.method, progress=progress)
    picture = scan_figure(scan)
    write_json(folder / "scan.json", scan.to_json())
    write_text(folder / "scan.csv", scan.to_csv())
    with atomic_path(folder / "scan.png") as temporary:
        picture.write_png(temporary)
    if options.json:
        print((folder / "scan.json").read_text(encoding="utf-8"), end="")
    else:
        show(scan, Console(highlight=False))
        print(f"Written to {folder}: {', '.join(_FILES)}")
    return 0


def _check_output(folder: Path) -> None:
    """Refuse what cannot be written, and to replace what an earlier scan did not write, before any work."""
    from kslottery_fast.base.files import read_json
    from kslottery_fast.tickets.scan import FORMAT

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: expected a folder")
    check_writable(folder, folder)
    taken = [name for name in _FILES if (folder / name).exists()]
    found = read_json(folder / "scan.json") if "scan.json" in taken else None
    if taken and not (isinstance(found, dict) and found.get("format") == FORMAT):
        raise InputError(f"--output would replace {folder / taken[0]}, which no scan wrote; name another folder")


def show(scan: Scan, console: Console) -> None:
    """Print one line a matrix, grouped by layer, and what was not compared. Nothing depends on colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.lab.report.words import compact, number, percent

    padding = (0, 1 + (console.width >= 100), 0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    table.add_column("layer", justify="right")
    table.add_column("matrix", overflow="fold")
    for heading in ("rows", "d", "changed\nrows", "signi-\nficant", "D mean", "D max", "D mean,\nchanged"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for shift in scan.tensors:
        place = shift.stack, shift.layer
        if previous not in (None, place):
            table.add_section()
        table.add_row(
            "" if shift.layer is None or place == previous else str(shift.layer),
            Text(shift.kind + (" *" if shift.embedding else ""), style="bold" if shift.embedding else ""),
            compact(shift.rows),
            str(shift.dimension),
            compact(shift.changed_rows) if shift.changed_rows else "–",
            "no test" if shift.significant_rows is None else percent(shift.significant_share, 1),
            *(number(value, 4) for value in (shift.mean_d, shift.max_d, shift.mean_d_changed)),
        )
        previous = place
    console.print(table)
    for line in _notes(scan):
        console.print(line, markup=False, soft_wrap=True)


def _notes(scan: Scan) -> list[str]:
    """What the table needs to be read right, and what is not in it."""
    from kslottery_fast.lab.report.words import plural
    from kslottery_fast.tickets.scan import matrices

    notes = [f"significant: share of rows with p < {scan.alpha:g}, each tested on its own; changed: rows with D > 0"]
    if any(shift.embedding for shift in scan.tensors):
        notes.append("*: the input embedding")
    if any(shift.significant_rows is None for shift in scan.tensors):
        notes.append(f"no test: rows so short that none could reach p < {scan.alpha:g}")
    for what, treated, field in (("NaN", "left out", "nan_rows"), ("Inf", "counted as values", "inf_rows")):
        bad = [f"{shift.name} ({plural(rows, 'row')})" for shift in scan.tensors if (rows := getattr(shift, field))]
        if bad:
            notes.append(f"WARNING: {what} in {matrices(len(bad))}, {treated}: {_some(bad)}")
    notes += [f"note: {note}" for note in scan.notes]
    skipped = {
        f"only in {scan.before}": scan.only_before,
        f"only in {scan.after}": scan.only_after,
        "of different shapes": scan.other_shape,
        "not of floats (quantized?)": scan.quantized,
    }
    notes += [f"not compared, {what}: {_some(names)}" for what, names in skipped.items() if names]
    if scan.not_2d:
        notes.append(f"not compared, no matrix (biases, norms): {plural(scan.not_2d, 'tensor')}")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
