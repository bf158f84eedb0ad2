"""From prompt and target to token ids: one tokenization for training, NLL, generation and certification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_choice, check_integer, check_model, check_tokenizer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .checks import check_instance, check_list
from .logits import IGNORE_INDEX


@dataclass(frozen=True)
class Example:
    r"""A prompt and its target, the text that should follow.

    Nothing is put between the two. After a prompt that ends in ":" the target should begin with a space.

    Attributes
    ----------
    prompt : str
        For example ``"English: house\nSpanish:"``.
    target : str
        For example ``" casa"``.

    Examples
    --------
    >>> Example("English: house\nSpanish:", " casa")
    Example(prompt='English: house\nSpanish:', target=' casa')
    """

    prompt: str
    target: str

    def __post_init__(self) -> None:
        check_instance(self.prompt, str, "prompt")
        check_instance(self.target, str, "target")


def encode(tokenizer: Tokenizer, example: Example) -> dict[str, list[int]]:
    """Return the token ids and labels of one example for a decoder-only model.

    Prompt and target are tokenized separately and joined, and the end-of-text token follows. So the prompt has the same
    tokens in training, where the target follows, and in generation, where nothing does. A tokenizer that is given the
    joined text may merge across the seam. The prompt gets the special tokens that the tokenizer adds by default, such
    as LLaMA's beginning-of-text token. The target gets none but the end-of-text token.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        It must have an end-of-text token.
    example : Example
        Neither its prompt nor its target may be empty.

    Returns
    -------
    dict
        ``input_ids`` and ``labels``, two lists of the same length. Labels are -100 on the prompt, and equal to the
        inputs on the target. Nothing is truncated.

    Raises
    ------
    InputError
        The target is empty, the prompt has no tokens, or the tokenizer has no end-of-text token or puts it after every
        prompt.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> _, tokenizer = alphabet_model()
    >>> encode(tokenizer, Example("ab", "cd"))
    {'input_ids': [1, 2, 3, 4, 27], 'labels': [-100, -100, 3, 4, 27]}
    """
    check_tokenizer(tokenizer)
    check_instance(example, Example, "example", ", e.g. Example('Spanish:', ' casa')")
    prompt = encode_prompt(tokenizer, example.prompt)
    target = tokenizer(example.target, add_special_tokens=False)["input_ids"]
    if not example.target.strip() or not target:
        raise InputError(f"the target of the prompt {example.prompt!r} is empty: leave such examples out")
    answer = [*target, eos_id(tokenizer)]
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the token ids of a prompt, with the tokenizer's default special tokens.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        It must have an end-of-text token.
    prompt : str
        A text with at least one token.

    Raises
    ------
    InputError
        The prompt has no tokens, or the tokenizer has no end-of-text token or puts it after every prompt.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> _, tokenizer = alphabet_model()
    >>> encode_prompt(tokenizer, "abc")
    [1, 2, 3]
    """
    check_tokenizer(tokenizer)
    check_instance(prompt, str, "prompt")
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids:
        raise InputError(f"prompt {prompt!r} has no tokens: a model needs at least one to continue from")
    end = eos_id(tokenizer)
    if ids[-1] == end and tokenizer(prompt, add_special_tokens=False)["input_ids"][-1:] != [end]:
        raise InputError(
            "the tokenizer puts its end-of-text token after every prompt: load it with add_eos_token=False"
        )
    return ids


