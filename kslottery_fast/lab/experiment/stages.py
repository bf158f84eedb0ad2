"""The stages of a run, each a function of the finished stages before it: what is computed, and in which files it lies.

=====================  =====================================================================================
stage                  its folder holds
=====================  =====================================================================================
corpus                 corpus.json: splits, provenance, licences, digest, model and tokenizer provenance
embed_tuning           rows.safetensors: token_ids int64 [A], rows float32 [A, d]; losses.json
select                 tickets.json; tokens.json, their texts; statistics.safetensors: token_ids, counts (h),
                       frequency, each int64 [A], and tickets_before float32 [k, d]
partial_tuning,        rows.safetensors and losses.json, as above, for k rows; partial_tuning: adapter/, for PEFT
frequency_tuning,
random_tuning
evaluate_<model>       evaluation.json
certify                certificate.json, and what it follows from: see basis.py
=====================  =====================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json, write_safetensors
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.evaluation.certify import Predictions, next_token_predictions
from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.evaluation.evaluate import Evaluation, evaluate
from kslottery_fast.rows.adapter_file import save_adapter
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.tables import ks_statistics

from .basis import Basis
from .console import ProgressCallback
from .controls import frequency_rows, random_rows
from .memory import trimming_forward
from .run_folder import RunFolder
from .trained_table import TrainedTable
from .training import TrainedRows, train_rows
from .workshop import Workshop

MODELS = (
    "untuned",
    "embed_tuning",
    "partial_transfer",
    "partial_tuning",
    "frequency_tuning",
    "random_tuning",
)
"""The models that a run compares, in the order in which every table shows them."""


def corpus(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Record what the run works on."""
    value = shop.corpus
    write_json(
        folder / "corpus.json",
        {
            "digest": value.digest,
            "model_digest": shop.loaded.sha256,
            "model_name": shop.loaded.name,
            "model_provenance": shop.loaded.provenance,
            "source_language": asdict(value.source_language),
            "target_language": asdict(value.target_language),
            "provenance": value.provenance,
            "licences": list(value.licences),
            **{split: [asdict(pair) for pair in getattr(value, split)] for split in ("train", "validation", "test")},
        },
    )


