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
certify                certificate.json
=====================  =====================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.certify import Predictions, certificate_from, next_token_predictions
from kslottery_fast.errors import InputError
from kslottery_fast.evaluate import Evaluation, Example, collate, encode, evaluate
from kslottery_fast.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.integrations.peft import save_adapter
from kslottery_fast.rows import attach_rows, detach_rows, get_rows
from kslottery_fast.stats import ks_statistics
from kslottery_fast.tables import embedding_table
from kslottery_fast.tickets import Tickets, ks_select

from .console import ProgressCallback, RunConsole
from .controls import frequency_rows, random_rows, token_counts
from .corpora import Corpus, load_corpus
from .memory import trimming_forward
from .models import LoadedModel, load_model
from .prompts import to_examples
from .run_folder import RunFolder
from .settings import RunSettings
from .training import TrainedRows, train_rows

MODELS = (
    "untuned",
    "embed_tuning",
    "partial_transfer",
    "partial_tuning",
    "frequency_tuning",
    "random_tuning",
)
"""The models that a run compares, in the order in which every table shows them."""


class Workshop:
    """Settings, folder, and what is loaded when a stage first needs it: corpus, model, tokenized examples."""

    def __init__(self, settings: RunSettings, folder: RunFolder, console: RunConsole) -> None:
        self.settings, self.folder, self.console = settings, folder, console

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus; on resume it must be the one that the run began with."""
        s = self.settings
        with self.console.task("Loading the corpus") as progress:
            corpus = load_corpus(
                s.corpus,
                source=s.source,
                target=s.target,
                train=s.train,
                validation=s.validation,
                test=s.test,
                seed=s.seed,
                status=self.console.say,
                progress=progress,
            )
        self._check_same("corpus", {"digest": corpus.digest})
        counts = corpus.provenance["counts"]
        left_out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out"].items())
        self.console.say(
            f"{counts['usable']:,} usable pairs of {counts['read']:,} entries; left out: {left_out or 'none'}"
        )
        return corpus

    @cached_property
    def loaded(self) -> LoadedModel:
        """Model and tokenizer; on resume the model must be the one that the run began with."""
        with self.console.task("Loading the model") as progress:
            loaded = load_model(
                self.settings.model, dtype=self.settings.dtype, status=self.console.say, progress=progress
            )
        facts = {name: loaded.provenance[name] for name in ("dtype", "device")}
        self._check_same("model", {"model_digest": loaded.sha256, **facts})
        return loaded

    def _check_same(self, what: str, facts: dict[str, str]) -> None:
        if self.folder.finished("corpus"):
            record = read_json(self.folder.stage_path("corpus") / "corpus.json")
            record |= {name: record["model_provenance"][name] for name in ("dtype", "device")}
            different = [
                f"{name} {record[name]} there, {value} here" for name, value in facts.items() if record[name] != value
            ]
            if different:
                raise InputError(
                    f"{what} {getattr(self.settings, what)!r} is no longer what the run in {self.folder.path} began "
                    f"with ({'; '.join(different)}); give another --output to start anew"
                )

    @property
    def model(self) -> Any:
        """The base model, no rows attached."""
        return self.loaded.model

    @property
    def pad_token_id(self) -> int:
        """What batches are padded with."""
        return int(self.loaded.tokenizer.pad_token_id)

    @cached_property
    def train_features(self) -> list[dict[str, list[int]]]:
        """Encoded training examples."""
        return [encode(self.loaded.tokenizer, example) for example in self.examples("train")]

    @cached_property
    def counts(self) -> torch.Tensor:
        """Occurrences in the training examples of every token whose row can train, int64 [V]."""
        counts = token_counts(self.train_features, len(embedding_table(self.model)))
        padding = self.model.get_input_embeddings().padding_idx
        if padding is not None:
            counts[padding] = 0  # its row gets no gradient, however often the token occurs
        return counts

    def examples(self, split: str) -> list[Example]:
        """Prompts and targets of a split."""
        corpus = self.corpus
        pairs: Sequence[Any] = getattr(corpus, split)
        return to_examples(pairs, corpus.source_language.name, corpus.target_language.name, self.settings.template)

    def rows(self, stage: str) -> TrainedRows:
        """The rows that a finished stage trained."""
        folder = self.folder.stage_path(stage)
        tensors = read_safetensors(folder / "rows.safetensors")
        return TrainedRows(tensors["token_ids"], tensors["rows"], read_json(folder / "losses.json"))

    def tickets_key(self) -> tuple[int, ...]:
        """The run's ticket ids, ascending."""
        return tuple(sorted(self.tickets().token_ids.tolist()))

    def tickets(self) -> Tickets:
        """The tickets of the finished stage ``select``."""
        return Tickets.load(self.folder.stage_path("select") / "tickets.json")

    def model_rows(self, name: str) -> TrainedRows | None:
        """The rows that make the base model the one called ``name``; None for the untuned model."""
        if name == "untuned":
            return None
        if name != "partial_transfer":
            return self.rows(name)
        return self.rows("embed_tuning").only(self.tickets().token_ids)

    def base_table(self) -> torch.Tensor:
        """The table before any training, float32 [V, d] as the rows are; a 16-bit model's rounding is in it."""
        return embedding_table(self.model).detach().float().cpu()

    @contextlib.contextmanager
    def wearing(self, rows: TrainedRows | None) -> Iterator[Any]:
        """The base model with ``rows`` attached inside the block, and as it was after it."""
        if rows is None:
            yield self.model
            return
        attach_rows(self.model, rows.token_ids, output=self.settings.output_role)
        try:
            embedding = get_rows(self.model)
            assert embedding is not None
            with torch.no_grad():
                embedding.rows.copy_(rows.rows)
            yield self.model
        finally:
            detach_rows(self.model)


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
            tickets = choose(top_k=settings.top_k)
    for note in notes:
        shop.console.say(f"note: {note.message}")
    if len(tickets) == 0:
        raise InputError("Embed Tuning moved no row at all; raise learning_rate or steps")
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
    """Where must a transfer model predict as the embed-tuned one, by the paper's criterion, and does it?

    The criterion at alpha speaks of the tickets at alpha, so each level is checked against a transfer model of its own.
    Agreement is that of the run's own transfer model.
    """
    settings = shop.settings
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")]
    size = settings.eval_batch_size
    batches = [collate(features[i : i + size], shop.pad_token_id) for i in range(0, len(features), size)]
    tuned, before = shop.rows("embed_tuning"), shop.base_table()
    chosen = {alpha: _ticket_ids(settings, before, tuned, alpha) for alpha in settings.alphas}
    wanted: dict[tuple[int, ...], Predictions] = {}
    total = len({shop.tickets_key(), *chosen.values()}) + 1

    def predict(rows: TrainedRows | None) -> Predictions:
        offset = (len(wanted) + (rows is not tuned)) * len(features)
        with shop.wearing(rows) as model:
            return next_token_predictions(
                model, batches, progress=lambda done, _: progress(offset + done, total * len(features))
            )

    predictions = predict(tuned)
    for key in (shop.tickets_key(), *chosen.values()):
        if key not in wanted:
            wanted[key] = predict(tuned.only(torch.tensor(key)) if key else None)
    options = {"dimension": before.shape[1], "n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
    levels = [
        dataclasses.replace(
            certificate_from(predictions, wanted[key], alphas=[alpha], **options).levels[0], transferred=len(key)
        )
        for alpha, key in chosen.items()
    ]
    own = certificate_from(predictions, wanted[shop.tickets_key()], alphas=[settings.alpha], **options)
    write_json(folder / "certificate.json", dataclasses.replace(own, levels=tuple(levels)).to_dict())


def _ticket_ids(settings: RunSettings, before: torch.Tensor, tuned: TrainedRows, alpha: float) -> tuple[int, ...]:
    """Token ids that the test selects at alpha, ascending; none is a possible answer."""
    after = before.clone()
    after[tuned.token_ids] = tuned.rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tickets = ks_select(before, after, alpha, method=settings.method, correction=settings.correction)
    return tuple(sorted(tickets.token_ids.tolist()))


def load_evaluation(folder: RunFolder, name: str) -> Evaluation:
    """The evaluation of a finished stage."""
    return Evaluation.from_dict(read_json(folder.stage_path(f"evaluate_{name}") / "evaluation.json"))


def _train(
    shop: Workshop, folder: Path, token_ids: torch.Tensor, learning_rate: float, progress: ProgressCallback
) -> TrainedRows:
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
        seed=settings.seed,
        output=settings.output_role,
        scratch=folder,
        progress=progress,
    )
    # Ascending ids: the order in which rows were asked for says nothing once they are trained.
    order = trained.token_ids.argsort()
    write_safetensors(folder / "rows.safetensors", {"token_ids": trained.token_ids[order], "rows": trained.rows[order]})
    write_json(folder / "losses.json", trained.losses)
    return trained
