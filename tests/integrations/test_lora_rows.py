"""LoRA and rows as one adapter of PEFT, in both directions, and the warning where PEFT alone saves."""

from __future__ import annotations

import copy
import json
import warnings

import peft
import pytest
import torch
from tiny_models import TOKENS, batch, logits, make
from torch import nn

from kslottery_fast import attach_rows, detach_rows, get_rows, load_adapter, save_adapter
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.lora_rows import load_lora_and_rows, save_lora_and_rows
from kslottery_fast.rows import has_rows, output_role

ROLES = [(False, "frozen"), (True, "frozen"), (True, "tied"), (False, "own"), (True, "own")]


def lora(**options: object) -> object:
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def trained(model: nn.Module, config: object, role: str) -> nn.Module:
    """A PeftModel with LoRA and rows that moved."""
    model = peft.get_peft_model(copy.deepcopy(model), config)
    attach_rows(model.get_base_model(), TOKENS, output=role, freeze=False)
    with torch.no_grad():
        for parameter in get_rows(model).row_sets.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("tied", "role"), ROLES)
def test_peft_gives_the_logits_of_lora_and_rows_and_we_load_the_same(tied, role, tmp_path):
    base = make("llama", tied=tied)
    model = trained(base, lora(), role)
    want = logits(model, batch(base))
    save_lora_and_rows(model, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval()
    close(logits(theirs, batch(base)), want)
    ours = load_lora_and_rows(copy.deepcopy(base), tmp_path / "a")
    assert isinstance(ours, peft.PeftModel)
    assert output_role(ours) == role
    assert torch.equal(logits(ours.eval(), batch(base)), want)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert (logits(base, batch(base)) - want).abs().max() > 0.1
    assert "load_lora_and_rows(base_model," in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("indices", [TOKENS, {"embed_tokens": TOKENS, "lm_head": [9, 5]}], ids=["input", "both"])
def test_an_adapter_of_lora_and_tokens_that_peft_trained_loads_here(indices, tied, tmp_path):
    base = make("llama", tied=tied)
    model = peft.get_peft_model(copy.deepcopy(base), lora(trainable_token_indices=indices))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    want = logits(model.eval(), batch(base))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"with more than rows in it; load both by .*load_lora_and_rows"):
        load_adapter(copy.deepcopy(base), tmp_path)
    ours = load_lora_and_rows(copy.deepcopy(base), tmp_path, name="en-de", is_trainable=True)
    close(logits(ours.eval(), batch(base)), want)
    names = {name.split(".")[-2] for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert names == {"en-de"} | ({"output"} if isinstance(indices, dict) else set())


def test_a_saved_adapter_trains_on_and_saves_again(tmp_path):
    base = make("llama")
    save_lora_and_rows(trained(base, lora(task_type="CAUSAL_LM"), "tied"), tmp_path / "a")
    model = load_lora_and_rows(copy.deepcopy(base), tmp_path / "a", is_trainable=True)
    before = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)
    model(**batch(base), labels=batch(base)["input_ids"]).loss.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], values) for name, values in before.items())
    want = logits(model.eval(), batch(base))
    save_lora_and_rows(model, tmp_path / "a")
    close(logits(peft.PeftModel.from_pretrained(base, tmp_path / "a").eval(), batch(base)), want)


def test_auto_peft_loads_lora_and_rows(tmp_path):
    base = make("llama")
    base.save_pretrained(tmp_path / "base")
    for task_type, auto in ((None, "AutoPeftModel"), ("CAUSAL_LM", "AutoPeftModelForCausalLM")):
        model = trained(base, lora(task_type=task_type), "frozen")
        save_lora_and_rows(model, tmp_path / "a", base_model_name_or_path=tmp_path / "base")
        found = getattr(peft, auto).from_pretrained(tmp_path / "a").eval()
        close(logits(found, batch(base)), logits(model, batch(base)))