def eos_id(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-text token.

    Raises
    ------
    InputError
        The tokenizer has no such token.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> eos_id(alphabet_model()[1])
    27
    """
    check_tokenizer(tokenizer)
    if (token := getattr(tokenizer, "eos_token_id", None)) is None:
        raise InputError(
            "tokenizer has no end-of-text token: set tokenizer.eos_token to the one that the model was trained with"
        )
    return int(token)


def collate(features: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return one batch made from encoded examples, padded on the right.

    Parameters
    ----------
    features : sequence of mapping
        At least one. Each is what :func:`encode` returns for an example.
    pad_token_id : int
        Fills ``input_ids``. It may equal the end-of-text token, since the mask and the labels tell the two apart.

    Returns
    -------
    dict
        ``input_ids``, ``attention_mask`` (1 on tokens, 0 on padding) and ``labels`` (-100 on padding), int64 [B, T].

    Raises
    ------
    InputError
        There are no features, or one lacks its ids or labels.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> batch = collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], 0)
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]], [[-100, 6], [7, -100]])
    """
    kind: Any = Mapping
    given: list[Mapping[str, Sequence[int]]] = check_list(
        features, kind, "features", " with input_ids and labels, such as encode returns"
    )
    check_integer(pad_token_id, "pad_token_id", 0)
    for i, feature in enumerate(given):
        if not {"input_ids", "labels"} <= set(feature):
            raise InputError(f"features[{i}] has the keys {sorted(feature)}: expected input_ids and labels")
    return {
        "input_ids": pad([feature["input_ids"] for feature in given], pad_token_id),
        "attention_mask": pad([[1] * len(feature["input_ids"]) for feature in given], 0),
        "labels": pad([feature["labels"] for feature in given], IGNORE_INDEX),
    }


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Return rows of different lengths as one int64 tensor [B, T], filled on the right or on the left.

    Parameters
    ----------
    rows : sequence of sequence of int
        At least one.
    value : int
        What fills the shorter rows.
    left : bool
        Whether the filling comes first.

    Raises
    ------
    TypeError
        ``rows`` is not a list of lists of integers.

    Examples
    --------
    >>> pad([[1], [2, 3]], 9, left=True).tolist()
    [[9, 1], [2, 3]]
    """
    check_integer(value, "value")
    check_choice(left, (True, False), "left")
    try:
        width = max(map(len, rows))
        fill = [[value] * (width - len(row)) for row in rows]
        filled = [[*f, *r] if left else [*r, *f] for f, r in zip(fill, rows, strict=True)]
        return torch.tensor(filled, dtype=torch.int64)
    except (TypeError, ValueError):
        raise TypeError(f"rows is {shown(rows)}: expected one or more lists of integers") from None


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id to pad with: the tokenizer's own, or else that of the end-of-text token. Padding is masked.

    Raises
    ------
    InputError
        The tokenizer has neither.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> pad_id(alphabet_model()[1])
    27
    """
    check_tokenizer(tokenizer)
    token = getattr(tokenizer, "pad_token_id", None)
    return eos_id(tokenizer) if token is None else int(token)


def check_fits(model: nn.Module, ids: Sequence[Sequence[int]], new_tokens: int = 0) -> None:
    """Refuse sequences that would fail deep inside a model, or mean nothing there.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model.
    ids : sequence of sequence of int
        Token ids. No sequence may be empty.
    new_tokens : int
        How many tokens will be generated after each sequence.

    Raises
    ------
    InputError
        The model is an encoder-decoder model, a sequence with its new tokens is longer than the model's positions, or
        a token id lies outside its embedding table, which means that the tokenizer is that of another model.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, _ = alphabet_model()
    >>> check_fits(model, [[1, 2, 3]], new_tokens=125)
    >>> check_fits(model, [[1, 2, 28]])
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: token id 28 is outside the model's 28 embedding rows: use its own tokenizer
    """
    whole: Any = check_model(model)
    check_integer(new_tokens, "new_tokens", 0)
    try:
        highest, longest = int(max(map(max, ids))), max(map(len, ids)) + new_tokens
    except (TypeError, ValueError):
        raise TypeError(f"ids is {shown(ids)}: expected one or more lists of token ids") from None
    config = getattr(whole, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{type(whole).__name__} is an encoder-decoder model: evaluation supports decoder-only models")
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit:
        raise InputError(
            f"a sequence needs {longest} tokens ({new_tokens} to generate), and the model has {limit} positions: "
            "leave such examples out, or generate fewer tokens"
        )
    embedding = whole.get_input_embeddings() if hasattr(whole, "get_input_embeddings") else None
    weight = getattr(embedding, "weight", None)
    if weight is not None and highest >= len(weight):
        raise InputError(
            f"token id {highest} is outside the model's {len(weight)} embedding rows: use its own tokenizer"
        )
