"""Adapters of models without a head, and the kind of model that an adapter states: what PEFT's own loaders take."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
import transformers as T
from packaging.version import Version
from tiny_models import make, tuned
from torch import nn

from kslottery_fast.rows.adapter_file import CONFIG_FILE, load_adapter, save_adapter
from kslottery_fast.rows.attach import detach_rows

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SIZES | TEXT | {"num_key_value_heads": 2, "tie_word_embeddings": True}
T5 = TEXT | {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
MODERN = TEXT | SIZES | {"cls_token_id": 1, "sep_token_id": 2}

WITHOUT_HEAD = {
    "BertModel": lambda: T.BertModel(T.BertConfig(**SIZES, **TEXT)),
    "RobertaForSequenceClassification": lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**SIZES, **TEXT)),
    "LlamaForSequenceClassification": lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**LLAMA)),
    "LlamaModel": lambda: T.LlamaModel(T.LlamaConfig(**LLAMA)),
    "T5EncoderModel": lambda: T.T5EncoderModel(T.T5Config(**T5)),
    "ModernBertModel": lambda: T.ModernBertModel(T.ModernBertConfig(**MODERN, reference_compile=False)),
    "Gemma3TextModel": lambda: T.Gemma3TextModel(T.Gemma3TextConfig(head_dim=8, **LLAMA)),
}


def whisper() -> nn.Module:
    sizes = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    lengths = {"max_source_positions": 8, "max_target_positions": 8, "num_mel_bins": 4}
    config = T.WhisperConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes, **lengths, **TEXT)
    return T.WhisperForConditionalGeneration(config)


def llava() -> nn.Module:
    vision = T.CLIPVisionConfig(**SIZES, image_size=8, patch_size=4)
    return T.LlavaForConditionalGeneration(
        T.LlavaConfig(vision_config=vision, text_config=T.LlamaConfig(**LLAMA), image_token_id=59)
    )


def first(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[7, 9, 5, 40, 2]]))[0]


@pytest.mark.parametrize("name", WITHOUT_HEAD)
def test_rows_of_a_model_without_a_head_are_saved_and_load_here_and_in_peft(name, tmp_path):
    if name == "ModernBertModel" and Version(T.__version__) < Version("5.20"):
        pytest.skip("transformers does not read the config of ModernBERT that it has written")
    torch.manual_seed(0)
    base = WITHOUT_HEAD[name]().eval()
    model = tuned(copy.deepcopy(base))
    save_adapter(model, tmp_path / "a")
    assert not torch.equal(first(model), first(base))
    assert torch.equal(first(load_adapter(copy.deepcopy(base), tmp_path / "a")), first(model))
    assert torch.equal(first(peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()), first(model))


@pytest.mark.parametrize(
    ("made", "auto"),
    [
        (lambda: make("llama"), "AutoPeftModelForCausalLM"),
        (lambda: make("t5"), "AutoPeftModelForSeq2SeqLM"),
        (whisper, "AutoPeftModel"),
        (llava, "AutoPeftModel"),
        (WITHOUT_HEAD["BertModel"], "AutoPeftModel"),
    ],
    ids=["llama", "t5", "whisper", "llava", "bert"],
)
def test_an_adapter_states_the_kind_of_model_under_which_auto_peft_loads_it(made, auto, tmp_path):
    torch.manual_seed(0)
    model = tuned(made().eval(), output="frozen")
    save_adapter(model, tmp_path / "a", base_model_name_or_path=tmp_path / "base")
    inputs = {"input_ids": torch.tensor([[7, 9, 5, 40]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if model.main_input_name == "input_features":
        inputs = {"input_features": torch.zeros(1, 4, 16), "decoder_input_ids": inputs["input_ids"]}
    with torch.no_grad():
        want = model(**inputs)[0]
        detach_rows(model).save_pretrained(tmp_path / "base")
        found = getattr(peft, auto).from_pretrained(tmp_path / "a").eval()
        assert torch.equal(found(**inputs)[0], want)
    assert type(found.get_base_model()) is type(model)


def test_the_card_names_a_class_that_loads_the_base_model(tmp_path):
    for name, model in (("llava", llava()), ("bert", WITHOUT_HEAD["BertModel"]())):
        save_adapter(tuned(model, output="frozen"), tmp_path / name)
        kind = type(model).__name__
        assert f"from transformers import {kind}\n" in (tmp_path / name / "README.md").read_text()
        config = json.loads((tmp_path / name / CONFIG_FILE).read_text())
        assert config["task_type"] is None
        assert config["auto_mapping"]["base_model_class"] == kind
