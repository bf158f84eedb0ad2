"""TicketTrainer: a Trainer of transformers that trains the rows of a few tokens and nothing else."""

from typing import Any, Literal, cast

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows, output_role
from kslottery_fast.rows.new_token_marks import new_tokens
from kslottery_fast.rows.padding import check_train_padding
from kslottery_fast.rows.roles import check_output_ids
from kslottery_fast.rows.switch import follow_adapters
from kslottery_fast.rows.tables import input_embedding, table_shape
from kslottery_fast.rows.token_ids import TokenIds, check_token_ids

from .active_vocabulary import active_vocabulary, check_batch
from .fused_head import read_rows_in_fused_head
from .monitor import TicketMonitor
from .quantized import as_adapted
from .trainer_arguments import (
    by_name,
    check_arguments,
    check_attached,
    has_adapters,
    read_tickets,
    texts_of,
    tokenizer_of,
)
from .trainer_checkpoint import ROWS_FILE, load_checkpoint
from .trainer_checks import (
    check_one_gpu,
    check_optimizer,
    check_plain_loss,
    check_reference,
    check_whole_parameters,
    refusal_of,
)
from .trainer_files import TicketFiles
from .unread import watch_unread

__all__ = ["ROWS_FILE", "TicketMonitor", "TicketTrainer", "TicketTrainerMixin", "load_checkpoint"]


