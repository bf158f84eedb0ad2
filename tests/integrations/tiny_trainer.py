"""A tiny dataset, and TicketTrainers that train on it in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from kslottery_fast.integrations.trainer import TicketTrainer

TOKENS = [7, 5, 9, 40, 12, 13]

_OURS = ("tickets", "output", "output_ids", "supervised_logits_only", "nonfinite", "compute_metrics")


def dataset(n: int = 24, *, length: int = 9, low: int = 5, high: int = 41) -> list[dict[str, list[int]]]:
    """Sequences of unequal target lengths, so that the normalisation of accumulated batches shows."""
    generator = torch.Generator().manual_seed(3)
    data = []
    for index in range(n):
        ids = torch.randint(low, high, (length,), generator=generator).tolist()
        prompt = 3 + index % 4
        labels = [-100] * prompt + ids[prompt:]
        data.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * length})
    return data


def arguments(folder: Path, **options: object) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": [],
        "seed": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**(defaults | options))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(model: nn.Module, folder: Path, *, resume: Path | None = None, **options: object) -> TicketTrainer:
    ours = {key: options.pop(key) for key in _OURS if key in options}
    trainer = TicketTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=dataset(),
        eval_dataset=dataset(6),
        **({"tickets": TOKENS} | ours),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer
