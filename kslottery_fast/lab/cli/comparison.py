"""What ``kslottery select`` writes about all rows of the two tables, beside the tickets: a page, CSV and a figure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

from .options import place, refuse_existing

if TYPE_CHECKING:
    from typing import TypeAlias

    from kslottery_fast.lab.report.picture import Picture
    from kslottery_fast.tickets.comparison import TableComparison

    Contents: TypeAlias = dict[Path, str | Picture]

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


def comparison_contents(found: "TableComparison", files: dict[str, Path]) -> "Contents":
    """Make what the files that were asked for will hold."""
    contents: Contents = {}
    if "csv" in files:
        contents[files["csv"]] = found.to_csv()
    if "report" in files:
        from kslottery_fast.lab.report.comparison_page import comparison_page

        contents[files["report"]] = comparison_page(found)
    if "plot" in files:
        from kslottery_fast.lab.report.comparison_figure import comparison_figure

        contents[files["plot"]] = comparison_figure(found)
    return contents


def write_comparison(contents: "Contents") -> None:
    """Write the files, each whole or not at all."""
    from kslottery_fast.base.files import atomic_path, write_text

    for path, content in contents.items():
        if isinstance(content, str):
            write_text(path, content)
        else:
            with atomic_path(path) as temporary:
                content.write_png(temporary)
