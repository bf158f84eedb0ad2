"""Rows over a table that is no plain tensor in memory: quantized, offloaded by accelerate, partitioned by DeepSpeed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from tiny_models import TOKENS, Int8Embedding, V, batch, logits, make, quantized, reference_logits
from torch import nn

from kslottery_fast import add_rows, ks_select_rows, mixed_rows, transfer_rows, use_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.adapter_file import load_adapter, save_adapter
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows, merge_rows, output_role
from kslottery_fast.rows.distributed import gather_rows, replicate_rows
from kslottery_fast.rows.tables import embedding_table


class FloatSubclass(torch.Tensor):
    """A tensor subclass that says float32, as torchao's quantized tensors do."""


def moved(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        get_rows(model).rows.add_(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    return get_rows(model).rows.detach()


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_rows_over_a_quantized_table_are_those_over_its_numbers(name, tmp_path):
    model, plain = quantized(make(name, tied=False))
    base = logits(model, batch(model))
    torch.testing.assert_close(base, logits(plain, batch(plain)))
    attach_rows(model, TOKENS)
    assert torch.equal(logits(model, batch(model)), base)
    torch.testing.assert_close(get_rows(model).rows, embedding_table(plain)[TOKENS])
    rows = moved(model)
    want = reference_logits(plain, rows, "frozen")
    torch.testing.assert_close(logits(model, batch(model)), want)
    assert (want - base).abs().max() > 0.01
    assert sorted(ks_select_rows(model, top_k=3).token_ids.tolist()) == sorted(TOKENS)
    with pytest.raises(InputError, match=r"cannot merge into a table that is quantized; save .*save_adapter"):
        merge_rows(model)
    save_adapter(model, tmp_path / "adapter")
    detach_rows(model)
    assert type(model.get_input_embeddings()) is Int8Embedding
    assert torch.equal(logits(model, batch(model)), base)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model, batch(model)), want)


def test_rows_over_a_quantized_table_train_as_over_its_numbers():
    model, plain = quantized(make("llama", tied=False))
    for each in (model, plain):
        optimizer = RowAdamW([get_rows(attach_rows(each, TOKENS)).rows], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            each(**batch(each)).logits.square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(get_rows(model).rows, get_rows(plain).rows, rtol=0, atol=1e-4)
    assert (get_rows(model).rows - moved(attach_rows(make("llama", tied=False), TOKENS))).abs().max() > 0.01


def test_several_sets_mix_over_a_quantized_table():
    model, plain = quantized(make("llama", tied=False))
    outputs = []
    for each in (model, plain):
        add_rows(attach_rows(each, TOKENS), "fr", [7, 9])
        with torch.no_grad():
            get_rows(use_rows(each, "fr")).rows.add_(1)
        with mixed_rows(each, ["fr", None]):
            outputs.append(logits(each, batch(each)))
    torch.testing.assert_close(*outputs)


def test_a_tensor_subclass_is_read_by_its_module_and_never_written():
    embedding = nn.Embedding(V, 16)
    values = embedding.weight.detach().clone()
    embedding.weight = nn.Parameter(values.clone().as_subclass(FloatSubclass), requires_grad=False)
    attach_rows(embedding, TOKENS)
    rows, ids = moved(embedding), torch.tensor([[5, 6], [7, 40]])
    values[TOKENS] = rows
    assert torch.equal(embedding(ids).as_subclass(torch.Tensor), values[ids])
    with pytest.raises(InputError, match="a table that is quantized"):
        merge_rows(embedding)


def test_a_head_that_follows_is_attached_before_the_model_is_offloaded():
    model, plain = make("llama"), attach_rows(make("llama"), TOKENS, output="tied")
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(InputError, match=r"the table is offloaded.*attach the rows before accelerate offloads"):
        attach_rows(model, TOKENS, output="tied")
    other = attach_rows(make("llama"), TOKENS, output="tied")
    for each in (other, plain):
        with torch.no_grad():
            get_rows(each).rows.mul_(1.5)
    accelerate.cpu_offload(other, execution_device="cpu")
    assert embedding_table(other).is_meta
    torch.testing.assert_close(logits(other, batch(other)), logits(plain, batch(plain)))


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("llama", True), ("gemma", True), ("t5", True)])
def test_rows_over_an_offloaded_table_are_those_over_a_table_in_memory(name, tied, place, tmp_path):
    model, plain = make(name, tied=tied), make(name, tied=tied)
    if place == "memory":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    assert embedding_table(model).is_meta
    base = logits(plain, batch(plain))
    attach_rows(model, TOKENS)
    assert torch.equal(logits(model, batch(model)), base)
    rows = moved(model)
    want = reference_logits(plain, rows, "frozen")
    torch.testing.assert_close(logits(model, batch(model)), want)
    model(**batch(model)).logits.square().mean().backward()
    other = attach_rows(plain, TOKENS)
    with torch.no_grad():
        get_rows(other).rows.copy_(rows)
    other(**batch(other)).logits.square().mean().backward()
    torch.testing.assert_close(get_rows(model).rows.grad, get_rows(other).rows.grad)
    assert sorted(ks_select_rows(model, top_k=3).token_ids.tolist()) == sorted(TOKENS)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(make(name, tied=tied), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, batch(loaded)), want)
    target = torch.zeros(V, 16)
    transfer_rows(model, target, [*TOKENS, 9])  # with the attached rows
    assert torch.equal(target[[*TOKENS, 9]], torch.cat([rows, embedding_table(plain)[[9]]]))
    with pytest.raises(InputError, match="cannot merge into a table that is offloaded"):
        merge_rows(model)
    with pytest.raises(InputError, match="cannot transfer rows into a table that is offloaded"):
        transfer_rows(make(name), detach_rows(model), TOKENS)
    assert torch.equal(logits(model, batch(model)), base)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_rows_of_an_offloaded_source_are_transferred(place, tmp_path):
    source, target = make("llama"), torch.zeros(V, 16)
    want = embedding_table(source).detach()[TOKENS].clone()
    if place == "memory":
        accelerate.cpu_offload(source, execution_device="cpu")
    else:
        accelerate.disk_offload(source, str(tmp_path / "weights"), execution_device="cpu")
    assert transfer_rows(source, target, TOKENS) is target
    assert torch.equal(target[TOKENS], want)
    assert target.abs().sum(dim=1).nonzero().flatten().tolist() == sorted(TOKENS)


