"""Certificates: computed from the models, and computed again later, without the models, from the files of a run.

Whatever can be computed from other files is computed and compared. The statistics follow from the rows before and after
Embed Tuning, the tickets from the statistics, and the certificate from the tickets and the predictions of both models.
The rows and the predictions themselves are trusted: only running the models again could check them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors
from kslottery_fast.evaluation.basis import Basis
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.evaluation.predictions import Predictions
from kslottery_fast.evaluation.reading import ReadTokens, read_tokens
from kslottery_fast.evaluation.shared_predictions import merge_predictions, sentence_predictions, share_plan
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.evidence import TrainedTable
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets

from .console import ProgressCallback
from .run_folder import read_header
from .run_settings import FORMER_ALPHA_GRID, RunSettings
from .settings import ExperimentSettings
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

    Models that read the same rows share predictions, see :func:`share_plan`.

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
    before = embedding_table(shop.model).detach()[tuned.token_ids].cpu()
    moved = moved_ids(tuned.token_ids, before, tuned.rows)
    chosen = {alpha: table.significant(alpha, settings.method, settings.correction) for alpha in settings.alphas}
    transfers = {len(ids): torch.tensor(ids, dtype=torch.int64) for ids in (tickets, *chosen.values())}
    # If the head follows the rows, the models differ everywhere, whatever a position reads.
    tokens = None if settings.output_role == "tied" else read_tokens([collate(features, shop.pad_token_id)])
    predictions = predict_models(shop, features, tuned, [moved, *transfers.values()], tokens, progress)
    basis = Basis(tuned.token_ids, before, predictions[0], dict(zip(transfers, predictions[1:], strict=True)), tokens)
    basis.save(folder)
    return _certificate(basis, settings, chosen, tickets, moved)


def predict_models(
    shop: Workshop,
    features: Sequence[Mapping[str, Sequence[int]]],
    tuned: TrainedRows,
    models: Sequence[torch.Tensor],
    tokens: ReadTokens | None,
    progress: ProgressCallback,
) -> list[Predictions]:
    """Return the predictions of models that each take some rows of the embed-tuned model.

    Parameters
    ----------
    shop : Workshop
        Model and settings.
    features : sequence of mapping
        The encoded sentences.
    tuned : TrainedRows
        The rows after Embed Tuning.
    models : sequence of int64 tensor
        The ids of the rows that each model takes, in ascending order. There may be none.
    tokens : ReadTokens or None
        What is read. With it, a model reads only the sentences on which it differs from an earlier one.
    progress : callable
        Called with (predicted sentences, sentences in all).
    """
    # A model is like the one with a few rows more. So they are made from the largest to the smallest.
    order = sorted(range(len(models)), key=lambda place: -len(models[place]))
    plan = share_plan([models[place] for place in order], len(features), tokens)
    options = {"pad_token_id": shop.pad_token_id, "batch_size": shop.settings.eval_batch_size}
    total, done = sum(len(share.sentences) for share in plan), 0
    found: list[Predictions] = []
    for place, share in zip(order, plan, strict=True):
        parts = [] if share.source is None else [found[share.source]]
        if share.sentences:
            rows = tuned.only(models[place]) if len(models[place]) else None
            told = partial(_count_on, progress, done, total)
            with shop.wearing(rows) as model:
                parts.append(sentence_predictions(model, features, share.sentences, progress=told, **options))
        found.append(reduce(merge_predictions, parts))
        done += len(share.sentences)
    return [found[order.index(place)] for place in range(len(models))]


def _count_on(progress: ProgressCallback, start: int, total: int, done: int, _: int) -> None:
    progress(start + done, total)


def moved_ids(token_ids: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the ids of the rows that differ between two tables.

    >>> moved_ids(torch.tensor([3, 7]), torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    tensor([7])
    """
    return token_ids[(before.float() != after).any(dim=1)]


def _certificate(
    basis: Basis,
    settings: RunSettings,
    chosen: Mapping[float, tuple[int, ...]],
    tickets: Sequence[int],
    moved: torch.Tensor,
) -> Certificate:
    """The certificate for the rows that each alpha chooses, and for the tickets."""
    sets = {len(ids): torch.tensor(ids, dtype=torch.int64) for ids in (tickets, *chosen.values())}
    return basis.certificate(
        {alpha: len(ids) for alpha, ids in chosen.items()},
        own=len(tickets),
        alpha=settings.alpha,
        differing={count: moved[~torch.isin(moved, ids)] for count, ids in sets.items()},
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
    )


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
    table, moved = _statistics(stage, basis, tickets.vocab_size)
    if tickets != table.tickets(**settings.selection):
        raise InputError(
            f"{stage / 'tickets.json'}: these are not the tickets that the statistics give at alpha "
            f"{settings.alpha:g} with method {settings.method}, correction {settings.correction} and top_k "
            f"{settings.top_k}; the file or run.json was changed"
        )
    path = stage / "certificate.json"
    told = Certificate.from_dict(read_json(path))
    older = settings.alphas_of(FORMER_ALPHA_GRID)
    alphas = older if len(told.levels) == len(older) else settings.alphas
    chosen = {alpha: table.significant(alpha, settings.method, settings.correction) for alpha in alphas}
    certificate = _certificate(basis, settings, chosen, tuple(tickets.token_ids.tolist()), moved)
    different = _difference("", asdict(told), asdict(certificate))
    if different:
        raise InputError(f"{path}: {different}; the file, its predictions or run.json was changed")
    return certificate


def _statistics(stage: Path, basis: Basis, vocab_size: int) -> tuple[TrainedTable, torch.Tensor]:
    """KS statistics of the rows before and after Embed Tuning, and the ids of those that moved.

    The recorded statistics must be the same.
    """
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
    return TrainedTable(ids, counts, (vocab_size, basis.before.shape[1])), moved_ids(ids, basis.before, tuned["rows"])


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
