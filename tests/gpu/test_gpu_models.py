"""Rows attached to a model on a real GPU: tables that are quantized or offloaded, and a tied head that follows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast import RowAdamW, attach_rows, get_rows, ks_select_rows

VOCAB, WIDTH, TRAINED = 300, 64, [7, 290, 41]


class Tied(nn.Module):
    """The smallest model with an embedding and a head that share one table."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.embedding.weight = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.head.weight = self.embedding.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_input_embeddings(self, module: nn.Embedding) -> None:
        self.embedding = module

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids).tanh())


class Int8Embedding(nn.Embedding):
    """A table of int8 with one scale a row, as bitsandbytes and torchao keep it."""

    scale: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(*table.shape)
        self.register_buffer("scale", table.abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((table / self.scale).round().char(), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids] * self.scale[ids]


def some_ids() -> torch.Tensor:
    ids = torch.randint(VOCAB, (4, 32), generator=torch.Generator().manual_seed(1))
    ids[:, ::3] = torch.tensor(TRAINED)[torch.arange(11) % 3]
    return ids


def move_rows(model: nn.Module) -> None:
    change = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        get_rows(model).rows.add_(change.to(get_rows(model).rows.device))


def outputs_and_gradient(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = model(ids)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.device)
    (out * weights).sum().backward()
    grad = get_rows(model).rows.grad
    assert grad is not None
    return out.detach().cpu(), grad.cpu()


def assert_trains_as_on_the_cpu(there: nn.Module, here: nn.Module, device: torch.device, ids: torch.Tensor) -> None:
    for model in (there, here):
        move_rows(model)
    for ours, theirs in zip(outputs_and_gradient(there, ids.to(device)), outputs_and_gradient(here, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert sorted(ks_select_rows(there, top_k=3).token_ids.tolist()) == sorted(TRAINED)
    for model in (there, here):
        RowAdamW([get_rows(model).rows], lr=0.1).step()
    torch.testing.assert_close(get_rows(there).rows.cpu(), get_rows(here).rows, rtol=1e-3, atol=1e-3)


def test_rows_over_a_quantized_table_train_as_on_the_cpu(gpu):
    embedding = Int8Embedding(Tied().embedding.weight.detach())
    there, here = attach_rows(copy.deepcopy(embedding).to(gpu), TRAINED), attach_rows(embedding, TRAINED)
    plain = here(some_ids()).detach()
    assert torch.equal(there(some_ids().to(gpu)).detach().cpu(), plain)
    assert_trains_as_on_the_cpu(there, here, gpu, some_ids())


def test_rows_over_an_offloaded_table_train_as_on_the_cpu(gpu):
    accelerate = pytest.importorskip("accelerate", reason="offloading is done by accelerate")
    model, here = Tied(), attach_rows(Tied(), TRAINED)
    accelerate.cpu_offload(model, execution_device=gpu)
    assert model.embedding.weight.is_meta
    there = attach_rows(model, TRAINED)
    assert get_rows(there).rows.device.type == gpu.type
    assert_trains_as_on_the_cpu(there, here, gpu, some_ids())


@pytest.mark.parametrize("output", ["tied", "frozen"])
def test_the_columns_of_a_tied_head_follow_the_rows_or_stay(gpu, output):
    table = Tied().embedding.weight.detach()
    there = attach_rows(Tied().to(gpu), TRAINED, output=output)
    here = attach_rows(Tied(), TRAINED, output=output)
    assert_trains_as_on_the_cpu(there, here, gpu, some_ids())
    edited = table.clone()
    edited[TRAINED] = get_rows(there).rows.detach().cpu()
    want = F.linear(F.embedding(some_ids(), edited).tanh(), edited if output == "tied" else table)
    with torch.no_grad():
        torch.testing.assert_close(there(some_ids().to(gpu)).cpu(), want, rtol=1e-4, atol=1e-4)
