"""Attached rows under DeepSpeed's ZeRO stages on two CPU processes (gloo), against one process with both batches.

    pip install deepspeed && DS_ACCELERATOR=cpu torchrun --nproc-per-node 2 tests/integrations/deepspeed_zero.py

Run by hand: DeepSpeed is no dependency of this package or of its tests, and it compiles a helper when it starts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import TOKENS, batch, make

from kslottery_fast import InputError, RowAdamW, attach_rows, get_rows, ks_select_rows, merge_rows
from kslottery_fast.rows.adapter_file import load_adapter, save_adapter
from kslottery_fast.rows.attach import output_role
from kslottery_fast.rows.distributed import gather_rows

STEPS = 4


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    """The loss on the batch of this process."""
    inputs = batch(make("llama"), seed=2 * step + rank)
    return model(**inputs, labels=inputs["input_ids"]).loss


def alone(output: str) -> nn.Module:
    """The result of one process with the batches of both."""
    model = attach_rows(make("llama"), TOKENS, output=output)
    optimizer = RowAdamW([get_rows(model).rows], lr=0.05)
    for step in range(STEPS):
        ((loss_of(model, step, 0) + loss_of(model, step, 1)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def together(stage: int, output: str, whole_up_to: int) -> nn.Module:
    """The model after training by DeepSpeed. Parameters up to this size stay whole under ZeRO-3."""
    model = attach_rows(make("llama"), TOKENS, output=output)
    rows = [get_rows(model).rows]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=RowAdamW(rows, lr=0.05),
        model_parameters=rows,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": whole_up_to},
        },
    )
    for step in range(STEPS):
        engine.backward(loss_of(engine, step, dist.get_rank()))
        engine.step()
    return engine.module


def check(model: nn.Module, expected: nn.Module, stage: int) -> float:
    """Compare rows, tickets and the saved adapter. Return the largest difference of a row."""
    rows, want = gather_rows(model), get_rows(expected).rows.detach()
    difference = (rows - want).abs().max().item()
    assert difference < 1e-6, difference
    assert (want - get_rows(attach_rows(make("llama"), TOKENS)).rows).abs().max() > 0.1
    assert ks_select_rows(model, top_k=2) == ks_select_rows(expected, top_k=2)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        if dist.get_rank() == 0:
            loaded = load_adapter(make("llama"), folder)
            assert output_role(loaded) == output_role(expected)
            assert torch.equal(get_rows(loaded).rows, rows)
    if stage == 3:
        with pytest.raises(InputError, match="sharded"):
            merge_rows(model)
    return difference


def main() -> None:
    """Every stage, with a head that follows and with one that does not."""
    deepspeed.init_distributed(dist_backend="gloo")
    for stage, whole_up_to in ((1, 0), (2, 0), (3, 0), (3, 100_000)):
        for output in ("frozen", "tied"):
            model = together(stage, output, whole_up_to)
            difference = check(model, alone(output), stage)
            if dist.get_rank() == 0:
                whole = f", parameters whole up to {whole_up_to:,}" if stage == 3 else ""
                print(f"ZeRO-{stage}{whole}, head {output}: rows differ by {difference:.1e} at most", flush=True)
    if dist.get_rank() == 0:
        print(f"DeepSpeed {deepspeed.__version__}, torch {torch.__version__}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