def test_rows_that_were_offloaded_themselves_are_not_saved(tmp_path):
    model = attach_rows(make("llama"), TOKENS)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(InputError, match=r"rows have no values .device meta.: they were offloaded; save them before"):
        save_adapter(model, tmp_path / "adapter")


class Packed4BitEmbedding(nn.Embedding):
    """Two numbers in a byte, as in bitsandbytes: the shape of the weight says nothing of V and d."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(*embedding.weight.shape)
        self.register_buffer("scale", embedding.weight.detach().abs().amax(dim=1, keepdim=True) / 7)
        codes = (embedding.weight.detach() / self.scale).round().add(8).byte()
        self.weight = nn.Parameter((codes[:, ::2] * 16 + codes[:, 1::2]).view(-1, 1), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        packed = self.weight.view(self.num_embeddings, -1)[ids]
        codes = torch.stack([packed // 16, packed % 16], dim=-1).flatten(-2)
        return (codes.float() - 8) * self.scale[ids]


def test_a_packed_table_has_the_shape_that_its_module_says(tmp_path):
    model = make("llama", tied=False)
    model.set_input_embeddings(Packed4BitEmbedding(model.get_input_embeddings()))
    assert embedding_table(model).shape == (V * 8, 1)
    base = logits(model, batch(model))
    with pytest.raises(InputError, match=f"token_ids has {V}, outside 0..{V - 1}"):
        attach_rows(model, [V])
    attach_rows(model, TOKENS)
    assert get_rows(model).slots.shape == (V,)
    assert torch.equal(logits(model, batch(model)), base)
    moved(model)
    assert ks_select_rows(model, top_k=3).vocab_size == V
    want = logits(model, batch(model))
    assert (want - base).abs().max() > 0.01
    save_adapter(model, tmp_path / "adapter")
    load_adapter(detach_rows(model), tmp_path / "adapter")
    assert torch.equal(logits(model, batch(model)), want)


def test_a_damaged_table_is_refused_and_the_model_stays_as_it_was():
    model = make("llama")
    with torch.no_grad():
        embedding_table(model)[5, 3] = float("nan")
    with pytest.raises(InputError, match=r"cannot attach rows, the table is damaged: 1 of 3 rows .*token ids 5"):
        attach_rows(model, TOKENS)
    assert not has_rows(model)
    assert embedding_table(model).requires_grad
    attach_rows(model, [7, 40])
    with pytest.raises(InputError, match="the table is damaged"):
        add_rows(model, "fr", [5])


class GatheredParameters:
    """DeepSpeed's context: parameters that are empty tensors outside have their values inside."""

    def __init__(self, parameters):
        self.parameters = parameters

    def __enter__(self):
        for each in self.parameters:
            each.data = each.ds_values

    def __exit__(self, *_):
        for each in self.parameters:
            each.data = torch.empty(0)


def test_rows_and_table_that_deepspeed_partitioned_are_gathered_to_be_read_and_never_written(monkeypatch, tmp_path):
    """With DeepSpeed itself: tests/integrations/deepspeed_zero.py."""
    monkeypatch.setitem(
        sys.modules, "deepspeed", SimpleNamespace(zero=SimpleNamespace(GatheredParameters=GatheredParameters))
    )
    model = attach_rows(make("llama"), TOKENS, output="tied")
    rows, tickets = moved(model), ks_select_rows(model, top_k=2)
    for each in (get_rows(model).rows, embedding_table(model)):
        each.ds_id, each.ds_shape, each.ds_values = 0, each.shape, each.data
        each.data = torch.empty(0)
    assert torch.equal(gather_rows(model), rows)
    assert ks_select_rows(model, top_k=2) == tickets
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(make("llama"), tmp_path / "adapter")
    assert torch.equal(get_rows(loaded).rows, rows)
    assert output_role(loaded) == "tied"
    with pytest.raises(InputError, match="cannot merge into a table that is sharded"):
        merge_rows(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(InputError, match="the rows are sharded already"):
        replicate_rows(model)
    for source, target in ((model, torch.zeros(V, 16)), (torch.zeros(V, 16), detach_rows(model))):
        with pytest.raises(InputError, match="is partitioned by DeepSpeed ZeRO-3; save its rows by save_adapter"):
            transfer_rows(source, target, TOKENS)
