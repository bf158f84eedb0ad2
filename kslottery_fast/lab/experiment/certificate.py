"""Certificates: made from models, and again, without them, from what they follow from, which is kept beside them.

==========================  ==========================================================================
file                        content
==========================  ==========================================================================
before.safetensors          token_ids int64 [A] and rows [A, d] of the original model, in its own dtype
predictions.safetensors     of the embed-tuned model on the test split (:meth:`Predictions.save`)
predictions-K.safetensors   of the transfer model with the K rows of largest D; 0: the original model
==========================  ==========================================================================

Nothing is taken on trust that follows from something else in the folder: the statistics follow from the rows before
and after Embed Tuning, the tickets from the statistics, the certificate from tickets and the predictions of both
models. Rows and predictions are where it begins: only running the models again could show that they were made up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_safetensors
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.evaluation.certify import Predictions, certificate_from, next_token_predictions
from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets

from .console import ProgressCallback
from .run_folder import read_header
from .settings import ExperimentSettings, RunSettings
from .trained import TrainedRows, TrainedTable
from .workshop import Workshop

_BEFORE, _TUNED = "before.safetensors", "predictions.safetensors"


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows before Embed Tuning, and what the tuned and the transfer models predict on the test split.

    ``token_ids`` int64 [A], ascending, and their ``before`` [A, d]; ``tuned``, predictions of the embed-tuned model;
    ``transfers``, those of the transfer models by their number of rows: the sets that a test or top_k selects lie
    within each other, so the number says which.
    """

    token_ids: Tensor
    before: Tensor
    tuned: Predictions
    transfers: Mapping[int, Predictions]

    def certificate(self, settings: RunSettings, levels: Mapping[float, int], own: int) -> Certificate:
        """The certificate that follows: agreement is that of the transfer model with ``own`` rows.

        ``levels``: for every alpha of the curve, how many rows it selects. The criterion at alpha speaks of the tickets
        at alpha, so each level is checked against a transfer model of its own; one that was not kept is an InputError.
        """
        missing = {own, *levels.values()} - set(self.transfers)
        if missing:
            raise InputError(f"no predictions were kept of the transfer model with {min(missing)} rows")
        options = {"dimension": self.before.shape[1], "n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
        curve = [
            dataclasses.replace(
                certificate_from(self.tuned, self.transfers[rows], alphas=[alpha], **options).levels[0],
                transferred=rows,
            )
            for alpha, rows in levels.items()
        ]
        whole = certificate_from(self.tuned, self.transfers[own], alphas=[settings.alpha], **options)
        return dataclasses.replace(whole, levels=tuple(curve))

    def save(self, folder: Path) -> None:
        """Write the files named above into a stage's folder."""
        write_safetensors(folder / _BEFORE, {"token_ids": self.token_ids, "rows": self.before})
        self.tuned.save(folder / _TUNED)
        for rows, predictions in self.transfers.items():
            predictions.save(folder / f"predictions-{rows}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Basis:
        """Read what :meth:`save` wrote; missing and damaged files are an InputError."""
        if not (folder / _TUNED).exists():
            raise InputError(
                f"{folder} holds a certificate without the predictions that it follows from; remove that folder and "
                "give the command that made it again: it makes this stage alone anew"
            )
        before = read_safetensors(folder / _BEFORE)
        kept = {path.stem.partition("-")[2]: path for path in folder.glob("predictions-*.safetensors")}
        transfers = {int(rows): Predictions.load(path) for rows, path in kept.items() if rows.isdecimal()}
        return cls(before["token_ids"], before["rows"], Predictions.load(folder / _TUNED), transfers)


def certify(
    shop: Workshop,
    tuned: TrainedRows,
    table: TrainedTable,
    tickets: tuple[int, ...],
    folder: Path,
    progress: ProgressCallback,
) -> Certificate:
    """The certificate of an embed-tuned model on the test split, over the grid of alphas.

    Agreement is that of the transfer model with the rows ``tickets``, ascending token ids of the largest D. What all of
    it follows from is kept in ``folder``, that of the stage, see :class:`Basis`.
    """
    settings = shop.settings
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")]
    size = settings.eval_batch_size
    batches = [collate(features[i : i + size], shop.pad_token_id) for i in range(0, len(features), size)]
    chosen = {alpha: table.significant(alpha, settings.method, settings.correction) for alpha in settings.alphas}
    transfers = {len(ids): ids for ids in (tickets, *chosen.values())}
    total = (1 + len(transfers)) * len(features)

    def predict(number: int, rows: TrainedRows | None) -> Predictions:
        with shop.wearing(rows) as model:
            return next_token_predictions(
                model, batches, progress=lambda done, _: progress(number * len(features) + done, total)
            )

    basis = Basis(
        token_ids=tuned.token_ids,
        before=embedding_table(shop.model).detach()[tuned.token_ids].cpu(),
        tuned=predict(0, tuned),
        transfers={
            rows: predict(number, tuned.only(torch.tensor(ids)) if ids else None)
            for number, (rows, ids) in enumerate(transfers.items(), 1)
        },
    )
    basis.save(folder)
    return basis.certificate(settings, {alpha: len(ids) for alpha, ids in chosen.items()}, len(tickets))


def recomputed(folder: Path) -> dict[str, Certificate]:
    """The certificates in an experiment's folder by stage, computed again.

    Raises
    ------
    InputError : no certificate; a file that does not follow from those that it was made from, i.e. one of them was
        changed; a folder of another version.
    """
    stages = sorted((folder / "stages").glob("*.certificate"))
    if not stages and not (folder / "run.json").exists():
        raise InputError(f"{folder} holds no certificate; give the folder of a finished `kslottery run` or `compare`")
    settings = ExperimentSettings.recorded(read_header(folder)).base
    if not stages:
        raise InputError(f"{folder} holds no certificate yet; the command that made the folder goes on to it")
    return {stage.name: _recomputed(stage, settings) for stage in stages}


def _recomputed(stage: Path, settings: RunSettings) -> Certificate:
    """The certificate that follows from rows and predictions; every file on the way must be what follows."""
    basis, tickets = Basis.load(stage), Tickets.load(stage / "tickets.json")
    table = _statistics(stage, basis, tickets.vocab_size)
    if tickets != table.tickets(settings):
        raise InputError(
            f"{stage / 'tickets.json'}: these are not the tickets that the statistics give at alpha "
            f"{settings.alpha:g} with method {settings.method}, correction {settings.correction} and top_k "
            f"{settings.top_k}; the file or run.json was changed"
        )
    levels = {a: len(table.significant(a, settings.method, settings.correction)) for a in settings.alphas}
    certificate = basis.certificate(settings, levels, len(tickets))
    path = stage / "certificate.json"
    different = _difference("", asdict(Certificate.from_dict(read_json(path))), asdict(certificate))
    if different:
        raise InputError(f"{path}: {different}; the file, its predictions or run.json was changed")
    return certificate


def _statistics(stage: Path, basis: Basis, vocab_size: int) -> TrainedTable:
    """KS statistics of the rows before and after; those on record must be the same."""
    folder = stage.with_name(f"{stage.name.removesuffix('certificate')}embed")
    statistics = folder / "evidence.safetensors"
    tuned, recorded = read_safetensors(folder / "rows.safetensors"), read_safetensors(statistics)
    ids = tuned["token_ids"]
    for path, other in ((stage, basis.token_ids), (statistics, recorded["token_ids"])):
        if not torch.equal(ids, other):
            raise InputError(f"{path} is about other rows than {folder}; one of them was changed")
    counts = ks_statistics(basis.before.float(), tuned["rows"])
    wrong = (counts != recorded["counts"]).nonzero().flatten()
    if len(wrong):
        place = int(wrong[0])
        raise InputError(
            f"{statistics}: token {int(ids[place])} has h = {int(recorded['counts'][place])}, "
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
