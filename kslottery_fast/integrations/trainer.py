"""TicketTrainer: a transformers Trainer that trains the rows of a few tokens and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_text
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows, output_role
from kslottery_fast.rows.tables import check_token_ids, table_shape
from kslottery_fast.tickets.tickets import Tickets

from .active_vocabulary import active_vocabulary, check_batch
from .monitor import TicketMonitor
from .quantized import as_adapted
from .trainer_checkpoint import ROWS_FILE, load_checkpoint, save_checkpoint
from .trainer_checks import check_one_gpu, check_optimizer, check_plain_loss, check_whole_parameters

__all__ = ["ROWS_FILE", "TicketMonitor", "TicketTrainer", "TicketTrainerMixin", "load_checkpoint"]

if TYPE_CHECKING:
    _Trainer = transformers.Trainer
else:
    _Trainer = object


class TicketTrainerMixin(_Trainer):
    """What makes a Trainer (or TRL's SFTTrainer, ...) train rows; put it first among the bases.

    Parameters
    ----------
    *args, **kwargs : those of the Trainer.
    tickets : the tokens to train: Tickets, token ids, or "active" for the active vocabulary of
        ``train_dataset`` (Embed Tuning; every batch is then checked for tokens outside). ``attach_rows`` is
        called if need be: it freezes the model, or, where PEFT put adapters into it, leaves what trains as
        PEFT set it, so that adapters and rows train together. Tickets that were saved with their texts must
        fit the ``processing_class``. None trains whatever is trainable in the model.
    output : as for :func:`kslottery_fast.rows.attach_rows`.
    supervised_logits_only : compute logits at supervised positions alone: the same loss, less work.
        Evaluation is not changed by it.
    nonfinite : what to do about NaN or Inf in a gradient, as for :class:`kslottery_fast.optim.RowAdamW`. "raise":
        an InputError before anything is written. "skip": leave the step out; the log counts ``skipped_steps``.

    Notes
    -----
    The optimizer is :class:`kslottery_fast.optim.RowAdamW` with the learning rate, betas, epsilon and weight
    decay of the TrainingArguments, or what was passed as ``optimizers``; an ``optim`` other than torch's AdamW is
    refused. Checkpoints, and ``save_model``, hold what trains and not the model; for an ordinary model call
    ``merge_rows(model).save_pretrained(...)`` after training.

    ``supervised_logits_only`` takes the place of the ``compute_loss`` of the Trainer: an SFTTrainer then logs
    neither token accuracy nor entropy. It computes cross entropy and nothing else, so that a router loss, label
    smoothing and other losses are refused.

    Raises
    ------
    InputError : nothing to train, tickets that do not fit the model or differ from the rows attached already,
        an option that ``supervised_logits_only`` cannot serve, several GPUs in one process, a checkpoint of
        other rows. The model is then as it was.
    """

    def __init__(
        self,
        *args: Any,
        tickets: Any = None,
        output: str = "auto",
        supervised_logits_only: bool = False,
        nonfinite: str = "raise",
        **kwargs: Any,
    ) -> None:
        if nonfinite not in ("raise", "skip"):
            raise InputError(f"nonfinite must be 'raise' or 'skip', not {nonfinite!r}")
        self._supervised_logits_only, self._nonfinite = supervised_logits_only, nonfinite
        self._check_active = isinstance(tickets, str)
        if isinstance(tickets, str):
            if tickets != "active":
                raise InputError(f"tickets must be Tickets, token ids or 'active', not {tickets!r}")
            if kwargs.get("train_dataset") is None:
                raise InputError("tickets='active' needs train_dataset, given by name")
        self._tickets, self._output, self._train_dataset = tickets, output, kwargs.get("train_dataset")
        if isinstance(tickets, Tickets) and kwargs.get("processing_class") is not None:
            tickets.check_tokenizer(getattr(kwargs["processing_class"], "tokenizer", kwargs["processing_class"]))
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, str):
            raise InputError(
                f"model is the model id {model!r}, and rows are attached to a loaded model; load it first, as "
                f"AutoModelForCausalLM.from_pretrained({model!r})"
            )
        attached_here = model is not None and self._attach(model)
        try:
            with as_adapted(model):
                super().__init__(*args, **kwargs)
            ours = cast(nn.Module, self.model)
            embedding = get_rows(ours) if has_rows(ours) else None
            if embedding is not None or supervised_logits_only:
                check_one_gpu(self)
            if embedding is not None:
                check_whole_parameters(self)
            check_optimizer(self, nonfinite)
            if supervised_logits_only:
                check_plain_loss(self)
            if embedding is not None and tickets is not None:
                # A Trainer that takes a peft_config (SFTTrainer does) freezes all but its own weights.
                embedding.rows.requires_grad_(True)
            self._bind_monitors()
        except BaseException:
            if model is not None and attached_here:
                detach_rows(model)
            raise

    def add_callback(self, callback: Any) -> None:
        """As Trainer does it; a TicketMonitor then logs through this Trainer."""
        super().add_callback(callback)
        self._bind_monitors()

    def _bind_monitors(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TicketMonitor):
                callback.bind(self)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Attach the rows to every model that ``model_init`` makes."""
        model: nn.Module = super().call_model_init(trial)
        self._attach(model)
        if getattr(model, "is_quantized", False):
            raise InputError(
                "model_init made a quantized model, which the Trainer takes as model= alone; pass it there"
            )
        return model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """RowAdamW over all that trains: the rows, and LoRA weights or the like beside them."""
        model = self.model if model is None else model
        assert model is not None
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            decayed = set(self.get_decay_parameter_names(model))
            trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            groups = [
                {
                    "params": [p for name, p in trained if name in decayed],
                    "weight_decay": self.args.weight_decay,
                },
                {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = RowAdamW(
                [group for group in groups if group["params"]],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                nonfinite=self._nonfinite,
            )
        # Called without the model, which older releases do not take.
        return self.optimizer if self.optimizer is not None else super().create_optimizer()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer does it; the steps that ``nonfinite="skip"`` left out are logged beside the loss."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # what accelerate wraps
        if self._nonfinite == "skip" and "loss" in logs and isinstance(optimizer, RowAdamW):
            logs["skipped_steps"] = optimizer.skipped_steps
        super().log(logs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Trainer's loss; ``supervised_logits_only`` gets the same number from the supervised positions."""
        if self._check_active and model.training:
            check_batch(model, inputs)
        if not self._supervised_logits_only or return_outputs or "labels" not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        logits, targets = supervised_logits(model, inputs)
        # As transformers' fixed_cross_entropy does it: in float32, a mean over the batch, or a sum over the
        # number of targets in all batches of the accumulated step.
        if num_items_in_batch is None:
            return F.cross_entropy(logits.float(), targets)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / num_items_in_batch
        if self.args.average_tokens_across_devices:
            replicas = self.get_tp_size() if hasattr(self, "get_tp_size") else 1
            loss = loss * (self.args.n_gpu if self.args.n_gpu > 1 else self.accelerator.num_processes // replicas)
        return loss

    def _attach(self, model: nn.Module) -> bool:
        """Attach the tickets; tell whether that was done here."""
        attached = get_rows(model) if has_rows(model) else None
        if attached is None and self._tickets is None:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise InputError("the model has no trainable parameter; pass tickets=, or call attach_rows first")
            return False
        ids = self._tickets
        if isinstance(ids, str):
            ids = active_vocabulary(self._train_dataset, model)
        if attached is None:
            # PEFT has frozen its base model already; freezing here would switch its adapters off. The rows go on the
            # base model, so that the PeftModel's own save_pretrained still writes its adapter.
            unwrapped: Any = getattr(model, "get_base_model", lambda: model)
            attach_rows(unwrapped(), ids, output=self._output, freeze=not _has_adapters(model))
            return True
        if ids is not None:
            wanted = check_token_ids(ids, table_shape(attached)[0], "tickets")
            if not torch.equal(wanted.sort().values, attached.token_ids.cpu().sort().values):
                raise InputError("the rows attached to the model are not those of tickets; call detach_rows first")
        if self._output not in ("auto", output_role(model)):
            raise InputError(f"the rows are attached with output={output_role(model)!r}, not {self._output!r}")
        return False

    # ---- checkpoints: rows, not models ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not has_rows(model):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # Trainer pickles its arguments here; nothing reads them back, so plain JSON does.
        write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        if not has_rows(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_checkpoint(model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not has_rows(model):
            super()._load_best_model()
        else:
            load_checkpoint(model, str(self.state.best_model_checkpoint))


class TicketTrainer(TicketTrainerMixin, transformers.Trainer):
    """A ``transformers.Trainer`` with one more argument, the tickets; see :class:`TicketTrainerMixin`.

    Examples
    --------
    ::

        tickets = Tickets.load("tickets.json")
        TicketTrainer(model=model, args=args, train_dataset=data, tickets=tickets).train()
        merge_rows(model).save_pretrained("tuned")
    """


def _has_adapters(model: nn.Module) -> bool:
    """Tell whether PEFT put adapters into the model: get_peft_model, or transformers' own add_adapter."""
    return any(getattr(module, "peft_config", None) for module in model.modules())
