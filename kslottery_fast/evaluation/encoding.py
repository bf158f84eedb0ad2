"""From prompt and target to token ids: one tokenization for training, NLL, generation and certification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kslottery_fast.base.errors import InputError

from .logits import IGNORE_INDEX


@dataclass(frozen=True)
class Example:
    """A prompt, e.g. ending in ``"Spanish:"``, and its target, e.g. ``" Hola"``: what shall follow.

    Nothing is put between the two: a prompt that ends in ":" wants a target that begins with a space.
    """

    prompt: str
    target: str


def encode(tokenizer: Any, example: Example) -> dict[str, list[int]]:
    """Token ids and labels of one example for a decoder-only model.

    Prompt and target are tokenized separately and joined, and the end-of-text token follows. So the prompt
    has the same tokens in training, where the target follows, and in generation, where nothing does; a
    tokenizer given the joined text may merge across the seam. The prompt gets the special tokens that the
    tokenizer adds by default (a beginning-of-text token, for LLaMA); the target gets none but the end.

    Parameters
    ----------
    tokenizer : a transformers tokenizer with an end-of-text token.
    example : prompt and target, neither empty.

    Returns
    -------
    dict : ``input_ids`` and ``labels``, lists of the same length; labels are -100 on the prompt, and on the
        target equal to the inputs. Nothing is truncated.

    Raises
    ------
    InputError : an empty target, a prompt without tokens, a tokenizer without an end-of-text token or one
        that closes every prompt with it.
    """
    prompt = encode_prompt(tokenizer, example.prompt)
    target = tokenizer(example.target, add_special_tokens=False)["input_ids"]
    if not example.target.strip() or not target:
        raise InputError(f"the target of prompt {example.prompt!r} is empty; leave such examples out")
    answer = [*target, eos_id(tokenizer)]
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, with the tokenizer's default special tokens; errors as in :func:`encode`."""
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        raise InputError(f"prompt {prompt!r} has no tokens; a model needs at least one to continue from")
    end = eos_id(tokenizer)
    if ids[-1] == end and tokenizer(prompt, add_special_tokens=False)["input_ids"][-1:] != [end]:
        raise InputError(
            "the tokenizer puts its end-of-text token after every prompt; load it with add_eos_token=False"
        )
    return ids


def eos_id(tokenizer: Any) -> int:
    """The id of the end-of-text token; a tokenizer without one is an InputError."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token; set tokenizer.eos_token to the one the model knows")
    return int(tokenizer.eos_token_id)


def collate(features: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One batch from encoded examples, padded on the right.

    Parameters
    ----------
    features : what :func:`encode` gives, one for each example; at least one.
    pad_token_id : fills ``input_ids``. It may equal the end-of-text token: the mask and the labels tell them
        apart.

    Returns
    -------
    dict : ``input_ids``, ``attention_mask`` (1 on tokens, 0 on padding) and ``labels`` (-100 on padding),
        int64 [B, T].

    Raises
    ------
    InputError : no features.

    Examples
    --------
    >>> batch = collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], 0)
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]], [[-100, 6], [7, -100]])
    """
    if not features:
        raise InputError("features is empty; a batch needs at least one example")
    return {
        "input_ids": pad([feature["input_ids"] for feature in features], pad_token_id),
        "attention_mask": pad([[1] * len(feature["input_ids"]) for feature in features], 0),
        "labels": pad([feature["labels"] for feature in features], IGNORE_INDEX),
    }


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Rows of different lengths as one int64 [B, T], filled with ``value`` on the right, or on the left."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if left else [*r, *f] for f, r in zip(fill, rows, strict=True)], dtype=torch.int64)


def pad_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, or else end-of-text. Padding is masked."""
    return eos_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def check_fits(model: Any, ids: Sequence[Sequence[int]], new_tokens: int = 0) -> None:
    """Refuse what would fail deep inside a model, or mean nothing there.

    Raises
    ------
    InputError : an encoder-decoder model; a sequence that with ``new_tokens`` more is longer than the model's
        positions; token ids beyond its embedding table, i.e. another model's tokenizer.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{type(model).__name__} is an encoder-decoder model; evaluation supports decoder-only models")
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, ids)) + new_tokens
    if isinstance(limit, int) and longest > limit:
        raise InputError(
            f"a sequence needs {longest} tokens ({new_tokens} to generate), the model has {limit} positions; "
            "leave such examples out or generate fewer tokens"
        )
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(embedding, "weight", None)
    highest = max(map(max, ids))
    if weight is not None and highest >= len(weight):
        raise InputError(
            f"token id {highest} is outside the model's {len(weight)} embedding rows; use its own tokenizer"
        )
