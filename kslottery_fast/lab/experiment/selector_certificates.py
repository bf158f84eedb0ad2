"""Certificates of the rows that every selector would choose, at equal numbers of rows. The models are run for them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.evaluation.reading import read_tokens
from kslottery_fast.evaluation.selection_certificate import (
    SelectionCertificate,
    largest_left_out,
    selection_certificate,
)
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.evidence import SELECTORS

from .cell import Cell
from .certificate import moved_ids, predict_models
from .console import ProgressCallback, RunConsole
from .plan import Experiment
from .run_folder import RunFolder, read_header
from .settings import ExperimentSettings


def selector_certificates(
    folder: Path, sizes: Sequence[int], console: RunConsole
) -> dict[str, list[SelectionCertificate]]:
    """Certify the rows of every selector, for every language and training seed of a finished experiment.

    Nothing trains and no file is written. A model reads only the sentences on which it differs from another one.

    Parameters
    ----------
    folder : Path
        The folder of the experiment.
    sizes : sequence of int
        The numbers of rows.
    console : RunConsole
        Where progress is written.

    Returns
    -------
    dict
        By the name of the certificate's stage, one entry for each size and selector. Contribution is among them if the
        experiment measured what the rows account for.

    Raises
    ------
    InputError
        The experiment is not finished, or a size is larger than the number of rows that can be chosen.
    """
    settings = ExperimentSettings.recorded(read_header(folder), folder)
    experiment = Experiment(settings, RunFolder(folder), console)
    experiment.check_finished()
    found = {}
    for cell in experiment.cells.values():
        name = f"{cell.folder.prefix}certificate"
        names = [*SELECTORS, *(["contribution"] if settings.needs_contributions else [])]
        with console.task(f"certifying the rows of every selector, {name}") as progress:
            found[name] = _of_cell(cell, names, sizes, progress)
    return found


def _of_cell(
    cell: Cell, names: Sequence[str], sizes: Sequence[int], progress: ProgressCallback
) -> list[SelectionCertificate]:
    shop, evidence, tuned = cell.shop, cell.evidence, cell.tuned
    before = embedding_table(shop.model).detach()[tuned.token_ids].cpu()
    moved = moved_ids(tuned.token_ids, before, tuned.rows)
    chosen = {}
    for size in sizes:
        for name in names:
            order = cell.order(name)
            if size > len(order):
                raise InputError(f"only {len(order):,} rows can be chosen by {name}; ask for fewer than {size:,}")
            chosen[name, size] = order[:size].sort().values
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")]
    tokens = None if shop.settings.output_role == "tied" else read_tokens([collate(features, shop.pad_token_id)])
    tuned_model, *others = predict_models(shop, features, tuned, [moved, *chosen.values()], tokens, progress)
    counts = dict(zip(evidence.token_ids.tolist(), evidence.counts.tolist(), strict=True))
    return [
        selection_certificate(
            tuned_model,
            other,
            selected_by=name,
            rows=size,
            largest_left_out=largest_left_out(counts, ids, evidence.dimension),
            dimension=evidence.dimension,
            reads=None if tokens is None else tokens.reads(moved[~torch.isin(moved, ids)]),
            n_bootstrap=shop.settings.n_bootstrap,
            seed=shop.settings.seed,
        )
        for ((name, size), ids), other in zip(chosen.items(), others, strict=True)
    ]
