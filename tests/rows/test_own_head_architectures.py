"""Rows of the head's own in architectures with something special about their head."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as T
from own_head_models import edited, tuned_both
from tiny_models import V
from torch import nn

from kslottery_fast import merge_rows
from kslottery_fast.rows import get_output_rows

TINY = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
IDS = torch.tensor([[7, 5, 9, 40, 11]])


def gemma2() -> nn.Module:
    """Its model caps the logits after the head."""
    return T.Gemma2ForCausalLM(T.Gemma2Config(head_dim=8, final_logit_softcapping=5.0, **TINY))


def bert() -> nn.Module:
    return T.BertForMaskedLM(
        T.BertConfig(
            vocab_size=V,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=40,
        )
    )


def whisper() -> nn.Module:
    return T.WhisperForConditionalGeneration(
        T.WhisperConfig(
            vocab_size=V,
            num_mel_bins=8,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_source_positions=8,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def llava(*, tied: bool) -> nn.Module:
    """Its text_config is nested in the config of the whole model."""
    text = T.LlamaConfig(**TINY, tie_word_embeddings=tied)
    vision = T.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=16,
    )
    config = T.LlavaConfig(text_config=text, vision_config=vision, image_token_index=V - 1, tie_word_embeddings=tied)
    return T.LlavaForConditionalGeneration(config)


MODELS = {
    "gemma2": gemma2,
    "bert": bert,
    "whisper": whisper,
    "llava": lambda: llava(tied=False),
    "llava tied": lambda: llava(tied=True),
}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    if isinstance(model, T.WhisperForConditionalGeneration):
        sound = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
        return model(input_features=sound, decoder_input_ids=IDS).logits
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_tables_edited_by_hand_attached_merged_and_reloaded(name, tmp_path):
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    model = tuned_both(copy.deepcopy(base))
    want = logits(edited(base, model))
    torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=1e-5)
    assert (want - logits(base)).abs().max() > 0.1
    assert (get_output_rows(model).row_bias is not None) == (name == "bert")
    merge_rows(model)
    assert torch.equal(logits(model), want)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval()), want)
