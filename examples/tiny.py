"""A tiny random LLaMA, a byte tokenizer and a few sentences, with which the examples run in seconds and offline.

The examples import this file. For your own model, load it and its tokenizer with ``from_pretrained`` instead.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import Dataset
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
    """Return a random LLaMA with 259 tokens and embeddings of dimension 32."""
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
    """Return a tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def texts(n: int = 48) -> list[str]:
    """Return n translations, which repeat."""
    return ["{} = {}</s>".format(*PAIRS[i % len(PAIRS)]) for i in range(n)]


class Examples(Dataset[dict[str, list[int]]]):
    """Translations as a dataset, with input_ids and labels of one length."""

    def __init__(self, n: int) -> None:
        made = tokenizer()(texts(n), padding="max_length", max_length=24)
        self.rows = []
        for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True):
            labels = [token if kept else -100 for token, kept in zip(ids, mask, strict=True)]
            self.rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def examples(n: int = 48) -> Examples:
    """Return n translations as a dataset for a Trainer or a DataLoader."""
    return Examples(n)
