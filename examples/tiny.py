"""What the examples need to run in seconds and offline: a tiny random LLaMA, a byte tokenizer, a few sentences.

With a model of your own, put ``AutoModelForCausalLM.from_pretrained(...)`` and its tokenizer in their place.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]
PAIRS = [
    ("house", "casa"),
    ("file", "archivo"),
    ("save", "guardar"),
    ("red", "rojo"),
    ("all", "todo"),
    ("page", "página"),
]


def model(*, tied: bool = True) -> LlamaForCausalLM:
    """A random LLaMA: V 259, d 32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def texts(n: int = 48) -> list[str]:
    """Translations, over and over."""
    return ["{} = {}</s>".format(*PAIRS[i % len(PAIRS)]) for i in range(n)]


def examples(n: int = 48) -> list[dict[str, list[int]]]:
    """The texts as a dataset for a Trainer: input_ids and labels of one length."""
    made = tokenizer()(texts(n), padding="max_length", max_length=24)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)]}
        for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True)
    ]
