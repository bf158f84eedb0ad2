"""Classes of tokens: special tokens, bytes, digits, punctuation, white space, and letters by their script."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex
import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_integer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import piece_text
from kslottery_fast.base.tokenizer import Tokenizer

from .texts import check_vocabulary

SPECIAL, BYTE, NO_TOKEN, OTHER = "special", "byte", "no token", "other"
WHITE_SPACE, DIGITS, PUNCTUATION = "white space", "digits", "punctuation and symbols"
JAPANESE, MIXED, OTHER_SCRIPT = "Japanese", "mixed scripts", "other scripts"

_SCRIPTS = (
    *("Latin", "Han", "Cyrillic", "Hangul", "Arabic", "Hiragana", "Katakana", "Devanagari", "Greek", "Hebrew", "Thai"),
    *("Bengali", "Tamil", "Telugu", "Malayalam", "Kannada", "Gujarati", "Gurmukhi", "Oriya", "Sinhala", "Georgian"),
    *("Armenian", "Myanmar", "Khmer", "Lao", "Tibetan", "Ethiopic", "Mongolian", "Syriac", "Thaana", "Cherokee"),
    *("Canadian_Aboriginal", "Tifinagh", "Bopomofo", "Yi", "Nko", "Javanese", "Balinese", "Sundanese", "Ol_Chiki"),
    *("Coptic", "Gothic", "Runic", "Ogham", "Egyptian_Hieroglyphs", "Cuneiform", "Braille", "Common", "Inherited"),
)
"""Names of scripts in Unicode. Letters of any other script are of the class "other scripts"."""
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in _SCRIPTS))
_JAPANESE = frozenset({"Han", "Hiragana", "Katakana"})
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # SentencePiece spells a byte so
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_REPLACEMENT_PIECES = (_REPLACEMENT, "ï¿½")  # the character itself, which is text; the second is byte-level BPE's


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """The text and the class of the token of each row of a table. :func:`token_classes` makes them.

    Attributes
    ----------
    texts : tuple of (str or None)
        The V texts, with a leading space kept. None for a row without a token.
    classes : tuple of str
        The V classes: "special", "byte" (a byte, or a part of a UTF-8 character), "white space", "digits",
        "punctuation and symbols", "no token" (a row beyond the tokenizer), "other", or the script of the token's
        letters, such as "Latin". Han and kana in one token are "Japanese". Other scripts in one token are "mixed
        scripts".
    leading_space : Tensor
        bool [V]. Whether the text begins with a space and has more than white space.
    """

    texts: tuple[str | None, ...]
    classes: tuple[str, ...]
    leading_space: Tensor

    def __len__(self) -> int:
        return len(self.texts)


def token_classes(tokenizer: Tokenizer, vocab_size: int) -> TokenClasses:
    """Find the text and the class of every token of a table.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The tokenizer of the model. The table may have more rows (padding) than the tokenizer has tokens.
    vocab_size : int
        The number of rows of the table.

    Returns
    -------
    TokenClasses

    Raises
    ------
    InputError
        The tokenizer belongs to another model, or fails to decode its tokens.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> vocabulary = models.WordLevel({"the": 0, "дом": 1, "42": 2, "家です": 3})
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
    >>> token_classes(tokenizer, 5).classes
    ('Latin', 'Cyrillic', 'digits', 'Japanese', 'no token')
    """
    check_integer(vocab_size, "vocab_size", 0)
    check_vocabulary(tokenizer, vocab_size)
    ids = range(min(vocab_size, len(tokenizer)))
    try:
        pieces, decoded, special = _pieces(tokenizer, ids), _decoded(tokenizer, ids), _special_ids(tokenizer)
    except Exception as error:  # a tokenizer may come from anywhere, and may raise anything
        raise InputError(f"tokenizer failed to decode its tokens: {error}") from error
    texts: list[str | None] = []
    classes = []
    for token, piece, text in zip(ids, pieces, decoded, strict=True):
        texts.append(None if piece is None else piece_text(piece, text))
        classes.append(NO_TOKEN if piece is None else SPECIAL if token in special else _piece_class(piece, text))
    beyond = vocab_size - len(ids)
    spaced = [
        text is not None and name != SPECIAL and text[:1] == " " and not text.isspace()
        for text, name in zip(texts, classes, strict=True)
    ]
    leading = torch.tensor([*spaced, *[False] * beyond], dtype=torch.bool)
    return TokenClasses((*texts, *[None] * beyond), (*classes, *[NO_TOKEN] * beyond), leading)


def text_class(text: str) -> str:
    r"""Return the class of a text by its characters.

    Letters decide if there are any, then digits, then punctuation and symbols.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> [text_class(text) for text in (" the", "x86", "3.", "=>", "\n\n", "Москва", "x≤Ω")]
    ['Latin', 'Latin', 'digits', 'punctuation and symbols', 'white space', 'Cyrillic', 'mixed scripts']
    """
    kinds = {unicodedata.category(sign)[0] for sign in text}
    # Marks are part of a word in scripts such as Devanagari. Common and inherited signs belong to every script.
    scripts = {_script(sign) for sign in text if unicodedata.category(sign)[0] in "LM"} - {"Common", "Inherited"}
    if len(scripts) == 1:
        return scripts.pop().replace("_", " ")
    if scripts:
        return JAPANESE if scripts <= _JAPANESE else MIXED
    if "N" in kinds:
        return DIGITS
    if kinds & {"P", "S"}:
        return PUNCTUATION
    return WHITE_SPACE if text.isspace() else OTHER


@functools.cache
def _script(sign: str) -> str:
    found = _SCRIPT.match(sign)
    return OTHER_SCRIPT if found is None else str(found.lastgroup)


def _piece_class(piece: str, text: str) -> str:
    """The class of a token that is not special, by its spelling in the tokenizer and its decoded text."""
    if _BYTE_PIECE.fullmatch(piece) or (_REPLACEMENT in text and piece not in _REPLACEMENT_PIECES):
        return BYTE
    if piece and not piece.strip("▁"):  # SentencePiece's spaces, which decode to nothing when they are alone
        return WHITE_SPACE
    return text_class(piece_text(piece, text))


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str | None]:
    return [None if piece is None else str(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token alone. One call of the native library is some 20 times faster than V calls of decode."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "decode_batch"):
        return list(backend.decode_batch([[token] for token in ids], skip_special_tokens=False))
    return [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]


def _special_ids(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*getattr(tokenizer, "all_special_ids", ()), *(token for token, each in added.items() if each.special)}
