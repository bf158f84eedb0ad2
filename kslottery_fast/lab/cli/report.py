"""``kslottery report``: the table of a finished experiment, and its products anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .run import carry_out


def add_parser(commands: Any) -> None:
    """Add ``report`` to the command line."""
    parser = commands.add_parser(
        "report", help="print the table of a finished run or comparison, and make report, figures and tables anew"
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="its folder")
    parser.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.run_folder import read_header
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    settings = ExperimentSettings.recorded(read_header(options.folder))
    return carry_out(settings, options, only_finished=True, remake=True)