def embed_tuning(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Stage 1 of the method: train every row of the active vocabulary."""
    active = shop.counts.nonzero().squeeze(1)
    _train(shop, folder, active, shop.settings.learning_rate, progress)


def select(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Stage 2: the KS test on every row. Rows outside the active vocabulary did not move: h = 0."""
    settings = shop.settings
    tuned = shop.rows("embed_tuning")
    before = shop.base_table()
    after = before.clone()
    after[tuned.token_ids] = tuned.rows
    choose = partial(ks_select, before, after, settings.alpha, method=settings.method, correction=settings.correction)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", RuntimeWarning)
        tickets = choose()
        if len(tickets) == 0:
            tickets = choose(top_k=settings.top_k, correction=None)
    for note in notes:
        shop.console.say(f"note: {note.message}")
    if len(tickets) == 0:
        raise InputError("Embed Tuning moved no row at all; raise learning_rate or steps")
    shop.console.say(tickets.summary())
    tickets.save(folder / "tickets.json")
    write_safetensors(
        folder / "statistics.safetensors",
        {
            "token_ids": tuned.token_ids,
            "counts": ks_statistics(before[tuned.token_ids], tuned.rows),
            "frequency": shop.counts[tuned.token_ids],
            "tickets_before": before[tickets.token_ids],
        },
    )
    write_json(folder / "tokens.json", tickets.tokens(shop.loaded.tokenizer))


def partial_tuning(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Stage 3: train the tickets alone, from the original model; PEFT's users get them as an adapter."""
    trained = _train(shop, folder, shop.tickets().token_ids, shop.settings.tuning_learning_rate, progress)
    with shop.wearing(trained) as model:
        save_adapter(model, folder / "adapter", base_model_name_or_path=shop.loaded.provenance["path"])


def frequency_tuning(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Control: as many rows as tickets, the most frequent ones."""
    ids = frequency_rows(shop.counts, len(shop.tickets()))
    _train(shop, folder, ids, shop.settings.tuning_learning_rate, progress)


def random_tuning(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Control: as many rows as tickets, drawn from the active vocabulary."""
    ids = random_rows(shop.counts, len(shop.tickets()), shop.settings.seed)
    _train(shop, folder, ids, shop.settings.tuning_learning_rate, progress)


def evaluate_model(name: str, shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Score one model on the test split."""
    settings = shop.settings
    with shop.wearing(shop.model_rows(name)) as model, trimming_forward(model):
        result = evaluate(
            model,
            shop.loaded.tokenizer,
            shop.examples("test"),
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.eval_batch_size,
            n_bootstrap=settings.n_bootstrap,
            seed=settings.seed,
            bleu_tokenizer=settings.bleu_tokenizer,
            progress=progress,
        )
    write_json(folder / "evaluation.json", result.to_dict())


def certify(shop: Workshop, folder: Path, progress: ProgressCallback) -> None:
    """Where must a transfer model predict as the embed-tuned one, by the paper's criterion, and does it?"""
    certificate = certificate_of(shop, shop.rows("embed_tuning"), shop.tickets_key(), folder, progress)
    write_json(folder / "certificate.json", certificate.to_dict())


def certificate_of(
    shop: Workshop, tuned: TrainedRows, tickets: tuple[int, ...], folder: Path, progress: ProgressCallback
) -> Certificate:
    """The certificate of an embed-tuned model on the test split, over the grid of alphas.

    Agreement is that of the transfer model with the rows ``tickets``, ascending token ids of the largest D. What all of
    it follows from is kept in ``folder``, that of the stage, see :class:`~.basis.Basis`.
    """
    settings = shop.settings
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")]
    size = settings.eval_batch_size
    batches = [collate(features[i : i + size], shop.pad_token_id) for i in range(0, len(features), size)]
    table = trained_table(shop, tuned)
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


def trained_table(shop: Workshop, tuned: TrainedRows) -> TrainedTable:
    """The statistics of the rows that trained, which stand for the whole table."""
    before = shop.base_table()
    counts = ks_statistics(before[tuned.token_ids], tuned.rows)
    return TrainedTable(tuned.token_ids, counts, (before.shape[0], before.shape[1]))


def load_evaluation(folder: RunFolder, name: str) -> Evaluation:
    """The evaluation of a finished stage."""
    return Evaluation.from_dict(read_json(folder.stage_path(f"evaluate_{name}") / "evaluation.json"))


def _train(
    shop: Workshop, folder: Path, token_ids: torch.Tensor, learning_rate: float, progress: ProgressCallback
) -> TrainedRows:
    trained = train_table_rows(shop, token_ids, learning_rate, shop.settings.seed, folder, progress)
    trained.save(folder)
    return trained


def train_table_rows(
    shop: Workshop,
    token_ids: torch.Tensor,
    learning_rate: float,
    seed: int,
    scratch: Path,
    progress: ProgressCallback,
    before_update: Callable[[int, RowEmbedding], None] | None = None,
) -> TrainedRows:
    """Train rows of the shop's model as its settings say; the rows come back by ascending token id."""
    settings = shop.settings
    trained = train_rows(
        shop.model,
        token_ids,
        shop.train_features,
        pad_token_id=shop.pad_token_id,
        steps=settings.steps,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        learning_rate=learning_rate,
        seed=seed,
        output=settings.output_role,
        scratch=scratch,
        progress=progress,
        before_update=before_update,
    )
    # The order in which rows were asked for says nothing once they are trained.
    order = trained.token_ids.argsort()
    return TrainedRows(trained.token_ids[order], trained.rows[order], trained.losses)
