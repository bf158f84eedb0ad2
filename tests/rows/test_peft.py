"""Adapter directories against PEFT itself, in both directions."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ALL, V, batch, logits, make
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.adapter_file import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from kslottery_fast.rows.attach import (
    attach_rows,
    detach_rows,
    get_rows,
    merge_rows,
    output_role,
    untie_output,
)
from kslottery_fast.rows.tables import embedding_table, is_tied

peft = pytest.importorskip("peft")

TOKENS = [7, 5, 40]
WITHOUT_HEAD_BIAS = [name for name in ALL if name != "phi"]


UNTIED = ["llama", "t5", "m2m100"]
"""Without a tied head only the number of tables tells architectures apart."""


def tuned(model: nn.Module, **options: str) -> nn.Module:
    attach_rows(model, TOKENS, **options)
    with torch.no_grad():
        get_rows(model).rows.add_(torch.randn(3, embedding_table(model).shape[1]))
    return model


def with_peft(model: nn.Module, path: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(model), path).eval(), batch(model))


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal but for the order of sums in the head: a product of k columns against one of V."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("name", WITHOUT_HEAD_BIAS)
class TestPeftGivesTheLogitsOfOurMergedModel:
    def test_on_a_tied_base_whose_head_follows(self, name, tmp_path):
        base = make(name)
        model = tuned(copy.deepcopy(base), output="tied")
        save_adapter(model, tmp_path / "a")
        want = logits(merge_rows(model), batch(base))
        check(with_peft(base, tmp_path / "a"), want)
        assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["peft_type"] == "TRAINABLE_TOKENS"

    def test_on_a_tied_base_whose_head_is_frozen(self, name, tmp_path):
        base = make(name)
        model = tuned(copy.deepcopy(base), output="frozen")
        save_adapter(model, tmp_path / "a")
        want = logits(merge_rows(model), batch(base))
        assert torch.equal(with_peft(base, tmp_path / "a"), want)
        # and the same directory on the untied copy
        assert torch.equal(with_peft(untie_output(base), tmp_path / "a"), want)


@pytest.mark.parametrize("name", UNTIED)
def test_peft_gives_our_merged_logits_on_an_untied_copy_of_a_tied_base(name, tmp_path):
    base = make(name)
    model = tuned(copy.deepcopy(base), output="frozen")
    save_adapter(model, tmp_path / "a", base="untied")
    want = logits(merge_rows(model), batch(base))
    assert torch.equal(with_peft(untie_output(base), tmp_path / "a"), want)
    assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["peft_type"] == "TRAINABLE_TOKENS"
    assert "untie_output" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("name", UNTIED)
def test_peft_gives_our_merged_logits_of_rows_trained_on_an_untied_copy(name, tmp_path):
    base = untie_output(make(name))
    model = tuned(copy.deepcopy(base))
    save_adapter(model, tmp_path / "a")
    assert torch.equal(with_peft(base, tmp_path / "a"), logits(merge_rows(model), batch(base)))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma"])
def test_peft_gives_our_merged_logits_on_a_model_that_was_never_tied(name, tmp_path):
    base = make(name, tied=False)
    model = tuned(copy.deepcopy(base))
    save_adapter(model, tmp_path / "a")
    want = logits(merge_rows(model), batch(base))
    assert torch.equal(with_peft(base, tmp_path / "a"), want)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "a").merge_and_unload()
    assert torch.equal(logits(merged, batch(base)), want)


def test_peft_would_change_the_head_too_if_an_input_only_set_were_written_as_tied(tmp_path):
    # The trap that the LoRA form is there for.
    base = make("llama")
    model = tuned(copy.deepcopy(base), output="frozen")
    save_adapter(model, tmp_path / "a", base="untied")
    want = logits(model, batch(base))
    assert (with_peft(base, tmp_path / "a") - want).abs().max() > 0.1


def test_a_model_that_is_untied_although_its_config_says_tied_is_exported_right(tmp_path):
    # What a merged T5 is after from_pretrained: T5Config always says tied, and PEFT goes by the config.
    merge_rows(tuned(make("t5"))).save_pretrained(tmp_path / "merged")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    assert base.config.tie_word_embeddings
    assert not is_tied(base)
    model = tuned(copy.deepcopy(base))
    save_adapter(model, tmp_path / "a")
    assert torch.equal(with_peft(base, tmp_path / "a"), logits(merge_rows(model), batch(base)))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("tied", "role", "modules"),
    [  # LoRA on a head that follows the rows is refused
        (False, "frozen", ["q_proj"]),
        (False, "frozen", ["q_proj", "lm_head"]),
        (True, "frozen", ["q_proj"]),
        (True, "frozen", ["q_proj", "lm_head"]),
        (True, "tied", ["q_proj"]),
    ],
)
def test_rows_beside_lora_are_saved_for_the_model_without_lora(tied, role, modules, wrapped, tmp_path):
    base = make("llama", tied=tied)
    inner = copy.deepcopy(base)
    model = peft.get_peft_model(inner, peft.LoraConfig(r=2, target_modules=modules, ensure_weight_tying=False))
    alone, target = tuned(copy.deepcopy(base), output=role), model if wrapped else inner
    attach_rows(target, TOKENS, freeze=False, output=role)
    with torch.no_grad():
        get_rows(model).rows.copy_(get_rows(alone).rows)
    save_adapter(target, tmp_path / "a")
    save_adapter(alone, tmp_path / "b")
    assert (tmp_path / "a" / CONFIG_FILE).read_text() == (tmp_path / "b" / CONFIG_FILE).read_text()
    rows = get_rows(alone).rows.detach().clone()
    check(with_peft(base, tmp_path / "a"), logits(merge_rows(alone), batch(base)))
    again = load_adapter(detach_rows(target), tmp_path / "a")
    assert output_role(again) == role
    assert torch.equal(get_rows(again).rows, rows)


def test_auto_peft_finds_the_base_model(tmp_path):
    make("llama").save_pretrained(tmp_path / "base")
    model = tuned(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval())
    save_adapter(model, tmp_path / "a", base_model_name_or_path=tmp_path / "base")
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert torch.equal(logits(found, batch(model)), logits(model, batch(model)))
    assert str(tmp_path / "base") in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("name", WITHOUT_HEAD_BIAS)
@pytest.mark.parametrize(("role", "base"), [("tied", "auto"), ("frozen", "auto"), ("frozen", "untied")])
def test_our_own_round_trip_is_exact(name, role, base, tmp_path):
    model = tuned(make(name), output=role)
    save_adapter(model, tmp_path / "a", base=base)
    again = load_adapter(make(name), tmp_path / "a")
    assert get_rows(again).token_ids.tolist() == TOKENS
    assert torch.equal(get_rows(again).rows, get_rows(model).rows)
    assert output_role(again) == role
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))


@pytest.mark.parametrize("name", WITHOUT_HEAD_BIAS)
def test_input_only_rows_load_onto_an_untied_copy(name, tmp_path):
    model = tuned(make(name))
    save_adapter(model, tmp_path / "a")
    again = load_adapter(untie_output(make(name)), tmp_path / "a")
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "opt"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_an_adapter_that_peft_trained_and_saved_loads_here(name, tied, lora, tmp_path):
    base = make(name) if tied else untie_output(make(name))
    target = next(key for key, module in base.named_modules() if module is base.get_input_embeddings())
    if lora:
        config = peft.LoraConfig(target_modules="dummy-target-modules", trainable_token_indices=TOKENS)
    else:
        config = peft.TrainableTokensConfig(token_indices=TOKENS, target_modules=[target])
    trained = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    want = logits(trained.eval(), batch(base))
    trained.save_pretrained(tmp_path)
    ours = load_adapter(base, tmp_path)
    check(logits(ours, batch(base)), want)
    assert output_role(ours) == ("tied" if tied else "frozen")


def test_a_tied_head_trains_the_rows_as_peft_does_the_padding_row_too():
    model, tokens = make("llama"), [5, 0, 7]
    config = peft.TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    attach_rows(model, tokens, output="tied")
    inputs = batch(model)
    inputs["input_ids"][:, -1] = 0
    for each in (model, theirs):
        each(**inputs, labels=inputs["input_ids"]).loss.backward()
    (want,) = (parameter.grad for parameter in theirs.parameters() if parameter.requires_grad)
    assert want.norm(dim=1).min() > 0.1
    torch.testing.assert_close(get_rows(model).rows.grad, want)


def test_a_head_with_a_bias_is_exported_only_in_the_form_that_peft_computes_right(tmp_path):
    base = make("phi")
    model = tuned(copy.deepcopy(base))
    with pytest.raises(InputError, match="lm_head has a bias, which PEFT drops"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    save_adapter(model, tmp_path / "a", base="untied")
    assert torch.equal(with_peft(untie_output(base), tmp_path / "a"), logits(model, batch(model)))


@pytest.mark.parametrize("tokens", [[9], list(range(V))])
def test_one_row_and_all_rows_keep_the_head_apart_too(tokens, tmp_path):
    base = make("llama")
    model = attach_rows(copy.deepcopy(base), tokens)
    with torch.no_grad():
        get_rows(model).rows.add_(1)
    save_adapter(model, tmp_path / "a")
    assert torch.equal(with_peft(base, tmp_path / "a"), logits(model, batch(base)))
    assert torch.equal(get_rows(load_adapter(base, tmp_path / "a")).rows, get_rows(model).rows)


def test_bfloat16_models_round_the_float32_rows_of_the_adapter_as_a_merge_does(tmp_path):
    base = make("llama").to(torch.bfloat16)
    model = tuned(copy.deepcopy(base))
    save_adapter(model, tmp_path / "a")
    assert load_file(tmp_path / "a" / WEIGHTS_FILE).popitem()[1].dtype == torch.float32
    want = logits(merge_rows(model), batch(base))
    assert torch.equal(with_peft(base, tmp_path / "a"), want)
    assert torch.equal(logits(load_adapter(base, tmp_path / "a"), batch(base)), want)
