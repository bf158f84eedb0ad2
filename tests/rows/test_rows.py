"""What rows promise beyond the logits: dtypes, copies, hooks, state dicts, padding, and their errors."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make, reference_logits, tuned
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import (
    attach_rows,
    attached_model,
    detach_rows,
    get_rows,
    has_rows,
    merge_rows,
    output_role,
    untie_output,
)
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.rows.sets import add_rows, mixed_rows, use_rows
from kslottery_fast.rows.tables import embedding_table, is_tied
from kslottery_fast.rows.transfer import transfer_rows


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma"])
def test_an_untied_model_keeps_its_head(name):
    model = make(name, tied=False)
    head = model.get_output_embeddings().weight.clone()
    assert not is_tied(model)
    want = reference_logits(model, make(name, tied=False).get_input_embeddings().weight[TOKENS] + 1, "frozen")
    attach_rows(model, TOKENS)
    with torch.no_grad():
        get_rows(model).rows.add_(1)
    assert torch.equal(logits(model, batch(model)), want)
    merge_rows(model)
    assert torch.equal(model.get_output_embeddings().weight, head)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_stay_float32_with_their_values_when_the_model_is_cast(dtype):
    model = tuned(make("llama"), output="tied")
    rows = get_rows(model).rows
    values = rows.detach().clone()
    model.to(dtype)
    assert embedding_table(model).dtype == dtype
    assert get_rows(model).rows is rows
    assert model.get_output_embeddings().rows is rows
    assert rows.dtype == torch.float32
    assert torch.equal(rows, values)
    attached = logits(model, batch(model))
    assert attached.dtype == dtype
    rows.grad = torch.ones_like(rows)
    model.half()
    assert rows.grad.dtype == torch.float32
    model.type(dtype)  # this casts integers too
    assert get_rows(model).slots.dtype == torch.int32
    assert get_rows(model).token_ids.tolist() == TOKENS


def test_merging_into_bfloat16_gives_the_attached_logits_bit_for_bit():
    model = tuned(make("llama").to(torch.bfloat16))
    attached = logits(model, batch(model))
    assert torch.equal(logits(merge_rows(model), batch(model)), attached)


def test_a_float64_model_has_float64_rows():
    model = make("llama").double()
    before = logits(model, batch(model))
    attach_rows(model, TOKENS)
    assert get_rows(model).rows.dtype == torch.float64
    assert torch.equal(logits(model, batch(model)), before)


def test_the_padding_row_is_read_but_gets_no_gradient():
    model = make("llama")
    attach_rows(model, [5, 0, 7], train_padding=False)
    assert model.model.embed_tokens.padding_idx == 0
    with torch.no_grad():
        get_rows(model).rows[1] = 3.0
    assert torch.equal(get_rows(model)(torch.tensor([0])), torch.full((1, 16), 3.0))
    inputs = batch(model)
    inputs["input_ids"][:, 2] = 0
    model(**inputs).logits.square().mean().backward()
    gradient = get_rows(model).rows.grad
    assert gradient[1].abs().max() == 0
    assert gradient[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma", "phi"])
def test_a_tied_head_trains_the_padding_row_as_the_dense_table_does(name, mixed):
    model, dense, tokens = make(name), make(name), [5, 0, 7]
    assert model.get_input_embeddings().padding_idx == 0
    inputs = batch(model)
    inputs["input_ids"][:, -1] = 0
    attach_rows(model, tokens, output="tied")
    with mixed_rows(model, ["default"] * 2) if mixed else nullcontext():
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    dense(**inputs, labels=inputs["input_ids"]).loss.backward()
    want = embedding_table(dense).grad[tokens]
    assert want.norm(dim=1).min() > 0.05
    torch.testing.assert_close(get_rows(model).rows.grad, want, rtol=2e-4, atol=2e-5 * want.abs().max().item())


def test_a_scaled_embedding_scales_the_rows_and_keeps_its_attributes():
    model = make("gemma")
    embedding = model.get_input_embeddings()
    scale = float(embedding.embed_scale)
    assert scale != 1.0
    tuned(model)
    assert isinstance(embedding, RowEmbedding)
    assert float(embedding.embed_scale) == scale
    torch.testing.assert_close(embedding(torch.tensor([7]))[0], get_rows(model).rows[0] * scale)


def test_a_bias_of_a_tied_head_is_kept():
    model = make("phi")
    bias = model.lm_head.bias.detach().clone()
    assert bias.abs().min() > 0
    base = logits(model, batch(model))
    attach_rows(model, TOKENS, output="tied")
    torch.testing.assert_close(logits(model, batch(model)), base)


def test_the_table_is_the_models_own_parameter_and_is_never_written_while_attached():
    model = make("llama")
    table = model.model.embed_tokens.weight
    values = table.detach().clone()
    tuned(model)
    model(**batch(model)).logits.sum().backward()
    assert get_rows(model).weight is table
    assert table.grad is None
    assert torch.equal(table, values)


def test_hooks_on_the_embedding_keep_firing():
    model = make("llama")
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda _m, _a, out: seen.append(out.shape))
    logits(tuned(model), batch(model))
    logits(detach_rows(model), batch(model))
    assert seen == [torch.Size([2, 9, 16])] * 2


def test_accelerates_hooks_reach_the_rows():
    hooks = pytest.importorskip("accelerate.hooks")
    model = make("llama")
    hooks.add_hook_to_module(model.model.embed_tokens, hooks.ModelHook())
    plain = logits(model, batch(model))
    tuned(model)
    assert not torch.equal(logits(model, batch(model)), plain)
    assert torch.equal(logits(detach_rows(model), batch(model)), plain)


def test_all_rows_of_a_table_may_be_attached():
    model = make("llama")
    before = logits(model, batch(model))
    attach_rows(model, range(V), train_padding=False)
    assert torch.equal(logits(model, batch(model)), before)


def test_int32_token_ids_are_looked_up():
    model = tuned(make("llama"))
    inputs = batch(model)
    want = logits(model, inputs)
    inputs["input_ids"] = inputs["input_ids"].int()
    assert torch.equal(logits(model, inputs), want)


def test_tickets_give_their_ids_and_are_not_aliased():
    tickets = SimpleNamespace(token_ids=torch.tensor(TOKENS), vocab_size=V)
    model = attach_rows(make("llama"), tickets)
    get_rows(model).token_ids.zero_()
    assert tickets.token_ids.tolist() == TOKENS


@pytest.mark.parametrize("function", [merge_rows, detach_rows, output_role])
def test_nothing_attached_is_refused(function):
    with pytest.raises(InputError, match="no rows are attached"):
        function(make("llama"))


@pytest.mark.parametrize("function", [attach_rows, lambda m, ids, **k: transfer_rows(torch.zeros(V, 16), m, ids, **k)])
def test_an_unknown_output_is_refused(function):
    with pytest.raises(InputError, match="output is 'both': expected 'auto', 'frozen', 'tied' or 'own'"):
        function(make("llama"), [1], output="both")


def test_tied_output_of_an_untied_model_is_refused():
    with pytest.raises(InputError, match="this model is not tied"):
        attach_rows(make("llama", tied=False), [1], output="tied")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_merging_rows_with_nan_is_refused_and_leaves_them_attached(bad):
    model = tuned(make("llama"))
    get_rows(model).rows.data[1, 3] = bad
    with pytest.raises(InputError, match=r"1 of 3 rows hold NaN or Inf \(token ids 5\)"):
        merge_rows(model)
    assert has_rows(model)
    assert is_tied(model)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_survive_a_merge_without_the_memory_to_untie_the_head(name, monkeypatch):
    model = tuned(make(name))
    want, flags = logits(model, batch(model)), {key: p.requires_grad for key, p in model.named_parameters()}
    clone, clones = torch.Tensor.clone, []

    def full(tensor, *args, **kwargs):
        clones.append(tensor.shape)
        # T5 has three copies to make; the last one does not fit.
        if len(clones) == (3 if name == "t5" else 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clone(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", full)
        with pytest.raises(torch.OutOfMemoryError):
            merge_rows(model)
    assert set(clones) == {embedding_table(model).shape}
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
    assert is_tied(model)
    assert torch.equal(logits(model, batch(model)), want)
    assert torch.equal(logits(merge_rows(model), batch(model)), want)


@pytest.mark.parametrize("function", [untie_output, lambda model: transfer_rows(torch.ones(V, 16), model, TOKENS)])
def test_a_table_without_the_memory_for_its_copies_stays_tied(function, monkeypatch):
    model = make("t5")
    want, clones = logits(model, batch(model)), []

    def full(tensor):
        clones.append(tensor.shape)
        if len(clones) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tensor.detach() + 0

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", full)
        with pytest.raises(torch.OutOfMemoryError):
            function(model)
    assert len({id(m.weight) for m in (model.shared, model.encoder.embed_tokens, model.lm_head)}) == 1
    assert torch.equal(logits(model, batch(model)), want)


def test_merging_rows_that_overflow_float16_is_refused():
    model = tuned(make("llama").half())
    get_rows(model).rows.data[0, 0] = 1e6
    with pytest.raises(InputError, match=r"cannot merge into a torch.float16 table.*token ids 7"):
        merge_rows(model)


def test_save_pretrained_and_resize_are_refused_while_attached(tmp_path):
    model = tuned(make("llama"))
    for part in (model, model.model, copy.deepcopy(model)):
        with pytest.raises(InputError, match="merge_rows"):
            part.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="resize_token_embeddings needs a model without"):
            part.resize_token_embeddings(V + 4)
    assert not list(tmp_path.iterdir())
    merge_rows(model).resize_token_embeddings(V + 4)
    model.save_pretrained(tmp_path)


def test_memory_and_time_of_an_attachment_do_not_grow_with_the_table():
    # Nothing of size [V, d] besides the table: the largest new tensor is the slot map, int32 [V].
    embedding = attach_rows(nn.Embedding(5000, 64), [1, 2])
    row_set = embedding.row_sets["default"]
    assert not list(embedding.buffers())  # which DistributedDataParallel would send around in every forward
    assert [tuple(p.shape) for p in embedding.parameters()] == [(5000, 64), (2, 64)]
    assert {name: v.numel() for name, v in vars(row_set).items() if torch.is_tensor(v)} == {
        "_token_ids": 2,
        "_slots": 5000,
    }


def test_a_compiled_model_is_looked_through_and_gives_the_same_logits_and_gradient():
    model = tuned(make("llama"), output="tied")
    want = model(**batch(model)).logits
    want.square().mean().backward()
    gradient, get_rows(model).rows.grad = get_rows(model).rows.grad, None
    compiled = torch.compile(model, backend="aot_eager")
    assert attached_model(compiled) is model
    got = compiled(**batch(model)).logits
    got.square().mean().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(get_rows(compiled).rows.grad, gradient)


def test_an_embedding_with_several_sets_compiles_without_a_graph_break():
    embedding = attach_rows(nn.Embedding(V, 8, padding_idx=0), [5, 0, 7], train_padding=False)
    add_rows(embedding, "fr", [9])
    ids = torch.tensor([[5, 9, 0], [7, 1, 9]])
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    for name in ("default", "fr", None):
        use_rows(embedding, name)
        assert torch.equal(compiled(ids), embedding(ids))
    with mixed_rows(embedding, ["fr", "default"]):
        assert torch.equal(compiled(ids), embedding(ids))
