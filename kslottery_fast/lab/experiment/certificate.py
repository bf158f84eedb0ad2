"""Certificates: computed from the models, and computed again later, without the models, from the files of a run.

Whatever can be computed from other files is computed and compared. The statistics follow from the rows before and after
Embed Tuning, the tickets from the statistics, and the certificate from the tickets and the predictions of both models.
The rows and the predictions themselves are trusted: only running the models again could check them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors
from kslottery_fast.evaluation.basis import Basis
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.evaluation.certify import Predictions, next_token_predictions
from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.evidence import TrainedTable
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets

from .console import ProgressCallback
from .run_folder import read_header
from .settings import ExperimentSettings, RunSettings
from .trained import TrainedRows
from .workshop import Workshop


def certify(
    shop: Workshop,
    tuned: TrainedRows,
    table: TrainedTable,
    tickets: tuple[int, ...],
    folder: Path,
    progress: ProgressCallback,
) -> Certificate:
    """Compute the certificate of an embed-tuned model on the test split, at every alpha of the grid.

    Parameters
    ----------
    shop : Workshop
        Model, corpus and settings.
    tuned : TrainedRows
        The rows after Embed Tuning.
    table : TrainedTable
        Their KS statistics.
    tickets : tuple of int
        The tickets, as ascending token ids. Agreement is measured for the transfer model with these rows.
    folder : Path
        The folder of the stage, which keeps what the certificate follows from, see :class:`Basis`.
    progress : callable
        Called with (predicted sentences, sentences in all).
    """
    settings = shop.settings
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")]
    count, size = len(features), settings.eval_batch_size
    batches = [collate(features[i : i + size], shop.pad_token_id) for i in range(0, count, size)]
    chosen = {alpha: table.significant(alpha, settings.method, settings.correction) for alpha in settings.alphas}
    transfers = {len(ids): ids for ids in (tickets, *chosen.values())}
    total = (1 + len(transfers)) * count

    def predict(number: int, rows: TrainedRows | None) -> Predictions:
        with shop.wearing(rows) as model:
            return next_token_predictions(
                model, batches, progress=lambda done, _: progress(number * count + done, total)
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
    return _certificate(basis, settings, {alpha: len(ids) for alpha, ids in chosen.items()}, len(tickets))


def _certificate(basis: Basis, settings: RunSettings, levels: Mapping[float, int], own: int) -> Certificate:
    bootstrap = {"n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
    return basis.certificate(levels, own=own, alpha=settings.alpha, **bootstrap)


def recomputed(folder: Path) -> dict[str, Certificate]:
    """Compute the certificates of an experiment again from its files.

    Parameters
    ----------
    folder : Path
        The folder of the experiment.

    Returns
    -------
    dict
        The certificates by the name of their stage.

    Raises
    ------
    InputError
        There is no certificate yet, or a file does not follow from the files that it was made from, which means that
        one of them was changed.
    """
    stages = sorted((folder / "stages").glob("*.certificate"))
    settings = ExperimentSettings.recorded(read_header(folder), folder).base
    if not stages:
        raise InputError(f"{folder} holds no certificate yet; run the command that made the folder again to finish it")
    return {stage.name: _recomputed(stage, settings) for stage in stages}


def _recomputed(stage: Path, settings: RunSettings) -> Certificate:
    """The certificate that follows from rows and predictions. Every file in between must be what follows."""
    basis, tickets = Basis.load(stage), Tickets.load(stage / "tickets.json")
    table = _statistics(stage, basis, tickets.vocab_size)
    if tickets != table.tickets(**settings.selection):
        raise InputError(
            f"{stage / 'tickets.json'}: these are not the tickets that the statistics give at alpha "
            f"{settings.alpha:g} with method {settings.method}, correction {settings.correction} and top_k "
            f"{settings.top_k}; the file or run.json was changed"
        )
    levels = {a: len(table.significant(a, settings.method, settings.correction)) for a in settings.alphas}
    certificate = _certificate(basis, settings, levels, len(tickets))
    path = stage / "certificate.json"
    different = _difference("", asdict(Certificate.from_dict(read_json(path))), asdict(certificate))
    if different:
        raise InputError(f"{path}: {different}; the file, its predictions or run.json was changed")
    return certificate


def _statistics(stage: Path, basis: Basis, vocab_size: int) -> TrainedTable:
    """KS statistics of the rows before and after Embed Tuning. The recorded ones must be the same."""
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
            f"{statistics}: token {int(ids[place])} has h = {int(recorded['counts'][place])}, but "
            f"its rows before and after Embed Tuning give {int(counts[place])}; statistics or rows were changed"
        )
    return TrainedTable(ids, counts, (vocab_size, basis.before.shape[1]))


def _difference(name: str, told: Any, found: Any) -> str | None:
    """The first difference between two records, in words. None if they are the same."""
    if isinstance(found, Mapping) and isinstance(told, Mapping):
        parts = [(f"{name}.{key}".lstrip("."), told.get(key), value) for key, value in found.items()]
    elif isinstance(found, list | tuple) and isinstance(told, list | tuple) and len(told) == len(found):
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(told, found, strict=True))]
    else:
        # Another version of numpy or scipy may round a bound differently. What is printed was computed here anyway.
        numbers = isinstance(found, float) and isinstance(told, float | int)
        alike = math.isclose(told, found, rel_tol=1e-9, abs_tol=1e-9) if numbers else told == found
        return None if alike else f"{name} is {told}, but the files that it follows from give {found}"
    return next(filter(None, (_difference(*part) for part in parts)), None)
