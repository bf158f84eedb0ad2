"""``kslottery certify``: compute the certificates of an experiment again from its files, and print them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``certify`` to the command line."""
    parser = commands.add_parser(
        "certify", help="compute the certificates of a finished run or comparison again, and say what they guarantee"
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of `kslottery run` or `kslottery compare`")
    parser.add_argument("--json", action="store_true", help="print the certificates as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.certificate import recomputed

    found = recomputed(options.folder)
    if options.json:
        print(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=2, ensure_ascii=False))
        return 0
    for name, certificate in found.items():
        print(f"{name}\n{certificate}\n")
    return 0
