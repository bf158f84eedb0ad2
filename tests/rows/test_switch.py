"""Rows beside adapters of PEFT are switched on and off together with them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import peft
import pytest
import torch
from tiny_models import TOKENS, add_adapter, batch, logits, make
from torch import nn
from torch.nn import functional as F

from kslottery_fast import attach_rows, get_rows, mixed_rows
from kslottery_fast.optim.row_adamw import RowAdamW

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        get_rows(model).rows.add_(1.0)
    return model


def beside(order: str, *, output: str = "tied") -> nn.Module:
    """A model with LoRA and rows, both far from where they started."""
    torch.manual_seed(1)
    if order == "rows first":
        return moved(peft.get_peft_model(attach_rows(make("llama"), TOKENS, output=output), LORA))
    model = peft.get_peft_model(make("llama"), LORA)
    if order == "rows on the wrapper":
        return moved(attach_rows(model, TOKENS, output=output, freeze=False))
    attach_rows(model.get_base_model(), TOKENS, output=output, freeze=False)
    return moved(model)


ORDERS = ["peft first", "rows first", "rows on the wrapper"]


@pytest.mark.parametrize("output", ["frozen", "tied"])
@pytest.mark.parametrize("order", ORDERS)
def test_inside_disable_adapter_the_model_is_the_base_model(order, output):
    base = make("llama")
    inputs, model = batch(base), beside(order, output=output)
    want, tuned = logits(base, inputs), logits(model, inputs)
    assert (tuned - want).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), want)
        with mixed_rows(model, ["default", None]):
            assert torch.equal(logits(model, inputs), want)
        assert get_rows(model).row_sets.active == "default"  # what is in use, saved and merged stays the same
    assert torch.equal(logits(model, inputs), tuned)


def test_adapters_of_transformers_itself_switch_the_rows_too():
    base = make("llama")
    inputs, model = batch(base), attach_rows(make("llama"), TOKENS)
    add_adapter(model, LORA)
    tuned = logits(moved(model), inputs)
    model.disable_adapters()
    assert torch.equal(logits(model, inputs), logits(base, inputs))
    model.enable_adapters()
    assert torch.equal(logits(model, inputs), tuned)


def test_a_prompt_switches_rows_that_are_on_the_wrapper():
    base = make("llama")
    model = moved(attach_rows(peft.get_peft_model(make("llama"), PROMPT), TOKENS, freeze=False))
    inputs = {"input_ids": batch(base)["input_ids"]}
    assert not torch.equal(logits(model, inputs)[:, 2:], logits(base, inputs))
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(base, inputs))


def test_one_layer_that_is_off_does_not_switch_the_rows():
    model = beside("peft first")
    first = model.get_base_model().model.layers[0].self_attn.q_proj
    first.enable_adapters(False)
    assert not get_rows(model).row_sets.off()
    with model.disable_adapter():
        assert get_rows(model).row_sets.off()


def test_rows_are_on_again_once_peft_is_off():
    model = beside("rows first")
    with model.disable_adapter():
        assert get_rows(model).row_sets.off()
        base = model.unload()
        inputs = batch(base)
        assert not torch.equal(logits(base, inputs), logits(make("llama"), inputs))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_follows_its_own_adapters(copied):
    model = beside("peft first")
    other, inputs = copied(model), batch(make("llama"))
    tuned = logits(model, inputs)
    with other.disable_adapter():
        assert torch.equal(logits(other, inputs), logits(make("llama"), inputs))
        assert torch.equal(logits(model, inputs), tuned)
    assert torch.equal(logits(other, inputs), tuned)


def test_the_switch_keeps_no_model_alive():
    model = attach_rows(make("llama"), TOKENS)
    logits(model, batch(model))
    gc.disable()
    try:
        seen = weakref.ref(model)
        del model
        assert seen() is None
    finally:
        gc.enable()


def test_compiled_code_follows_the_switch_without_a_graph_break():
    model = beside("peft first")
    inputs = batch(make("llama"))
    tuned, base = logits(model, inputs), logits(make("llama"), inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(**inputs).logits, tuned)
        with model.disable_adapter():
            assert torch.equal(compiled(**inputs).logits, base)
        assert torch.equal(compiled(**inputs).logits, tuned)


def log_likelihood(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    scores = model(**inputs).logits[:, :-1].log_softmax(-1)
    return scores.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1).sum(-1)


def test_the_reference_of_direct_preference_optimization_is_the_base_model():
    base = make("llama")
    model = peft.get_peft_model(make("llama"), LORA)
    attach_rows(model.get_base_model(), TOKENS, output="tied", freeze=False)
    optimizer = RowAdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = batch(base)
    want = log_likelihood(base, inputs).detach()
    for _ in range(4):
        with torch.no_grad(), model.disable_adapter():
            reference = log_likelihood(model, inputs)
        assert torch.equal(reference, want)
        ratios = log_likelihood(model, inputs) - reference
        loss = -F.logsigmoid(0.1 * (ratios[0] - ratios[1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (log_likelihood(model, inputs) - want).abs().max() > 1.0
