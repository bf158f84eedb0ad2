"""What each of two processes does for test_trainer_processes.py: a TicketTrainer trains, stops, and resumes.

Run as RANK=r python two_process_trainer.py FOLDER, with the variables that torchrun and accelerate launch set.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_models import make
from tiny_trainer import TOKENS, losses, train
from torch.nn.parallel import DistributedDataParallel

from kslottery_fast.rows.attach import attach_rows, get_rows


def run(folder: Path, resume: Path | None = None) -> tuple[torch.Tensor, list[float]]:
    """The rows [k, d] and the losses."""
    model = attach_rows(make("llama"), TOKENS)
    options = {"supervised_logits_only": True, "ddp_backend": "gloo", "weight_decay": 0.1}
    trainer = train(model, folder, resume=resume, tickets=None, **options)
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return get_rows(model).rows.detach(), losses(trainer)


def main(folder: Path) -> None:
    straight, losses_straight = run(folder / "straight")
    resumed, losses_resumed = run(folder / "resumed", resume=folder / "straight" / "checkpoint-3")
    rank = dist.get_rank()
    torch.save({"a": straight, "b": resumed, "losses": [losses_straight, losses_resumed]}, folder / f"{rank}.pt")
    dist.barrier()
    # Nothing is left to do, and taking the group down hung where two Trainers of a process had used it.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
