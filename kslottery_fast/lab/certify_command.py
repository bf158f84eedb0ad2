"""``kslottery certify``: check the files of a run or comparison, and print its certificates in plain words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.certificate import Certificate
from kslottery_fast.errors import InputError
from kslottery_fast.files import read_json, read_safetensors
from kslottery_fast.stats import asymptotic_threshold
from kslottery_fast.tickets import Tickets


def add_parser(commands: Any) -> None:
    """Add ``certify`` to the command line."""
    parser = commands.add_parser(
        "certify",
        help="check the tickets and certificates of a finished run or comparison, and say what they guarantee",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of `kslottery run` or `kslottery compare`")
    parser.add_argument("--json", action="store_true", help="print the certificates as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = certificates(options.folder)
    if options.json:
        print(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=2, ensure_ascii=False))
        return 0
    for name, certificate in found.items():
        print(f"{name}\n{certificate}\n")
    return 0


def certificates(folder: Path) -> dict[str, Certificate]:
    """The certificates of a run or comparison by stage, after its ticket files were checked against the rows they name.

    Raises
    ------
    InputError : no certificate, a ticket file that was changed or does not fit the statistics of its Embed Tuning, a
        certificate whose levels do not fit its own dimension and positions.
    """
    stages = folder / "stages"
    pairs = {
        path.parent.name: path
        for path in sorted(stages.glob("*/certificate.json"))
        if not path.parent.name.startswith(".")
    }
    if not pairs:
        raise InputError(f"{folder} holds no certificate; give the folder of a finished `kslottery run` or `compare`")
    result = {}
    for stage, path in pairs.items():
        if stage == "certify":
            tickets, statistics = stages / "select" / "tickets.json", stages / "select" / "statistics.safetensors"
        else:
            tickets = path.with_name("tickets.json")
            statistics = stages / f"{stage.removesuffix('certificate')}embed" / "evidence.safetensors"
        _check_tickets(tickets, statistics)
        certificate = Certificate.from_dict(read_json(path))
        _check_levels(path, certificate)
        result[stage] = certificate
    return result


def _check_tickets(path: Path, statistics: Path) -> None:
    """The file is what was saved, and its statistics are those that the selection was made from."""
    tickets, tensors = Tickets.load(path), read_safetensors(statistics)
    places = torch.searchsorted(tensors["token_ids"], tickets.token_ids).clamp(max=len(tensors["token_ids"]) - 1)
    wrong = (tensors["token_ids"][places] != tickets.token_ids) | (tensors["counts"][places] != tickets.counts)
    if wrong.any():
        token = int(tickets.token_ids[wrong][0])
        raise InputError(f"{path}: token {token} does not have this statistic in {statistics}; one of them was changed")


def _check_levels(path: Path, certificate: Certificate) -> None:
    for level in certificate.levels:
        tau = asymptotic_threshold(level.alpha, certificate.dimension, certificate.dimension)
        share = level.certified_positions / certificate.positions
        if abs(tau - level.tau) > 1e-12 or abs(share - level.certified) > 1e-12:
            raise InputError(f"{path}: the level at alpha {level.alpha:g} does not fit its own numbers; it was changed")
        if not 0 <= (level.violations or 0) <= level.certified_positions:
            raise InputError(f"{path}: more violations than certified positions at alpha {level.alpha:g}")
