"""A TicketTrainer on two gloo processes, as torchrun and accelerate launch start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from tiny_models import make
from tiny_trainer import TOKENS, train
from torch import nn

from kslottery_fast.integrations.trainer import load_checkpoint
from kslottery_fast.rows import attach_rows, get_rows

HERE = Path(__file__).parent


def launch(folder: Path) -> list[dict[str, torch.Tensor]]:
    """What both processes saved."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_process_trainer.py", folder],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


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
