"""Rows on models that other libraries change as well: what they froze, where they move things, how they copy."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from tiny_models import TOKENS, batch, make
from torch import nn

from kslottery_fast import add_rows, detach_rows, merge_rows, mixed_rows
from kslottery_fast.rows import attach_rows, get_rows

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"])
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("take_off", [detach_rows, merge_rows])
@pytest.mark.parametrize("config", [LORA, PROMPT], ids=["lora", "prompt"])
class TestWhatPeftFrozeStaysFrozen:
    def test_when_the_rows_came_first(self, config, take_off):
        model = peft.get_peft_model(attach_rows(make("llama"), TOKENS), config)
        adapter = trained(model)
        assert adapter
        assert not any("row_sets" in name for name in adapter)
        assert trained(take_off(model)) == adapter

    @pytest.mark.parametrize("freeze", [True, False])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_when_peft_came_first(self, config, take_off, freeze, wrapped):
        base = make("llama")
        model = peft.get_peft_model(base, config)
        adapter = trained(model)
        target = model if wrapped else base
        attach_rows(target, TOKENS, freeze=freeze)
        rows = {name for name in trained(model) if name.endswith("row_sets.default.rows")}
        assert len(rows) == 1
        assert (trained(model) == rows) or not freeze or config is PROMPT
        assert (trained(model) == rows | adapter) or freeze
        take_off(target)
        assert trained(model) == adapter


def test_what_attach_rows_froze_trains_again_once_peft_is_off():
    model = attach_rows(make("llama"), TOKENS)
    names = set(dict(make("llama").named_parameters()))
    peft.get_peft_model(model, LORA).unload()
    assert trained(detach_rows(model)) == names


def test_a_parameter_that_was_switched_on_or_off_since_keeps_its_flag():
    model = make("llama")
    model.model.norm.weight.requires_grad_(False)
    others = trained(model)
    attach_rows(model, TOKENS, freeze=False)
    model.model.norm.weight.requires_grad_(True)
    up = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    name = next(name for name, parameter in model.named_parameters() if parameter is up)
    assert trained(detach_rows(model)) == others - {name} | {"model.norm.weight"}


def test_rows_that_peft_froze_say_so_once_and_only_in_training():
    model = peft.get_peft_model(attach_rows(make("llama"), TOKENS), LORA).eval()
    inputs = batch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**inputs)
        with torch.no_grad():
            model.train()(**inputs)
    with pytest.warns(RuntimeWarning, match=r"rows are read in training but do not train.*after it, or get_rows"):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**inputs)
        attach_rows(peft.get_peft_model(make("llama"), LORA), TOKENS, freeze=False).train()(**inputs)


def test_every_set_that_does_not_train_says_so():
    model = add_rows(attach_rows(make("llama"), TOKENS).train(), "fr", [9])
    get_rows(model).row_sets["fr"].rows.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**batch(model))
    with pytest.warns(RuntimeWarning, match="do not train"), mixed_rows(model, ["default", "fr"]):
        model(**batch(model))
