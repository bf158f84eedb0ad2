"""What the stages of a run work with: settings, folder, corpus, model, and rows put onto the model and taken off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.lab.data.corpora import Corpus, load_corpus
from kslottery_fast.lab.data.prompts import to_examples
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows
from kslottery_fast.rows.tables import embedding_table

from .console import ProgressCallback, RunConsole
from .controls import token_counts
from .run_folder import RunFolder
from .settings import RunSettings
from .trained import TrainedRows

if TYPE_CHECKING:
    from kslottery_fast.lab.models.loading import LoadedModel


class Workshop:
    """Settings, folder, and what is loaded when a stage first needs it: corpus, model, tokenized examples.

    ``neighbour`` : a workshop with the same model settings, whose loaded model this one shares.
    """

    def __init__(
        self, settings: RunSettings, folder: RunFolder, console: RunConsole, *, neighbour: Workshop | None = None
    ) -> None:
        self.settings, self.folder, self.console, self.neighbour = settings, folder, console, neighbour

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
        if self.neighbour is not None:
            loaded = self.neighbour.loaded
        else:
            from kslottery_fast.lab.models.loading import load_model  # with transformers, which takes seconds

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

    def record(self, folder: Path, progress: ProgressCallback) -> None:
        """The stage ``corpus``: what the run works on, in ``corpus.json``."""
        corpus, loaded = self.corpus, self.loaded
        write_json(
            folder / "corpus.json",
            {
                "digest": corpus.digest,
                "model_digest": loaded.sha256,
                "model_name": loaded.name,
                "model_provenance": loaded.provenance,
                "source_language": asdict(corpus.source_language),
                "target_language": asdict(corpus.target_language),
                "provenance": corpus.provenance,
                "licences": list(corpus.licences),
                **{name: [asdict(pair) for pair in getattr(corpus, name)] for name in ("train", "validation", "test")},
            },
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
        follows = self.settings.output_role == "tied"  # else the row of a text's last token gets no gradient
        counts = token_counts(self.train_features, len(embedding_table(self.model)), last=follows)
        padding = self.model.get_input_embeddings().padding_idx
        if padding is not None:
            counts[padding] = 0  # its row gets no gradient, however often the token occurs
        return counts

    def examples(self, split: str, template: str | None = None) -> list[Example]:
        """Prompts and targets of a split, by default in the template that the run trains with."""
        corpus = self.corpus
        pairs: Sequence[Any] = getattr(corpus, split)
        names = corpus.source_language.name, corpus.target_language.name
        return to_examples(pairs, *names, self.settings.template if template is None else template)

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
