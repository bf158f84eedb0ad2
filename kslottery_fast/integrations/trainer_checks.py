"""What a TicketTrainer refuses: settings of the Trainer that it would otherwise ignore without a word."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.integrations import is_deepspeed_zero3_enabled

from kslottery_fast.base.errors import InputError


def check_one_gpu(trainer: transformers.Trainer) -> None:
    """Refuse several GPUs in one process, for a model with rows or a loss over supervised positions."""
    if trainer.args.n_gpu > 1:
        # The copies that nn.DataParallel makes share the slot maps of the first GPU, and get a part of each batch.
        raise InputError(
            f"args.n_gpu is {trainer.args.n_gpu}: the Trainer would use nn.DataParallel, which cannot train rows; "
            "start one process for each GPU with `accelerate launch` or `torchrun`, or show one GPU alone with "
            "CUDA_VISIBLE_DEVICES"
        )


def check_whole_parameters(trainer: transformers.Trainer) -> None:
    """Refuse arguments that shard parameters: the Trainer has one process write a checkpoint, with what it holds."""
    zero3 = trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()
    if trainer.is_fsdp_enabled or zero3:
        raise InputError(
            f"the Trainer is to shard the parameters ({'DeepSpeed ZeRO-3' if zero3 else 'FSDP'}), and its checkpoints "
            "would not hold the rows; use plain data parallelism or ZeRO-1 or 2 (what trains is small), or a loop of "
            "your own, see docs/training.md"
        )


def check_optimizer(trainer: transformers.Trainer, nonfinite: str) -> None:
    """Refuse arguments of an optimizer that is not there: another ``optim``, ``nonfinite`` for the caller's own."""
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        if nonfinite != "raise":
            raise InputError("nonfinite is for the Trainer's own RowAdamW; give it to the optimizer that you pass")
        return
    optim: Any = trainer.args.optim
    name = getattr(optim, "value", optim)
    if name not in ("adamw_torch", "adamw_torch_fused"):
        raise InputError(
            f"args.optim is {name!r}, and a TicketTrainer trains with RowAdamW, which is torch's AdamW: leave optim as "
            "it is, or attach the rows yourself and pass optimizers=(your optimizer, None)"
        )


def check_plain_loss(trainer: transformers.Trainer) -> None:
    """Refuse a loss that is more than the cross entropy which ``supervised_logits_only`` computes."""
    kind = getattr(trainer.args, "loss_type", "nll")  # of TRL's SFTConfig
    if (
        trainer.label_smoother is not None
        or trainer.compute_loss_func is not None
        or kind not in ("nll", "chunked_nll")
    ):
        raise InputError(
            "supervised_logits_only computes plain cross entropy; drop label smoothing, compute_loss_func or "
            "loss_type, or leave supervised_logits_only out"
        )
    config: Any = getattr(trainer.model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    if any(getattr(part, "output_router_logits", False) for part in (config, text)):
        raise InputError(
            "supervised_logits_only leaves out the router loss that config.output_router_logits adds; set it to False "
            "(with an SFTTrainer by router_aux_loss_coef=0.0), or leave supervised_logits_only out"
        )
