"""``kslottery certify``: compute the certificates of a run or comparison again from its files, and print them.

Nothing is taken on trust that follows from something else in the folder: the statistics follow from the rows before
and after Embed Tuning, the tickets from the statistics, the certificate from tickets and the predictions of both
models. Rows and predictions are where it begins: only running the models again could show that they were made up.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.lab.experiment.basis import Basis
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.trained_table import TrainedTable
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets


def add_parser(commands: Any) -> None:
    """Add ``certify`` to the command line."""
    parser = commands.add_parser(
        "certify",
        help="compute the certificates of a finished run or comparison again, and say what they guarantee",
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


@dataclass(frozen=True)
class _Files:
    """Where one certificate and what it follows from lie."""

    certificate: Path  # the stage's folder
    tuned: Path  # folder of Embed Tuning
    tickets: Path
    statistics: Path


def certificates(folder: Path) -> dict[str, Certificate]:
    """The certificates of a run or comparison by stage, computed again.

    Raises
    ------
    InputError : no certificate; one of an older version, without its predictions; a file that does not follow from
        those that it was made from, i.e. one of them was changed.
    """
    stages = folder / "stages"
    found = sorted(path.parent for path in stages.glob("*/certificate.json") if not path.parent.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no certificate; give the folder of a finished `kslottery run` or `compare`")
    settings = _settings(folder)
    return {stage.name: _recomputed(_files(stage), settings) for stage in found}


def _settings(folder: Path) -> RunSettings:
    header = read_json(folder / "run.json")
    try:
        return RunSettings(**header["settings"])
    except (KeyError, TypeError):
        raise InputError(f"{folder}/run.json was not written by this version; make the run anew") from None


def _files(stage: Path) -> _Files:
    stages = stage.parent
    if stage.name == "certify":
        select = stages / "select"
        return _Files(stage, stages / "embed_tuning", select / "tickets.json", select / "statistics.safetensors")
    tuned = stages / f"{stage.name.removesuffix('certificate')}embed"
    return _Files(stage, tuned, stage / "tickets.json", tuned / "evidence.safetensors")


def _recomputed(files: _Files, settings: RunSettings) -> Certificate:
    """The certificate that follows from rows and predictions; every file on the way must be what follows."""
    basis, tickets = Basis.load(files.certificate), Tickets.load(files.tickets)
    table = _statistics(files, basis, tickets.vocab_size)
    method, correction = settings.method, settings.correction
    expected = table.tickets(settings.alpha, method, correction)
    if len(expected) == 0:
        expected = table.tickets(tickets.alpha, method, None, settings.top_k)
    if tickets != expected:
        raise InputError(
            f"{files.tickets}: these are not the tickets that the statistics give at alpha {settings.alpha:g} with "
            f"method {method}, correction {correction} and top_k {settings.top_k}; the file or run.json was changed"
        )
    levels = {alpha: len(table.significant(alpha, method, correction)) for alpha in settings.alphas}
    certificate = basis.certificate(settings, levels, len(tickets))
    path = files.certificate / "certificate.json"
    different = _difference("", asdict(Certificate.from_dict(read_json(path))), asdict(certificate))
    if different:
        raise InputError(f"{path}: {different}; the file, its predictions or run.json was changed")
    return certificate


def _statistics(files: _Files, basis: Basis, vocab_size: int) -> TrainedTable:
    """KS statistics of the rows before and after; those on record must be the same."""
    tuned, recorded = read_safetensors(files.tuned / "rows.safetensors"), read_safetensors(files.statistics)
    ids = tuned["token_ids"]
    for path, other in ((files.certificate, basis.token_ids), (files.statistics, recorded["token_ids"])):
        if not torch.equal(ids, other):
            raise InputError(f"{path} is about other rows than {files.tuned}; one of them was changed")
    counts = ks_statistics(basis.before.float(), tuned["rows"])
    wrong = (counts != recorded["counts"]).nonzero().flatten()
    if len(wrong):
        place = int(wrong[0])
        raise InputError(
            f"{files.statistics}: token {int(ids[place])} has h = {int(recorded['counts'][place])}, "
            f"its rows before and after Embed Tuning give {int(counts[place])}; statistics or rows were changed"
        )
    return TrainedTable(ids, counts, (vocab_size, basis.before.shape[1]))


def _difference(name: str, told: Any, found: Any) -> str | None:
    """The first place at which two records differ, in words; None where they are alike."""
    if isinstance(found, Mapping) and isinstance(told, Mapping):
        parts = [(f"{name}.{key}".lstrip("."), told.get(key), value) for key, value in found.items()]
    elif isinstance(found, list | tuple) and isinstance(told, list | tuple) and len(told) == len(found):
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(told, found, strict=True))]
    else:
        # Another version of numpy or scipy may round a bound differently; what is printed is ours in any case.
        numbers = isinstance(found, float) and isinstance(told, float | int)
        alike = math.isclose(told, found, rel_tol=1e-9, abs_tol=1e-9) if numbers else told == found
        return None if alike else f"{name} is {told}, what it follows from gives {found}"
    return next(filter(None, (_difference(*part) for part in parts)), None)
