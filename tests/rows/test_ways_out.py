"""Ways out of a model with rows that would lose them: each is refused in time, with the remedy."""

from __future__ import annotations

import accelerate
import huggingface_hub
import peft
import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make, tuned
from torch import nn
from transformers import AutoModelForCausalLM

from kslottery_fast import attach_rows, detach_rows, has_rows, merge_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows import get_output_rows
from kslottery_fast.rows.tables import is_tied


def no_request(*_args, **_kwargs):
    pytest.fail("the Hub was asked")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_every_way_out_of_a_model_with_rows_is_refused_and_open_again_without_them(name, monkeypatch):
    for request in ("create_repo", "upload_folder", "create_commit"):
        monkeypatch.setattr(huggingface_hub.HfApi, request, no_request)
    model = tuned(make(name))
    want = logits(model, batch(model))
    other = nn.Embedding(60, 16)
    for way, argument, remedy in (
        ("push_to_hub", "org/name", "merge_rows.*push_adapter"),
        ("save_pretrained", "never", "merge_rows.*save_adapter"),
        ("set_input_embeddings", other, "merge_rows or detach_rows"),
        ("set_output_embeddings", nn.Linear(16, 60), "merge_rows or detach_rows"),
        ("resize_token_embeddings", 70, "merge_rows or detach_rows"),
    ):
        with pytest.raises(InputError, match=rf"{way}.*{remedy}"):
            getattr(model, way)(argument)
    assert torch.equal(logits(model, batch(model)), want)
    merge_rows(model).set_input_embeddings(other)
    assert model.get_input_embeddings() is other


def test_a_file_that_from_pretrained_would_read_without_the_rows_is_not_written(tmp_path):
    model = tuned(make("llama", tied=False))
    accelerator = accelerate.Accelerator(cpu=True)
    for prepared in (model, accelerator.prepare(model)):
        with pytest.raises(
            InputError, match=r"save_model of accelerate .*rows from_pretrained ignores; call merge_rows"
        ):
            accelerator.save_model(prepared, tmp_path / "out")
    with pytest.raises(InputError, match=r"save_torch_model of huggingface_hub .*save_adapter"):
        huggingface_hub.save_torch_model(model, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    want = logits(model, batch(model))
    accelerator.save_model(merge_rows(model), tmp_path / "out")
    model.config.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), batch(model)), want)


def test_the_state_of_a_training_is_still_saved_and_loaded(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(tuned(make("llama")))
    want = logits(model, batch(model))
    accelerator.save_state(tmp_path)
    with torch.no_grad():
        model.model.embed_tokens.rows.zero_()
    accelerator.load_state(tmp_path)
    assert torch.equal(logits(model, batch(model)), want)


def test_an_embedding_that_was_replaced_by_hand_is_named_in_place_of_an_index_error():
    model = tuned(make("llama"))
    model.model.embed_tokens = nn.Embedding(60, 16)
    with pytest.raises(InputError, match=r"no longer in the model.*call detach_rows"):
        merge_rows(model)
    assert not has_rows(detach_rows(model))
    assert "save_pretrained" not in vars(model)


CONFIGS = {
    "LoRA": peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    "LoRA on the head": peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    "modules_to_save": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "token indices": peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3]}),
    "TrainableTokens": peft.TrainableTokensConfig(token_indices=[3], target_modules=["embed_tokens"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_on_a_module_that_reads_rows_is_refused_when_it_is_put_there(name):
    model = tuned(make("llama"), output="tied")
    want = logits(model, batch(model))
    with pytest.raises(
        InputError, match=r"PEFT would put its \w+ around the Row\w+ .*take the name .*or call detach_r"
    ):
        peft.get_peft_model(model, CONFIGS[name])
    assert has_rows(model)
    assert torch.equal(logits(model, batch(model)), want)


def test_peft_on_a_head_that_keeps_its_own_rows_is_fine():
    model = attach_rows(make("llama", tied=False), TOKENS)
    assert not is_tied(model)
    assert has_rows(peft.get_peft_model(model, CONFIGS["LoRA on the head"]))


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["LoRA on the head"],
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": [3]}),
    ],
)
@pytest.mark.parametrize("output", ["tied", "own"])
def test_a_tied_head_that_peft_has_wrapped_gets_no_rows(output, config):
    model = peft.get_peft_model(make("llama"), config)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(InputError, match=r"the output head is wrapped by PEFT .*or use output='frozen'"):
        attach_rows(model.get_base_model(), TOKENS, output=output, freeze=False)
    assert not has_rows(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_head_that_was_replaced_is_named_and_the_rest_can_be_detached():
    model = attach_rows(make("llama", tied=False), TOKENS, output="own")
    model.lm_head = nn.Linear(16, V, bias=False)
    for act in (merge_rows, get_output_rows):
        with pytest.raises(InputError, match=r"the output head .* no longer in the model; call detach_rows"):
            act(model)
    assert not has_rows(detach_rows(model))
