"""Shared fixtures: tiny real models and a tiny real tokenizer, made on the spot."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "Translate this from English to Spanish.\nEnglish: The house is big\nSpanish: La casa es grande",
    "Translate this from English to Spanish.\nEnglish: Save the file\nSpanish: Guardar el archivo",
    "Translate this from English to Spanish.\nEnglish: Delete all\nSpanish: Eliminar todas las entradas",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 320 tokens; as in SmolLM2, "<|im_end|>" (id 2) both ends and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_llama():
    """Factory ``tiny_llama(tied=False, *, seed=0, **config)``: a random LLaMA, V 320, d 32, eval mode.

    Weights are large (0.5) so that logits differ by much more than rounding.
    """

    def make(tied: bool = False, *, seed: int = 0, **config: object) -> LlamaForCausalLM:
        settings = {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.5,
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(settings | config))).eval()

    return make


@pytest.fixture(scope="session")
def scripted_llama():
    """Factory ``scripted_llama({last_token: next_token})``: a real LLaMA that follows the script.

    Attention and MLP add nothing, embeddings are one-hot, the head maps a token to its successor, logit 17.9
    against 0. After a token that is not in the script all tokens are equally probable.
    """

    def make(script: dict[int, int], vocab_size: int = 320) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=vocab_size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            layer = model.model.layers[0]
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, model.lm_head.weight):
                weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(vocab_size))
            for last, following in script.items():
                model.lm_head.weight[following, last] = 1
        return model

    return make