@pytest.mark.parametrize("wrapped", [True, False])
def test_peft_says_that_it_saves_without_the_rows_until_they_are_off(wrapped, tmp_path):
    model = peft.get_peft_model(make("llama"), lora())
    inner = model.get_base_model()
    attach_rows(inner, TOKENS, freeze=False)
    model = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="PEFT saves its adapter without the attached rows; .*save_lora_and_rows"):
        model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2
    detach_rows(model if wrapped else model.get_base_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model.save_pretrained(tmp_path / "b", save_embedding_layers=False)


def test_peft_says_so_too_if_its_adapter_came_after_the_rows(tmp_path):
    model = peft.get_peft_model(attach_rows(make("llama"), TOKENS), lora())
    logits(model, batch(model.get_base_model()))  # a forward is where the rows see the adapter
    with pytest.warns(RuntimeWarning, match="PEFT saves its adapter without the attached rows"):
        model.save_pretrained(tmp_path / "a", save_embedding_layers=False)


def test_what_one_adapter_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    base = make("llama")

    def refused(message: str, model: nn.Module) -> None:
        with pytest.raises(InputError, match=message):
            save_lora_and_rows(model, tmp_path / "a")

    refused("model is a LlamaForCausalLM: expected a PeftModel", base)
    refused("no rows are attached", peft.get_peft_model(copy.deepcopy(base), lora()))
    on_head = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    refused("LoRA is on lm_head, whose rows the adapter has to name", trained(base, on_head, "frozen"))
    biased = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    refused("has trained bias entries, for which PEFT has no place", trained(make("phi", tied=False), biased, "own"))
    other = peft.get_peft_model(copy.deepcopy(base), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    refused("expected one LoRA adapter", attach_rows(other, TOKENS, freeze=False))
    broken = trained(base, lora(), "frozen")
    get_rows(broken).rows.data[0, 0] = float("nan")
    refused("1 of 3 rows hold NaN or Inf", broken)
    assert not list(tmp_path.iterdir())


def test_lora_on_the_head_of_an_untied_model_is_kept_beside_input_rows(tmp_path):
    base = make("llama", tied=False)
    on_head = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = trained(base, on_head, "frozen")
    save_lora_and_rows(model, tmp_path / "a")
    want = logits(model, batch(base))
    close(logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval(), batch(base)), want)
    assert torch.equal(logits(load_lora_and_rows(base, tmp_path / "a").eval(), batch(base)), want)


def test_what_does_not_load_leaves_the_base_as_it_was(tmp_path):
    base = make("llama")
    save_adapter(attach_rows(copy.deepcopy(base), TOKENS), tmp_path / "rows")
    with pytest.raises(InputError, match=r"holds rows and no LoRA matrices; load it by kslottery_fast.load_adapter"):
        load_lora_and_rows(base, tmp_path / "rows")
    peft.get_peft_model(copy.deepcopy(base), lora()).save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    with pytest.raises(InputError, match="is a LORA adapter with more than rows in it; load it with PEFT"):
        load_lora_and_rows(base, tmp_path / "lora")
    with pytest.raises(InputError, match="model has adapters or rows already"):
        load_lora_and_rows(attach_rows(copy.deepcopy(base), TOKENS), tmp_path / "rows")
    save_lora_and_rows(trained(base, lora(), "frozen"), tmp_path / "both")
    base.get_input_embeddings().max_norm = 1.0
    with pytest.raises(InputError, match="max_norm"):
        load_lora_and_rows(base, tmp_path / "both")
    assert not has_rows(base)
    assert not any("lora" in name for name, _ in base.named_parameters())


def test_a_fresh_base_and_tokenizer_grow_for_lora_and_rows(tiny_llama, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<tea>"])
    model = tiny_llama(True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = peft.get_peft_model(model, lora())
    attach_rows(model.get_base_model(), [320], output="tied", freeze=False)
    save_lora_and_rows(model, tmp_path / "a", tokenizer=tokenizer)
    fresh = copy.deepcopy(tiny_tokenizer)
    ours = load_lora_and_rows(tiny_llama(True), tmp_path / "a", tokenizer=fresh).eval()
    assert fresh.convert_tokens_to_ids("<tea>") == 320
    inputs = {"input_ids": torch.tensor([[5, 320, 9]])}
    assert torch.equal(logits(ours, inputs), logits(model.eval(), inputs))
