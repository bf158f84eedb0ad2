"""A TicketTrainer on two gloo processes, as torchrun and accelerate launch start them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import make
from tiny_trainer import TOKENS, train
from torch import nn
from two_processes import run_on_two_processes

from kslottery_fast.integrations.trainer_checkpoint import load_checkpoint
from kslottery_fast.rows.attach import attach_rows, get_rows

HERE = Path(__file__).parent


def launch(folder: Path) -> list[dict[str, torch.Tensor]]:
    """What both processes saved."""
    run_on_two_processes(HERE / "two_process_trainer.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers resumes no optimizer of several CPU processes",
)
def test_two_processes_train_the_rows_of_one_with_their_batches_together_and_resume_bit_equal(tmp_path):
    first, second = launch(tmp_path)
    assert torch.equal(first["a"], second["a"])
    for process in (first, second):
        assert torch.equal(process["a"], process["b"])
    straight, resumed = first["losses"]
    assert straight == resumed
    assert len(straight) == 6
    stored = attach_rows(make("llama"), TOKENS)
    load_checkpoint(stored, tmp_path / "straight" / "checkpoint-6")
    assert torch.equal(get_rows(stored).rows, first["a"])
    # One process whose batch is that of both: the loss is a mean over the target tokens of both.
    alone: nn.Module = make("llama")
    train(alone, tmp_path / "alone", per_device_train_batch_size=6, weight_decay=0.1)
    torch.testing.assert_close(get_rows(alone).rows, first["a"], rtol=0, atol=1e-4)
