"""Settings of the Trainer that a TicketTrainer does not support. It refuses them, so that none is ignored."""

from typing import Any

import transformers
from transformers.integrations import is_deepspeed_zero3_enabled

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attachment import get_rows


def check_one_gpu(trainer: transformers.Trainer) -> None:
    """Refuse several GPUs in one process, which neither rows nor a loss over supervised positions can use."""
    if trainer.args.n_gpu > 1:
        # The copies made by nn.DataParallel share the slot maps of the first GPU, and each gets a part of the batch.
        raise InputError(
            f"args.n_gpu is {trainer.args.n_gpu}: the Trainer would use nn.DataParallel, which cannot train rows; "
            "start one process for each GPU with `accelerate launch` or `torchrun`, or show one GPU alone with "
            "CUDA_VISIBLE_DEVICES"
        )


def check_whole_parameters(trainer: transformers.Trainer) -> None:
    """Refuse arguments that shard parameters: one process writes the checkpoint, and would hold a part of them."""
    zero3 = trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()
    if trainer.is_fsdp_enabled or zero3:
        raise InputError(
            f"args ask the Trainer to shard the parameters ({'DeepSpeed ZeRO-3' if zero3 else 'FSDP'}), and its "
            "checkpoints would not hold the rows; use plain data parallelism or ZeRO-1 or 2 (what trains is small), or "
            "write your own loop, see docs/distributed.md"
        )


def check_optimizer(trainer: transformers.Trainer, nonfinite: str, *, lazy: bool) -> None:
    """Refuse an ``optim`` other than AdamW, and ``nonfinite`` and ``lazy`` for an optimizer that the caller passes."""
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        for name, given in (("nonfinite", nonfinite != "raise"), ("lazy", lazy)):
            if given:
                raise InputError(f"{name} is for the Trainer's own RowAdamW; set it on the optimizer that you pass")
        return
    optim: Any = trainer.args.optim
    name = getattr(optim, "value", optim)
    if name not in ("adamw_torch", "adamw_torch_fused"):
        raise InputError(
            f"args.optim is {name!r}, and a TicketTrainer trains with RowAdamW, which is torch's AdamW: leave "
            "out optim, or attach the rows yourself and pass optimizers=(your optimizer, None)"
        )


def check_reference(trainer: transformers.Trainer) -> None:
    """Refuse the copy of an adapter that TRL takes for its reference, since rows that train have no such copy."""
    model: Any = trainer.model
    copied = "ref" in getattr(model, "peft_config", {})
    trains = any(parameter.requires_grad for parameter in get_rows(model).row_sets.parameters())
    if copied and trains and getattr(trainer, "ref_model", None) is None:
        raise InputError(_REFERENCE)


def refusal_of(error: BaseException) -> InputError | None:
    """Return what to raise in place of an error that TRL stumbles into when it copies an adapter."""
    stumbled = isinstance(error, AttributeError) and "RowSets has no attribute `ref`" in str(error)
    return InputError(_REFERENCE) if stumbled else None


_REFERENCE = (
    "TRL takes a copy of the model's adapter as the reference, and the reference would read the rows that train; pass "
    "ref_model=, or a model without an adapter and peft_config="
)


def check_plain_loss(trainer: transformers.Trainer) -> None:
    """Refuse a loss that is more than the cross entropy that ``supervised_logits_only`` computes."""
    kind = getattr(trainer.args, "loss_type", "nll")  # of TRL's SFTConfig
    if (
        trainer.label_smoother is not None
        or trainer.compute_loss_func is not None
        or kind not in ("nll", "chunked_nll")
    ):
        raise InputError(
            "supervised_logits_only computes plain cross entropy; drop label smoothing, compute_loss_func or "
            "loss_type, or leave out supervised_logits_only"
        )
    config: Any = getattr(trainer.model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    if any(getattr(part, "output_router_logits", False) for part in (config, text)):
        raise InputError(
            "supervised_logits_only leaves out the router loss that config.output_router_logits adds; set it to False "
            "(with an SFTTrainer by router_aux_loss_coef=0.0), or leave out supervised_logits_only"
        )
