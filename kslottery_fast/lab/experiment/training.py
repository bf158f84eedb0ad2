"""Train some rows of a model's table on encoded examples, in an ordinary transformers Trainer loop."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows
from kslottery_fast.rows.overlay import RowEmbedding

Features = Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class TrainedRows:
    """``token_ids`` int64 [k], their trained ``rows`` float32 [k, d], and the loss of every step in nats per token."""

    token_ids: torch.Tensor
    rows: torch.Tensor
    losses: list[float]

    def only(self, token_ids: torch.Tensor) -> TrainedRows:
        """The rows of some of the tokens, in the order of ``token_ids``; ours must be ascending."""
        return TrainedRows(token_ids, self.rows[torch.searchsorted(self.token_ids, token_ids)], [])

    def save(self, folder: Path) -> None:
        """Write ``rows.safetensors`` and ``losses.json`` into a stage's folder."""
        write_safetensors(folder / "rows.safetensors", {"token_ids": self.token_ids, "rows": self.rows})
        write_json(folder / "losses.json", self.losses)

    @classmethod
    def load(cls, folder: Path) -> TrainedRows:
        """Read what :meth:`save` wrote."""
        tensors = read_safetensors(folder / "rows.safetensors")
        return cls(tensors["token_ids"], tensors["rows"], read_json(folder / "losses.json"))


class GroupedBatches(torch.utils.data.Sampler[int]):
    """Random order in which the examples of a batch have similar lengths: less padding, the same examples.

    Every epoch shuffles the examples, cuts them into groups of ``group`` batches, sorts each group by length, and
    shuffles the batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, group: int = 16) -> None:
        self.lengths, self.batch_size, self.group = lengths, batch_size, group
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        self.random.shuffle(order)
        size = self.group * self.batch_size
        batches = []
        for start in range(0, len(order), size):
            part = sorted(order[start : start + size], key=lambda i: (self.lengths[i], i))
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        self.random.shuffle(batches)
        # A short batch anywhere but at the end would shift the borders of all that follow it.
        batches.sort(key=lambda batch: len(batch) < self.batch_size)
        for batch in batches:
            yield from batch


class _LabTrainer(TicketTrainer):
    """TicketTrainer with batches of similar lengths."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        features: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(feature["input_ids"]) for feature in features]
        return GroupedBatches(lengths, self.args.per_device_train_batch_size, self.args.seed)


class _Watch(TrainerCallback):
    """Passes the steps on to a progress callback and stops at a loss that is no number."""

    def __init__(
        self, progress: Callable[[int, int], None] | None, before_update: Callable[[int], None] | None
    ) -> None:
        self.progress, self.before_update = progress, before_update
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.before_update:
            self.before_update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise InputError(
                    f"training diverged: the loss of step {state.global_step} is {loss}; lower the learning rate"
                )
            self.losses.append(loss)


def train_rows(
    model: nn.Module,
    token_ids: torch.Tensor,
    features: Features,
    *,
    pad_token_id: int,
    steps: int,
    batch_size: int,
    micro_batch_size: int,
    learning_rate: float,
    seed: int,
    output: str = "auto",
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_update: Callable[[int, RowEmbedding], None] | None = None,
) -> TrainedRows:
    """Fine-tune the rows ``token_ids`` of a model's input embedding, everything else frozen, and take them off again.

    Parameters
    ----------
    model : comes back as it was, bit for bit.
    token_ids : int64 [k]: all active rows for Embed Tuning, the tickets for Partial Tuning.
    features : what :func:`kslottery_fast.evaluation.evaluate.encode` gives, one for each training example.
    pad_token_id, seed : of the batches.
    batch_size : examples of an update, a multiple of ``micro_batch_size``.
    micro_batch_size : examples that go through the model together. They have similar lengths, to save padding; an
        update adds up several, so that it sees short and long ones, each target token with the same weight.
    steps, learning_rate : updates of AdamW without weight decay; the rate falls linearly to zero. Gradients are
        clipped to norm 1, as Trainer does by default.
    output : role of a tied table, see :func:`kslottery_fast.attach_rows`.
    scratch : where Trainer may leave files; a temporary folder by default.
    progress : called with (step, steps).
    before_update : called with (updates done so far, the embedding) before every update: ``rows`` are those that the
        gradient in ``rows.grad`` was computed at.

    Raises
    ------
    InputError : training diverged (a loss or row that is no finite number), or what ``attach_rows`` refuses.
    """
    attach_rows(model, token_ids, output=output)
    try:
        embedding = get_rows(model)
        assert embedding is not None
        losses = train_parameters(
            model,
            features,
            pad_token_id=pad_token_id,
            steps=steps,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            learning_rate=learning_rate,
            seed=seed,
            scratch=scratch,
            progress=progress,
            before_update=None if before_update is None else lambda step: before_update(step, embedding),
        )
        rows = embedding.rows.detach().float().cpu().clone()
        if not rows.isfinite().all():
            raise InputError(f"training diverged at learning rate {learning_rate:g}: rows hold NaN or Inf; lower it")
        return TrainedRows(embedding.token_ids.cpu().clone(), rows, losses)
    finally:
        detach_rows(model)


def train_parameters(
    model: nn.Module,
    features: Features,
    *,
    pad_token_id: int,
    steps: int,
    batch_size: int,
    micro_batch_size: int,
    learning_rate: float,
    seed: int,
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_update: Callable[[int], None] | None = None,
) -> list[float]:
    """Train whatever is trainable in a model, in place: the loop of :func:`train_rows` for any set of parameters.

    Parameters as of :func:`train_rows`; ``before_update`` is called with the updates done so far. The same seed gives
    the same batches whatever trains, so that arms of an experiment see the same examples in the same order.

    Returns
    -------
    The loss of every step in nats per target token.

    Raises
    ------
    InputError : nothing is trainable; training diverged.
    """
    set_seed(seed)
    watch = _Watch(progress, before_update)
    with tempfile.TemporaryDirectory(prefix="trainer-", dir=scratch) as trainer_folder, quiet_trainer():
        arguments = TrainingArguments(
            output_dir=trainer_folder,
            max_steps=steps,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=batch_size // micro_batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            seed=seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
        )
        # Several GPUs would mean DataParallel, which splits batches behind the back of the supervised positions.
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = _LabTrainer(
            model=model,
            args=arguments,
            train_dataset=features,
            data_collator=partial(collate, pad_token_id=pad_token_id),
            callbacks=[watch],
            supervised_logits_only=True,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.losses


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Keep the notes of Trainer and accelerate off the terminal; warnings of ours and errors still show."""
    loggers = [logging.getLogger(name) for name in ("transformers.trainer", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
