"""Rows as an overlay: what attach, detach, merge and transfer promise, on tiny models of nine
architectures."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import ALL, DECODERS, V, batch, logits, make
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kslottery_fast.errors import InputError
from kslottery_fast.rows import (
    RowEmbedding,
    active_token_ids,
    attach_rows,
    detach_rows,
    embedding_table,
    get_rows,
    is_tied,
    merge_rows,
    output_role,
    transfer_rows,
    untie_output,
)

TOKENS = [7, 5, 40]


def tuned(model: nn.Module, **options: str) -> nn.Module:
    """Attach rows and move them far."""
    attach_rows(model, TOKENS, **options)
    with torch.no_grad():
        get_rows(model).rows.add_(torch.randn(3, embedding_table(model).shape[1]))
    return model


def reference_logits(model: nn.Module, rows: torch.Tensor, role: str) -> torch.Tensor:
    """Logits with the rows written into the table by hand; a frozen head sees the old table through a
    hook."""
    model = copy.deepcopy(model)
    table, head = embedding_table(model), model.get_output_embeddings()
    old = table.detach().clone()
    with torch.no_grad():
        table[TOKENS] = rows.to(table.dtype)
    if role == "frozen" and is_tied(model):
        bias = getattr(head, "bias", None)
        head.register_forward_hook(lambda _m, args, _out: nn.functional.linear(args[0], old, bias))
    return logits(model, batch(model))


@pytest.mark.parametrize("name", ALL)
class TestEveryArchitecture:
    def test_attached_rows_change_nothing_until_they_train_and_only_they_are_trainable(self, name):
        model = make(name)
        before = logits(model, batch(model))
        attach_rows(model, TOKENS)
        assert torch.equal(logits(model, batch(model)), before)
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert len(trainable) == 1
        assert trainable[0] is get_rows(model).rows
        assert trainable[0].shape == (3, embedding_table(model).shape[1])
        assert trainable[0].dtype == torch.float32

    @pytest.mark.parametrize("role", ["frozen", "tied"])
    def test_logits_are_those_of_a_table_edited_by_hand(self, name, role):
        model = make(name)
        base = copy.deepcopy(model)
        assert is_tied(model)
        tuned(model, output=role)
        assert output_role(model) == role
        want = reference_logits(base, get_rows(model).rows.detach(), role)
        got = logits(model, batch(model))
        # A tied head computes its k columns in a product of its own: the same sums in another order.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        assert (got - logits(base, batch(base))).abs().max() > 0.01

    @pytest.mark.parametrize("role", ["frozen", "tied"])
    def test_merge_keeps_the_logits_and_survives_save_pretrained_bit_for_bit(self, name, role, tmp_path):
        model = tuned(make(name), output=role)
        attached = logits(model, batch(model))
        merge_rows(model)
        merged = logits(model, batch(model))
        torch.testing.assert_close(merged, attached, rtol=1e-5, atol=1e-5 * attached.abs().max().item())
        assert get_rows(model) is None
        assert is_tied(model) == (role == "tied")
        if role == "frozen":
            assert torch.equal(merged, attached)
            assert model.config.tie_word_embeddings is False
        model.save_pretrained(tmp_path)
        auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
        again = auto.from_pretrained(tmp_path).eval()
        assert torch.equal(logits(again, batch(again)), merged)

    def test_detach_gives_back_the_original_bit_for_bit(self, name):
        model = make(name)
        model.get_input_embeddings().weight.requires_grad_(False)
        flags = {key: p.requires_grad for key, p in model.named_parameters()}
        classes = {key: type(module) for key, module in model.named_modules()}
        state = {key: value.clone() for key, value in model.state_dict().items()}
        attributes = {key: set(vars(module)) for key, module in model.named_modules()}
        detach_rows(tuned(model, output="tied"))
        assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
        assert {key: type(module) for key, module in model.named_modules()} == classes
        assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_generate_uses_the_rows(self, name):
        model = tuned(make(name))
        inputs = {key: batch(model)[key] for key in ("input_ids", "attention_mask")}
        attached = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        merged = merge_rows(model).generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        assert torch.equal(attached, merged)

    @pytest.mark.parametrize("role", ["frozen", "tied"])
    def test_gradients_are_those_of_the_dense_table(self, name, role):
        model = make(name)
        if role == "frozen":
            untie_output(model)
        dense = copy.deepcopy(model)
        tuned(model, output=role if role == "tied" else "auto")
        with torch.no_grad():
            # An untied seq2seq model has copies of the table: all get the rows, their gradients add up.
            tables = {id(m.weight): m.weight for m in dense.modules() if _reads_table(m, dense)}.values()
            for table in tables:
                table[TOKENS] = get_rows(model).rows
        for each in (model, dense):
            each(**batch(each)).logits.square().mean().backward()
        want = sum(table.grad[TOKENS] for table in tables if table.grad is not None)
        got = get_rows(model).rows.grad
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5 * want.abs().max().item())

    def test_gradient_checkpointing_gives_the_same_gradient(self, name):
        model = tuned(make(name)).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if hasattr(model.config, "dropout_rate"):
            model.config.dropout_rate = 0.0
        for module in model.modules():
            for attribute in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": True})
                model.enable_input_require_grads()
            get_rows(model).rows.grad = None
            model(**batch(model), use_cache=False).logits.square().mean().backward()
            gradients.append(get_rows(model).rows.grad.clone())
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
        assert gradients[0].abs().sum() > 0

    def test_a_deep_copy_is_independent_and_complete(self, name):
        model = tuned(make(name), output="tied")
        want = logits(model, batch(model))
        other = copy.deepcopy(model)
        with torch.no_grad():
            get_rows(model).rows.zero_()
        assert torch.equal(logits(other, batch(other)), want)
        merged = logits(merge_rows(other), batch(other))
        torch.testing.assert_close(merged, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        assert get_rows(model) is not None

    def test_transfer_writes_only_these_rows_and_only_the_input_role(self, name):
        source, target = make(name), make(name)
        with torch.no_grad():
            embedding_table(source).add_(1)
        old = embedding_table(target).clone()
        want = reference_logits(target, embedding_table(source)[TOKENS].detach(), "frozen")
        assert transfer_rows(source, target, TOKENS) is target
        new = embedding_table(target)
        assert (new != old).any(dim=1).nonzero().flatten().tolist() == sorted(TOKENS)
        assert torch.equal(logits(target, batch(target)), want)


def _reads_table(module: nn.Module, model: nn.Module) -> bool:
    table = embedding_table(model)
    return (
        isinstance(module, nn.Embedding)
        and module.weight.shape == table.shape
        and torch.equal(module.weight, table)
    )


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


def test_state_dict_round_trip_restores_rows_ids_and_slots():
    model = tuned(make("llama"))
    other = attach_rows(make("llama"), [11, 12, 13])
    other.load_state_dict(model.state_dict())
    assert get_rows(other).token_ids.tolist() == TOKENS
    assert torch.equal(get_rows(other).slots, get_rows(model).slots)
    assert torch.equal(logits(other, batch(other)), logits(model, batch(model)))


@pytest.mark.parametrize(
    ("ids", "message"), [([5, 5, 6], "5 more than once"), ([5, 6, V], f"has {V}, outside")]
)
def test_a_state_dict_with_bad_token_ids_is_refused(ids, message):
    model = tuned(make("llama"))
    state = model.state_dict()
    state["model.embed_tokens.token_ids"] = torch.tensor(ids)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert get_rows(model).token_ids.tolist() == TOKENS


def test_the_padding_row_is_read_but_gets_no_gradient():
    model = make("llama")
    attach_rows(model, [5, 0, 7])
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
    attach_rows(model, range(V))
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


def test_tickets_of_another_vocabulary_are_refused():
    tickets = SimpleNamespace(token_ids=torch.tensor(TOKENS), vocab_size=V + 4)
    with pytest.raises(InputError, match=f"of a table with {V + 4} rows, this one has {V}"):
        attach_rows(make("llama"), tickets)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "is empty"),
        (torch.empty(0, dtype=torch.int64), "is empty"),
        ([3, 4, 3], "has 3 more than once"),
        ([3, -1], "has -1, outside 0..59"),
        ([3, 60, 61], r"has 60, outside 0..59 \(2 such ids\)"),
        ([1.0, 2.0], "dtype torch.float32, expected integers"),
        (torch.ones(4, dtype=torch.bool), "mask.nonzero"),
        ([[1, 2]], r"shape \[1, 2\], expected one dimension"),
    ],
)
def test_bad_token_ids_are_refused_and_the_model_stays_as_it_was(ids, message):
    model = make("llama")
    with pytest.raises(InputError, match=message):
        attach_rows(model, ids)
    assert get_rows(model) is None
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("ids", ["text", 5, None, {"input_ids": [1]}])
def test_token_ids_of_a_wrong_type_are_a_type_error(ids):
    with pytest.raises(TypeError, match="must be a sequence of integers or Tickets"):
        attach_rows(make("llama"), ids)


def test_attaching_twice_is_refused():
    model = tuned(make("llama"))
    with pytest.raises(InputError, match="attached to this model already"):
        attach_rows(model, [1])


@pytest.mark.parametrize("function", [merge_rows, detach_rows, output_role])
def test_nothing_attached_is_refused(function):
    with pytest.raises(InputError, match="no rows are attached"):
        function(make("llama"))


@pytest.mark.parametrize(
    "function", [attach_rows, lambda m, ids, **k: transfer_rows(torch.zeros(V, 16), m, ids, **k)]
)
def test_an_unknown_output_is_refused(function):
    with pytest.raises(InputError, match="must be 'auto', 'frozen' or 'tied', not 'both'"):
        function(make("llama"), [1], output="both")


def test_tied_output_of_an_untied_model_is_refused():
    with pytest.raises(InputError, match="this model is not tied"):
        attach_rows(make("llama", tied=False), [1], output="tied")


def test_a_model_without_an_input_embedding_is_refused():
    with pytest.raises(
        InputError, match="Linear has no input embedding: expected an nn.Embedding, found none"
    ):
        attach_rows(nn.Linear(2, 2), [1])
    with pytest.raises(InputError, match="found a Linear"):
        embedding_table(SimpleNamespace(get_input_embeddings=lambda: nn.Linear(2, 2)))


def _raise_not_implemented():
    raise NotImplementedError


def test_a_model_that_does_not_say_where_its_embedding_is_is_refused():
    with pytest.raises(InputError, match="found none"):
        embedding_table(SimpleNamespace(get_input_embeddings=_raise_not_implemented))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: setattr(e, "max_norm", 1.0), "max_norm"),
        (lambda e: setattr(e, "scale_grad_by_freq", True), "scale_grad_by_freq"),
        (lambda e: e.to("meta"), "offloaded"),
        (
            lambda e: setattr(e, "weight", nn.Parameter(torch.zeros(V, 16).char(), requires_grad=False)),
            "quantized",
        ),
        (lambda e: setattr(e, "forward", lambda ids: ids), "forward has been replaced"),
    ],
)
def test_an_embedding_that_rows_do_not_fit_is_refused(spoil, message):
    embedding = nn.Embedding(V, 16)
    spoil(embedding)
    with pytest.raises(InputError, match=message):
        attach_rows(embedding, [1])
    assert type(embedding) is nn.Embedding


class _OwnForward(nn.Embedding):
    def forward(self, ids):
        return nn.functional.embedding(ids, self.weight)


def test_an_embedding_class_that_would_ignore_the_rows_is_refused():
    embedding = _OwnForward(V, 16)
    with pytest.raises(InputError, match="_OwnForward does not call nn.Embedding.forward"):
        attach_rows(embedding, [1])
    assert type(embedding) is _OwnForward
    assert embedding.weight.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_merging_rows_with_nan_is_refused_and_leaves_them_attached(bad):
    model = tuned(make("llama"))
    get_rows(model).rows.data[1, 3] = bad
    with pytest.raises(InputError, match=r"1 of 3 rows hold NaN or Inf \(token ids 5\)"):
        merge_rows(model)
    assert get_rows(model) is not None
    assert is_tied(model)


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


def test_untying_keeps_the_logits_and_separates_the_tables():
    model = make("llama")
    want = logits(model, batch(model))
    assert untie_output(model) is model
    assert not is_tied(model)
    assert model.config.tie_word_embeddings is False
    model.tie_weights()
    assert not is_tied(model)
    assert torch.equal(logits(model, batch(model)), want)
    assert untie_output(model) is model


def test_untying_with_rows_attached_is_refused():
    with pytest.raises(InputError, match="call it before attach_rows"):
        untie_output(tuned(make("llama")))


def test_a_head_scaled_by_the_tying_flag_cannot_be_untied_and_nothing_is_merged():
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.UMT5ForConditionalGeneration(config)
    if not is_tied(model):
        pytest.skip("this release of transformers does not tie UMT5")
    tuned(model)
    with pytest.raises(InputError, match="UMT5ForConditionalGeneration scales its logits"):
        merge_rows(model)
    assert get_rows(model) is not None


def test_attached_rows_of_the_source_are_transferred():
    source, target = tuned(make("llama")), torch.zeros(V, 16)
    transfer_rows(source, target, [5, 9])
    assert torch.equal(target[5], get_rows(source).rows[1])
    assert torch.equal(target[9], embedding_table(source)[9])
    assert target.abs().sum(dim=1).nonzero().flatten().tolist() == [5, 9]


def test_a_tied_transfer_changes_the_head_too():
    source, target = make("llama", tied=False), make("llama")
    with torch.no_grad():
        embedding_table(source).add_(1)
    transfer_rows(source, target, TOKENS, output="tied")
    assert is_tied(target)
    assert torch.equal(embedding_table(target)[TOKENS], embedding_table(source)[TOKENS])


def test_transfer_refuses_what_does_not_fit_and_writes_nothing():
    table = torch.zeros(V, 16)
    for source, target, ids, message in [
        (torch.zeros(V, 8), table, [1], "source has rows of dimension 8, target of 16"),
        (torch.zeros(5, 16), table, [7], r"token_ids \(in the source\) has 7"),
        (torch.zeros(V), table, [1], "source must be a floating-point table"),
        (torch.full((V, 16), float("nan")), table, [1], "cannot transfer: 1 of 1 rows"),
        (torch.ones(V, 16), tuned(make("llama")), [1], "the target has attached rows"),
    ]:
        with pytest.raises(InputError, match=message):
            transfer_rows(source, target, ids)
    with pytest.raises(TypeError, match="source must be a model or a tensor"):
        transfer_rows([1.0], table, [1])
    assert table.abs().sum() == 0


def test_active_token_ids_reads_lists_and_tensors_and_leaves_out_minus_100():
    data = [
        {"input_ids": [9, 3]},
        {"input_ids": torch.tensor([[3, 1]]), "labels": [-100, 8]},
        {"other": [50]},
    ]
    assert active_token_ids(data).tolist() == [1, 3, 9]
    assert active_token_ids(data, keys=("input_ids", "labels")).tolist() == [1, 3, 8, 9]


def test_a_dataset_without_tokens_or_with_negative_ones_is_refused():
    with pytest.raises(InputError, match="no token under input_ids or labels"):
        active_token_ids([{"input_ids": []}], keys=("input_ids", "labels"))
    with pytest.raises(InputError, match="negative token id -3"):
        active_token_ids([{"input_ids": [4, -3]}])


def test_memory_and_time_of_an_attachment_do_not_grow_with_the_table():
    # Nothing of size [V, d] beside the table: the largest new tensor is the slot map, int32 [V].
    embedding = attach_rows(nn.Embedding(5000, 64), [1, 2])
    new = {**dict(embedding.named_buffers()), "rows": embedding.rows}
    assert {name: tensor.numel() for name, tensor in new.items()} == {
        "token_ids": 2,
        "slots": 5000,
        "rows": 128,
    }


def test_every_decoder_is_covered():
    assert {"llama", "gemma", "gpt2", "opt", "qwen2"} <= set(DECODERS)
    assert {"t5", "m2m100"} <= set(ALL)
