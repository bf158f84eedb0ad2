"""Attach, detach, merge, transfer and generate on tiny models of nine architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import ALL, TOKENS, V, batch, logits, make, reference_logits, tuned
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import (
    attach_rows,
    detach_rows,
    get_rows,
    has_rows,
    merge_rows,
    output_role,
    untie_output,
)
from kslottery_fast.rows.tables import embedding_table, is_tied
from kslottery_fast.rows.transfer import transfer_rows


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
        assert not has_rows(model)
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

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing_gives_the_same_gradient(self, name, reentrant):
        model = tuned(without_dropout(make(name))).train()
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                if reentrant:
                    model.enable_input_require_grads()
            get_rows(model).rows.grad = None
            model(**batch(model), use_cache=False).logits.square().mean().backward()
            gradients.append(get_rows(model).rows.grad.clone())
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
        assert gradients[0].abs().sum() > 0

    @pytest.mark.parametrize("rows", [V + 9, V - 11])
    def test_a_table_that_was_resized_or_padded_takes_rows(self, name, rows):
        model = make(name)
        model.resize_token_embeddings(rows, mean_resizing=False)
        inputs = batch(model)
        inputs = {key: value.clamp(max=rows - 1) for key, value in inputs.items()}
        tokens = [7, 5, rows - 1]
        inputs["input_ids"][:, 3] = rows - 1
        before = logits(model, inputs)
        attach_rows(model, tokens, output="tied")
        torch.testing.assert_close(logits(model, inputs), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
        with torch.no_grad():
            get_rows(model).rows.add_(torch.randn_like(get_rows(model).rows))
        attached = logits(model, inputs)
        assert attached.shape[-1] == rows
        merged = logits(merge_rows(model), inputs)
        torch.testing.assert_close(merged, attached, rtol=1e-5, atol=1e-5 * attached.abs().max().item())
        assert (merged - before).abs().max() > 0.01

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_models_train_float32_rows(self, name, dtype):
        model = attach_rows(without_dropout(make(name)).to(dtype), TOKENS)
        rows, optimizer = get_rows(model).rows, RowAdamW([get_rows(model).rows], lr=1e-4)
        start = rows.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch(model)).logits.float().square().mean().backward()
            assert rows.grad.dtype == torch.float32
            optimizer.step()
        moved = (rows - start).abs().amax(dim=1)
        assert moved[:2].min() > 1e-4  # far below what a step of 16 bits can express near one
        assert moved[2] == 0  # its token does not occur
        assert torch.equal(embedding_table(model)[TOKENS].float(), start)

    def test_a_deep_copy_is_independent_and_complete(self, name):
        model = tuned(make(name), output="tied")
        want = logits(model, batch(model))
        other = copy.deepcopy(model)
        with torch.no_grad():
            get_rows(model).rows.zero_()
        assert torch.equal(logits(other, batch(other)), want)
        merged = logits(merge_rows(other), batch(other))
        torch.testing.assert_close(merged, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        assert has_rows(model)

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


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    if hasattr(model.config, "dropout_rate"):
        model.config.dropout_rate = 0.0
    return model


def _reads_table(module: nn.Module, model: nn.Module) -> bool:
    table = embedding_table(model)
    return isinstance(module, nn.Embedding) and module.weight.shape == table.shape and torch.equal(module.weight, table)
