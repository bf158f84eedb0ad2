"""What the stages of a run share: settings, folder, corpus, model, and models with trained rows."""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.evaluation.effects import wearing
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.lab.data.corpora import Corpus, load_corpus
from kslottery_fast.lab.data.prompts import to_examples
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.evidence import token_counts

from .console import ProgressCallback, RunConsole
from .run_folder import RunFolder
from .run_settings import RunSettings
from .trained import TrainedRows

if TYPE_CHECKING:
    from kslottery_fast.lab.models.loading import LoadedModel


class Workshop:
    """Settings and folder of one language, and its corpus and model, which are loaded when a stage needs them.

    Parameters
    ----------
    settings : RunSettings
        The settings.
    folder : RunFolder
        The stages of the language.
    console : RunConsole
        Where progress is written.
    neighbour : Workshop, optional
        Another workshop with the same model, which this one shares.
    """

    def __init__(
        self, settings: RunSettings, folder: RunFolder, console: RunConsole, *, neighbour: "Workshop | None" = None
    ) -> None:
        self.settings, self.folder, self.console, self.neighbour = settings, folder, console, neighbour

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus. In a run that resumes it must be the same as before."""
        names = ("source", "target", "train", "validation", "test", "seed")
        options: dict[str, Any] = {name: getattr(self.settings, name) for name in names}
        with self.console.task("Loading the corpus") as progress:
            corpus = load_corpus(self.settings.corpus, **options, status=self.console.say, progress=progress)
        self._check_same("corpus", {"digest": corpus.digest})
        counts = corpus.provenance["counts"]
        left_out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out"].items())
        self.console.say(
            f"{counts['usable']:,} usable pairs of {counts['read']:,} entries; left out: {left_out or 'none'}"
        )
        return corpus

    @cached_property
    def loaded(self) -> "LoadedModel":
        """Model and tokenizer. In a run that resumes the model must be the same as before."""
        if self.neighbour is not None:
            loaded = self.neighbour.loaded
        else:
            from kslottery_fast.lab.models.loading import load_model  # slow: imports transformers

            name, dtype = self.settings.model, self.settings.dtype
            with self.console.task("Loading the model") as progress:
                loaded = load_model(name, dtype=dtype, status=self.console.say, progress=progress)
        facts = {name: loaded.provenance[name] for name in ("dtype", "device")}
        self._check_same("model", {"model_digest": loaded.sha256, **facts})
        return loaded

    def _check_same(self, what: str, facts: dict[str, str]) -> None:
        if not self.folder.finished("corpus"):
            return
        record = read_json(self.folder.stage_path("corpus") / "corpus.json")
        record |= {name: record["model_provenance"][name] for name in ("dtype", "device")}
        different = [f"{name} {record[name]} there, {now} here" for name, now in facts.items() if record[name] != now]
        if different:
            raise InputError(
                f"{what} {getattr(self.settings, what)!r} is not the one that the run in {self.folder.path} started "
                f"with ({'; '.join(different)}); give another --output to start a new run"
            )

    def record(self, folder: Path, progress: ProgressCallback) -> None:
        """Make the stage ``corpus``, whose ``corpus.json`` records the pairs and the model."""
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
        """The original model, without attached rows."""
        return self.loaded.model

    @property
    def pad_token_id(self) -> int:
        """The token that pads a batch."""
        return int(self.loaded.tokenizer.pad_token_id)

    @cached_property
    def train_features(self) -> list[dict[str, list[int]]]:
        """The encoded training examples."""
        return [encode(self.loaded.tokenizer, example) for example in self.examples("train")]

    @cached_property
    def counts(self) -> torch.Tensor:
        """How often each token occurs in the training examples, int64 [V]. Rows that cannot be trained count 0."""
        follows = self.settings.output_role == "tied"  # if not, the row of a text's last token gets no gradient
        counts = token_counts(self.train_features, len(embedding_table(self.model)), last=follows)
        padding = self.model.get_input_embeddings().padding_idx
        if padding is not None:
            counts[padding] = 0  # its row gets no gradient
        return counts

    def examples(self, split: str, template: str | None = None) -> list[Example]:
        """Prompts and targets of a split, by default in the template that is used in training."""
        names = self.corpus.source_language.name, self.corpus.target_language.name
        return to_examples(getattr(self.corpus, split), *names, template or self.settings.template)

    def base_table(self) -> torch.Tensor:
        """The embedding table before training, as float32 [V, d]. A 16-bit model's rounding is part of it."""
        return embedding_table(self.model).detach().float().cpu()

    def wearing(self, rows: TrainedRows | None) -> AbstractContextManager[Any]:
        """The original model with ``rows`` attached inside the block. After it the model is as it was."""
        if rows is None:
            return contextlib.nullcontext(self.model)
        return wearing(self.model, rows.token_ids, rows.rows, output=self.settings.output_role)