class TicketTrainerMixin(TicketFiles):
    """Makes a Trainer, such as the SFTTrainer of TRL, train rows. Put it first among the base classes.

    Parameters, errors and warnings are those of :class:`TicketTrainer`.

    Examples
    --------
    >>> class OwnTrainer(transformers.Trainer):
    ...     "Or any other subclass, such as the SFTTrainer of TRL."
    >>> class TicketOwnTrainer(TicketTrainerMixin, OwnTrainer):
    ...     "It has the arguments of a TicketTrainer too."
    """

    def __init__(
        self,
        *args: Any,
        tickets: TokenIds | None = None,
        output: OutputRole = "auto",
        output_ids: TokenIds | None = None,
        train_padding: bool | None = None,
        supervised_logits_only: bool = False,
        nonfinite: Literal["raise", "skip"] = "raise",
        lazy: bool = False,
        **kwargs: Any,
    ) -> None:
        given = by_name(super().__init__, args, kwargs)
        check_arguments(given, output, nonfinite, supervised_logits_only, lazy)
        check_output_ids(output_ids, output)
        check_train_padding(train_padding)
        self._supervised_logits_only, self._nonfinite, self._output = supervised_logits_only, nonfinite, output
        self._lazy = lazy
        self._how: dict[str, Any] = {"output_ids": output_ids, "train_padding": train_padding}
        self._train_dataset: Any = given.get("train_dataset")
        self._tokenizer = tokenizer_of(given.get("processing_class"))
        self._tickets = read_tickets(tickets, self._tokenizer, self._train_dataset)
        word = self._tickets if isinstance(self._tickets, str) else None
        self._check_active, self._trains_all = word == "active", word == "none"
        model = given.get("model")
        attached_here = model is not None and self._attach(model)
        try:
            with as_adapted(model):
                super().__init__(*args, **kwargs)
            self._check_built()
        except BaseException as error:
            if model is not None and attached_here:
                detach_rows(model)
            if (refusal := refusal_of(error)) is not None:
                raise refusal from error
            raise

    def _check_built(self) -> None:
        """Refuse settings that the Trainer would otherwise ignore, and warn about tickets that are not in the data."""
        model = cast(nn.Module, self.model)
        attached = has_rows(model)
        if attached or self._supervised_logits_only:
            check_one_gpu(self)
        if attached:
            check_whole_parameters(self)
        check_optimizer(self, self._nonfinite, lazy=self._lazy)
        if self._supervised_logits_only:
            check_plain_loss(self)
        if attached and self._tickets is not None and not self._trains_all:
            # A Trainer with a peft_config, such as SFTTrainer, freezes all weights but its own.
            get_rows(model).row_sets.current().requires_grad_(True)
        if attached:
            check_reference(self)
            follow_adapters(model)
            read_rows_in_fused_head(model, tell=not self._supervised_logits_only)
        self._bind_monitors()
        if attached and not (self._check_active or self._trains_all):
            watch_unread(self, texts_of(self._tickets, self._tokenizer))

    def add_callback(self, callback: Any) -> None:
        """Add a callback as the Trainer does. A TicketMonitor then logs through this Trainer."""
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
            raise InputError("model_init made a quantized model, which the Trainer takes only as model=; pass it there")
        return model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return RowAdamW over all that trains: the rows, and other parameters such as LoRA weights."""
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
                lazy=self._lazy,
            )
        # Older releases do not take the model.
        return self.optimizer if self.optimizer is not None else super().create_optimizer()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does. With ``nonfinite="skip"`` the number of steps left out is logged with the loss."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate may have wrapped it
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
        """Return the loss of the Trainer. ``supervised_logits_only`` computes it from the supervised positions."""
        if self._check_active and model.training:
            check_batch(model, inputs)
        if not self._supervised_logits_only or return_outputs or "labels" not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        logits, targets = supervised_logits(model, inputs)
        # Like fixed_cross_entropy of transformers: in float32, as a mean over the batch, or as a sum divided by the
        # number of targets in all batches of an accumulated step.
        if num_items_in_batch is None:
            return F.cross_entropy(logits.float(), targets)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / num_items_in_batch
        if self.args.average_tokens_across_devices:
            replicas = self.get_tp_size() if hasattr(self, "get_tp_size") else 1
            loss = loss * (self.args.n_gpu if self.args.n_gpu > 1 else self.accelerator.num_processes // replicas)
        return loss

    def _attach(self, model: nn.Module) -> bool:
        """Attach the tickets, and tell whether that was done here."""
        ids, attached = self._tickets, has_rows(model)
        if ids is None and not attached:
            raise InputError(
                "tickets is None, and the model has no attached rows: pass tickets=, or call attach_rows first; "
                "tickets='none' trains all that is trainable in the model"
            )
        if ids is None or self._trains_all:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise InputError("the model has no trainable parameter; pass tickets=, or call attach_rows first")
        elif not attached:
            self._attach_new(model)
            return True
        else:
            ids = active_vocabulary(self._train_dataset, model) if self._check_active else ids
            check_attached(ids, get_rows(model).row_sets.current(), self._tokenizer, new_tokens(model))
        if any(value is not None for value in self._how.values()):
            raise InputError(
                "output_ids and train_padding are for rows that the trainer attaches, and it attaches none here; pass "
                "them to attach_rows, or call detach_rows first"
            )
        role = output_role(model) if attached else None
        if self._output not in ("auto", role):
            why = f"the rows are attached with output={role!r}; call detach_rows first" if attached else "no row trains"
            raise InputError(f"output is {self._output!r}, and {why}")
        return False

    def _attach_new(self, model: nn.Module) -> None:
        if self._check_active:
            ids = active_vocabulary(self._train_dataset, model)
        else:
            rows = table_shape(input_embedding(model))[0]
            added = new_tokens(model)
            ids = check_token_ids(self._tickets, rows, "tickets", tokenizer=self._tokenizer, new_tokens=added)
        # PEFT has frozen its base model already; freezing here would switch its adapters off. The rows go on the base
        # model, so that save_pretrained of the PeftModel still writes its adapter.
        base: Any = getattr(model, "get_base_model", lambda: model)
        how = self._how
        if self._check_active and how["train_padding"] is None:
            how = how | {"train_padding": False}  # in Embed Tuning the row of padding stays, as in a dense table
        attach_rows(base(), ids, output=self._output, freeze=not has_adapters(model), tokenizer=self._tokenizer, **how)


class TicketTrainer(TicketTrainerMixin, transformers.Trainer):
    """A ``transformers.Trainer`` that trains the rows of a few tokens and nothing else.

    Parameters
    ----------
    *args, **kwargs
        The arguments of the Trainer.
    tickets : TokenIds, "active", "added", "none" or None
        The tokens whose rows train: Tickets, the path of a ticket file, or token ids. Strings of tokens are taken where
        ``processing_class`` is a tokenizer, and Tickets that keep the texts of their tokens must fit it. The rows are
        attached if they are not yet, which freezes the rest of the model. If PEFT put adapters into the model, what
        trains stays as PEFT set it, so that adapters and rows train together.

        ``"active"`` trains the active vocabulary of ``train_dataset`` (Embed Tuning). Every batch is then checked for
        other tokens. ``"added"`` trains the rows of added tokens, as for :func:`kslottery_fast.attach_rows`. With None,
        the model must have attached rows already. ``"none"`` attaches nothing and trains all that is trainable in the
        model, as a plain Trainer does.
    output : {"auto", "frozen", "tied", "own"}
        What the output head does, as for :func:`kslottery_fast.attach_rows`. With "own" rows of the head train too.
    output_ids : TokenIds, optional
        The tokens of the head's own rows, as for :func:`kslottery_fast.attach_rows`.
    train_padding : bool, optional
        Whether the row of ``padding_idx`` trains, as for :func:`kslottery_fast.attach_rows`.
    supervised_logits_only : bool
        True computes logits at supervised positions only: the same loss with less work. Evaluation does not change.
    nonfinite : {"raise", "skip"}
        What to do about NaN or Inf in a gradient, as for :class:`kslottery_fast.RowAdamW`. ``"raise"`` raises
        InputError before anything is written. ``"skip"`` leaves the step out, and the log counts ``skipped_steps``.
    lazy : bool
        Leave rows without a gradient in a step at rest, as for :class:`kslottery_fast.RowAdamW`. The KS test then finds
        the rows that matter more often.

    Raises
    ------
    InputError
        There is nothing to train. The tickets do not fit the model, or differ from the rows that are attached.
        ``supervised_logits_only`` cannot compute the loss. One process has several GPUs. A checkpoint holds other
        rows. The model is then as it was.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        Tickets never occur in the training data, so that their rows do not train. For a dataset that can be read in a
        moment the warning comes at once. Otherwise it names the rows without a gradient at the end of the training, or
        after 100 steps if no row had one.

    Notes
    -----
    The optimizer is :class:`kslottery_fast.RowAdamW` with the learning rate, betas, epsilon and weight decay of the
    TrainingArguments, unless ``optimizers`` is given. An ``optim`` other than the AdamW of torch is refused.
    Checkpoints hold what trains and not the model, and :func:`kslottery_fast.checkpoint_to_adapter` makes an adapter of
    one. ``save_model`` writes the adapter too. With ``push_to_hub`` the adapter and its card are
    uploaded. For an ordinary model call ``merge_rows(model).save_pretrained(...)`` after training.

    ``supervised_logits_only`` replaces the ``compute_loss`` of the Trainer. An SFTTrainer then logs neither token
    accuracy nor entropy. Since it computes cross entropy only, a router loss, label smoothing and other losses are
    refused.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
    >>> sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))
    >>> args = TrainingArguments(tempfile.mkdtemp(), report_to=[], use_cpu=True)
    >>> data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
    >>> trainer = TicketTrainer(model=model, args=args, train_dataset=data, tickets=[2, 3])
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('model.embed_tokens.row_sets.default.rows', [2, 4])]

    After ``trainer.train()``, ``merge_rows(model).save_pretrained(folder)`` writes an ordinary model.
    """
