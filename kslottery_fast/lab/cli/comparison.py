"""What ``kslottery select`` writes about all rows of the two tables, beside the tickets: a page, CSV and a figure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

from .options import place, refuse_existing

if TYPE_CHECKING:
    from kslottery_fast.tickets.comparison import TableComparison

_OPTIONS = ("report", "csv", "plot")


def add_comparison_files(group: Any) -> None:
    """Add ``--report``, ``--csv`` and ``--plot``."""
    group.add_argument(
        "--report", type=place, metavar="FILE", help="HTML page with tables and a figure of the rows that changed"
    )
    group.add_argument("--csv", type=place, metavar="FILE", help="CSV file with what became of every row")
    group.add_argument("--plot", type=place, metavar="FILE", help="PNG figure of D by L2 shift, by class of token")


def comparison_files(options: argparse.Namespace) -> dict[str, Path]:
    """Return the files to write by option, and refuse those that cannot be written, before any work.

    Raises
    ------
    InputError
        A file exists (without ``--force``), cannot be written, or is named twice.
    """
    from kslottery_fast.base.files import check_writable

    found = {name: path for name in _OPTIONS if (path := getattr(options, name)) is not None}
    taken = {} if options.json else {(options.output or Path("tickets.json")).absolute(): "--output"}
    for name, path in found.items():
        check_writable(path, path.parent, f"--{name}")
        if path.is_dir():
            raise InputError(f"--{name} {path} is a folder; give a file")
        if (other := taken.setdefault(path.absolute(), f"--{name}")) != f"--{name}":
            raise InputError(f"{other} and --{name} are both {path}; give two files")
    refuse_existing(list(found.values()), force=options.force)
    return found


def write_comparison(found: "TableComparison", files: dict[str, Path]) -> None:
    """Write the files that were asked for, each whole or not at all."""
    from kslottery_fast.base.files import atomic_path, write_text

    if "csv" in files:
        write_text(files["csv"], found.to_csv())
    if "report" in files:
        from kslottery_fast.lab.report.comparison_page import comparison_page

        write_text(files["report"], comparison_page(found))
    if "plot" in files:
        from kslottery_fast.lab.report.comparison_figure import comparison_figure

        figure = comparison_figure(found)
        with atomic_path(files["plot"]) as temporary:
            figure.write_png(temporary)
