"""The tokenizer's side of adding tokens: which strings can be tokens, and what they were read as before."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kslottery_fast.base.arguments import check_tokenizer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.base.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken

NewTokens: TypeAlias = "str | AddedToken | Sequence[str | AddedToken]"
"""One token or several: strings, or ``tokenizers.AddedToken`` to choose how they are found in a text."""


def check_new_tokens(tokenizer: Tokenizer, tokens: NewTokens, *, special: bool) -> tuple[list[Any], list[int]]:
    """Return the tokens as a list, and the ids that a tokenizer gives them. The tokenizer stays as it is.

    Raises
    ------
    InputError
        There is no token, one is empty or given twice, some exist already, or one would not be read as one token.
    TypeError
        ``tokenizer`` is not a transformers tokenizer, or ``tokens`` are not strings.
    """
    _check_kind(tokenizer)
    given = _as_list(tokens)
    texts = [str(token) for token in given]
    _refuse_known(tokenizer, texts)
    trial: Any = copy.deepcopy(tokenizer)
    trial.add_tokens(copy.deepcopy(given), special_tokens=special)
    return given, [_only_id(trial, text) for text in texts]


def pieces_of(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that a tokenizer reads a text as, without special tokens and without the unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    return [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token != unknown]


def _check_kind(tokenizer: Any) -> None:
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None and hasattr(inner, "add_tokens"):
        raise TypeError(f"tokenizer is {shown(tokenizer)}: expected a tokenizer; pass the .tokenizer of this processor")
    check_tokenizer(tokenizer)
    if not (hasattr(tokenizer, "add_tokens") and hasattr(tokenizer, "get_vocab")):
        raise TypeError(f"tokenizer is {shown(tokenizer)}: expected a tokenizer of transformers, which has add_tokens")


def _as_list(tokens: Any) -> list[Any]:
    from tokenizers import AddedToken

    one = isinstance(tokens, (str, AddedToken))
    if not one and not isinstance(tokens, Sequence):
        raise TypeError(f"tokens is {shown(tokens)}: expected a list of strings")
    given = [tokens] if one else list(tokens)
    if not given:
        raise InputError("tokens is empty; give at least one string")
    for token in given:
        if not isinstance(token, (str, AddedToken)):
            raise TypeError(f"tokens has {shown(token)}: expected strings, or tokenizers.AddedToken")
        if not str(token).strip():
            raise InputError(f"tokens has {str(token)!r}: expected a string with a visible character")
    texts = [str(token) for token in given]
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise InputError(f"tokens has {', '.join(map(repr, twice))} more than once; remove the duplicates")
    return given


def _refuse_known(tokenizer: Any, texts: list[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    known = {}
    for text in texts:
        if text in vocabulary:
            known[text] = vocabulary[text]
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # "Ġhello" is the token " hello"
        if len(ids) == 1 and token_text(tokenizer, ids[0]) == text:
            known[text] = ids[0]
    if known:
        named = ", ".join(f"{text!r} ({token})" for text, token in known.items())
        raise InputError(
            f"tokens has {len(known)} that the tokenizer has already, with these ids: {named}; leave them out, and "
            "give attach_rows their ids together with those of the new ones"
        )


def _only_id(trial: Any, text: str) -> int:
    """The id of an added token, which must be all that its string is read as, alone and inside a sentence."""
    token = trial.get_vocab().get(text)
    alone = trial(text, add_special_tokens=False)["input_ids"]
    inside = trial(f"so {text} is", add_special_tokens=False)["input_ids"]
    if token is None or alone != [token] or inside.count(token) != 1:
        read = alone if alone != [token] else inside
        pieces = ", ".join(repr(token_text(trial, each)) for each in read)
        raise InputError(
            f"tokens has {text!r}, which would not be one token: with it added, the tokenizer reads "
            f"{text if read is alone else f'so {text} is'!r} as {pieces or 'nothing'}; choose a string that no other "
            "token is part of, in the case that the tokenizer keeps"
        )
    return int(token)
