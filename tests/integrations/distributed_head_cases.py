"""Rows of the output head on two gloo processes; distributed_cases.py runs these cases along with its own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tiny_models import TOKENS, batch, make
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from kslottery_fast import RowAdamW, attach_rows, get_rows
from kslottery_fast.rows import gather_rows, get_output_rows, replicate_rows

OUTPUT_TOKENS, STEPS = [40, 11, 7, 2], 3
NUMBERS = len(TOKENS) * 16 + len(OUTPUT_TOKENS) * 16 + len(OUTPUT_TOKENS)
"""What trains: rows of the input, rows of the head, entries of its bias."""


def attached() -> nn.Module:
    """An untied model whose head has a bias."""
    return attach_rows(make("phi", tied=False), TOKENS, output="own", output_ids=OUTPUT_TOKENS)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    own = get_output_rows(model)
    assert own.row_bias is not None
    return [get_rows(model).rows, own.rows, own.row_bias]


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    inputs = batch(getattr(model, "module", model), seed=10 * step + rank)
    return model(**inputs).logits.square().mean()


def train(model: nn.Module) -> None:
    optimizer = RowAdamW(parameters_of(model), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step, dist.get_rank()).backward()
        optimizer.step()


def alone() -> list[torch.Tensor]:
    """What trains after the same steps in one process, on the average of both losses."""
    model = attached()
    optimizer = RowAdamW(parameters_of(model), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        torch.stack([loss_of(model, step, rank) for rank in range(2)]).mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters_of(model)]


def check(model: nn.Module) -> None:
    start = [parameter.detach() for parameter in parameters_of(attached())]
    for got, want, first in zip(parameters_of(model), alone(), start, strict=True):
        torch.testing.assert_close(_whole(got), want, rtol=0, atol=1e-4)
        assert (want - first).abs().max() > 0.1
    assert torch.equal(gather_rows(model, table="output"), _whole(get_output_rows(model).rows))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def ddp_reduces_the_rows_of_both_tables_and_trains_as_one_process() -> None:
    model, sizes = attached(), []
    wrapped = DistributedDataParallel(model)

    def count(_, bucket):
        sizes.append(bucket.buffer().numel())
        return dist.all_reduce(bucket.buffer() / 2, async_op=True).get_future().then(lambda f: f.value()[0])

    wrapped.register_comm_hook(None, count)
    train(wrapped)
    assert sum(sizes) == NUMBERS * STEPS, sizes
    check(wrapped)


def fsdp2_trains_rows_of_both_tables_as_one_process() -> None:
    for replicated in (True, False):
        model = attached()
        if replicated and dist.get_rank() == 1:
            for parameter in parameters_of(model):
                parameter.data.zero_()  # all processes start from the rows of the first one
        ignored = replicate_rows(model) if replicated else set()
        assert ignored == (set(parameters_of(model)) if replicated else set())
        fully_shard(model, ignored_params=ignored)
        assert all(isinstance(parameter, DTensor) != replicated for parameter in parameters_of(model))
        assert isinstance(model.lm_head.weight, DTensor)
        train(model)
        check(model)


HEAD_CASES = {
    case.__name__: case
    for case in (
        ddp_reduces_the_rows_of_both_tables_and_trains_as_one_process,
        fsdp2_trains_rows_of_both_tables_as_one_process,
    )
}
