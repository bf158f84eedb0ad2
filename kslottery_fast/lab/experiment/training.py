"""Train rows of a model's embedding table on encoded examples, with the Trainer of transformers."""

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from kslottery_fast.base.errors import DivergedError, InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors
from kslottery_fast.base.options import SharedRole
from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.integrations.batches import GroupedBatches
from kslottery_fast.integrations.resuming import Checkpoints
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.lab.models.attention import quick_attention
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows
from kslottery_fast.tickets.evidence import Witness

from .console import ProgressCallback
from .trained import TrainedRows

_TRAINED = "trained.safetensors"
Features = Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Recipe:
    """How an arm of an experiment is trained: with AdamW without weight decay, unless it names another optimizer.

    Parameters
    ----------
    pad_token_id : int
        The token that pads a batch.
    steps : int
        Number of updates.
    batch_size : int
        Examples per update, a multiple of ``micro_batch_size``. Every target token has the same weight.
    micro_batch_size : int
        Examples that go through the model together. They have similar lengths, which saves padding. An update adds up
        several micro-batches, so that it holds short and long examples.
    learning_rate : float
        The first learning rate, which falls linearly to zero. Gradients are clipped to norm 1, the default of Trainer.
    seed : int
        The same seed gives the same batches, whatever is trained.
    beta2 : float
        Decay rate of the second moment.
    eps : float
        Number added to the denominator.
    lazy : bool
        Leave rows without a gradient at rest, as ``RowAdamW(lazy=True)`` does.
    optimizer : callable, optional
        Takes the trainable parameters and this recipe, and returns the optimizer. By default it is RowAdamW. Its
        ``repr`` is part of the key of the checkpoints.
    """

    pad_token_id: int
    steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    seed: int
    beta2: float = 0.999
    eps: float = 1e-8
    lazy: bool = False
    optimizer: "MakeOptimizer | None" = None


MakeOptimizer = Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer]


class _LabTrainer(TicketTrainer):
    """TicketTrainer with batches of similar lengths, and with checkpoints of whatever is trained."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        features: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(feature["input_ids"]) for feature in features]
        return GroupedBatches(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        try:
            super()._save_checkpoint(*arguments, **options)
        except RuntimeError as error:  # torch.save on a full disk
            raise InputError(
                f"{self.args.output_dir}: a checkpoint of the training cannot be written ({error}); "
                "free some space and run the same command again to resume"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        trained = self._trained_without_rows()
        if trained is None:
            super()._save(output_dir, state_dict)
        else:
            write_safetensors(Path(str(output_dir)) / _TRAINED, trained)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trained = self._trained_without_rows()
        if trained is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = read_safetensors(Path(resume_from_checkpoint) / _TRAINED)
        for name, parameter in trained.items():
            parameter.copy_(saved[name])

    def _trained_without_rows(self) -> dict[str, nn.Parameter] | None:
        model: Any = self.model
        named = model.named_parameters()
        return None if has_rows(model) else {name: one for name, one in named if one.requires_grad}


class _Watch(TrainerCallback):
    """Reports every step, and stops if the loss is not finite."""

    def __init__(self, progress: ProgressCallback | None, before_update: Callable[[int], None] | None) -> None:
        self.progress, self.before_update = progress, before_update

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.before_update:
            self.before_update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"training diverged: the loss of step {state.global_step} is {loss}; lower the learning rate"
                )
            if self.progress:
                self.progress(state.global_step, state.max_steps, f"loss {loss:.3f}")


def train_rows(
    model: nn.Module,
    token_ids: torch.Tensor,
    features: Features,
    recipe: Recipe,
    *,
    output: SharedRole = "auto",
    checkpoints: Path | None = None,
    progress: ProgressCallback | None = None,
    witness: Witness | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> TrainedRows:
    """Train some rows of a model's input embedding, with everything else frozen, and detach them again.

    The model comes back as it was, bit for bit.

    Parameters
    ----------
    model : nn.Module
        The model.
    token_ids : int64 tensor [k]
        The rows. Their order changes nothing but the rounding of the gradient norm.
    features : sequence of mappings
        The encoded examples.
    recipe : Recipe
        How to train.
    output : str
        The role of a tied output head, as for :func:`kslottery_fast.attach_rows`.
    checkpoints : Path, optional
        A folder for the checkpoint of this training, from which it resumes.
    progress : callable, optional
        Called after every step with the loss as its note.
    witness : Witness, optional
        Called before every update.
    say : callable, optional
        Called with a message if a checkpoint cannot be used.

    Returns
    -------
    TrainedRows
        The rows in ascending order of their token ids.

    Raises
    ------
    DivergedError
        The training diverged.
    """
    attach_rows(model, token_ids, output=output, train_padding=False)  # as in a dense embedding
    try:
        embedding = get_rows(model)
        saver = None
        if checkpoints is not None:
            saver = Checkpoints(checkpoints, (recipe, output, token_ids.tolist(), features), witness, say=say)
        watch = partial(witness.watch, embedding=embedding) if witness else None
        losses = train_parameters(model, features, recipe, saver=saver, progress=progress, before_update=watch)
        rows, ids = embedding.rows.detach().float().cpu(), embedding.token_ids.cpu()
        if not rows.isfinite().all():
            raise DivergedError(
                f"training diverged at learning rate {recipe.learning_rate:g}: rows hold NaN or Inf; lower it"
            )
        order = ids.argsort()
        return TrainedRows(ids[order], rows[order], losses)
    finally:
        detach_rows(model)


def train_parameters(
    model: nn.Module,
    features: Features,
    recipe: Recipe,
    *,
    saver: Checkpoints | None = None,
    progress: ProgressCallback | None = None,
    before_update: Callable[[int], None] | None = None,
) -> list[float]:
    """Train all trainable parameters of a model in place.

    Parameters
    ----------
    model, features, recipe
        As for :func:`train_rows`.
    saver : Checkpoints, optional
        Keeps a checkpoint, and resumes from it.
    progress : callable, optional
        Called after every step with the loss as its note.
    before_update : callable, optional
        Called before every update with the number of updates done.

    Returns
    -------
    list of float
        The loss of every step, in nats per target token.
    """
    set_seed(recipe.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_trainer())
        stack.enter_context(quick_attention(model))
        folder = saver.folder if saver else stack.enter_context(tempfile.TemporaryDirectory(prefix="trainer-"))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.micro_batch_size,
            gradient_accumulation_steps=recipe.batch_size // recipe.micro_batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            adam_beta2=recipe.beta2,
            adam_epsilon=recipe.eps,
            seed=recipe.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",  # Checkpoints asks for them
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
        )
        # With several GPUs Trainer would use DataParallel, which splits the batches that supervised positions refer to.
        arguments._n_gpu = min(1, arguments.n_gpu)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        trainer = _LabTrainer(
            model=model,
            args=arguments,
            train_dataset=features,
            data_collator=partial(collate, pad_token_id=recipe.pad_token_id),
            callbacks=[_Watch(progress, before_update), *([saver] if saver else [])],
            optimizers=(recipe.optimizer(trained, recipe) if recipe.optimizer else None, None),
            supervised_logits_only=True,
            lazy=recipe.lazy,
            tickets="none",  # whatever trains: rows, LoRA, a prefix, the whole table
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=saver.resume() if saver else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Silence the log messages of Trainer and accelerate, except errors."""
    loggers = [logging.getLogger(name) for name in ("transformers.trainer", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
