"""Tiny random models, a byte tokenizer and a few sentences, with which the examples run in seconds and offline.

The examples import this file. For your own model, load it and its tokenizer with ``from_pretrained`` instead.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SPECIAL = ["<pad>", "<s>", "</s>"]
PAIRS = [
    ("house", "casa"),
    ("file", "archivo"),
    ("save", "guardar"),
    ("red", "rojo"),
    ("all", "todo"),
    ("page", "página"),
]


def model(*, tied: bool = True, dimension: int = 32) -> LlamaForCausalLM:
    """Return a random LLaMA with 259 tokens and embeddings of this dimension."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL),
        hidden_size=dimension,
        intermediate_size=2 * dimension,
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


def label(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """Return the text of a token for a figure, in quotes. A byte that is no text by itself is spelled <0xNN>."""
    text = tokenizer.decode([token])
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return repr(text)
    # Byte-level BPE spells a byte as the character of that number. Bytes without a visible one begin at U+0100.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    invisible = [byte for byte in range(256) if chr(byte) not in alphabet]
    sign = ord(str(tokenizer.convert_ids_to_tokens(token)))
    return f"<0x{sign if sign < 256 else invisible[sign - 256]:02X}>"


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


SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PIXELS: dict[str, Any] = {"image_size": 8, "patch_size": 4}  # four patches


def clip() -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Return a random CLIP for images of 8 x 8 pixels. As in CLIP's own tokenizer, the last token ends a text."""
    ends = tokenizer()
    ends.add_special_tokens({"eos_token": "<|endoftext|>"})
    end = ends.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": len(ends), "eos_token_id": end, "pad_token_id": 0, "bos_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL | PIXELS, projection_dim=16)).eval(), ends


def sentence_transformer(folder: str) -> "SentenceTransformer":
    """Return a random BERT with mean pooling, as a SentenceTransformer. Its parts go to a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    BertModel(BertConfig(vocab_size=256 + len(SPECIAL), pad_token_id=0, **SMALL)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(folder), Pooling(32)], device="cpu")


def translator() -> tuple[M2M100ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return a random M2M100, and a tokenizer with the codes of two languages."""
    codes = tokenizer()
    codes.add_tokens(["__en__", "__es__"], special_tokens=True)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")
    }
    widths: dict[str, Any] = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.2}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(codes), **sizes, **widths, **ids)).eval(), codes


def vision_language() -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return a random LLaVA for images of 8 x 8 pixels, which a text holds as four tokens "<image>"."""
    images = tokenizer()
    images.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=len(images), initializer_range=0.2, pad_token_id=0, **SMALL)
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **SMALL, **PIXELS},
        image_token_index=images.get_vocab()["<image>"],
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval(), images
