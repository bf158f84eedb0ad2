"""Classes of tokens, in byte-level and SentencePiece vocabularies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from kslottery_fast import InputError
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.tickets.token_classes import text_class, token_classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("naïve", "Latin"),
        ("Ａ", "Latin"),  # full width
        (" don't", "Latin"),
        ("и́", "Cyrillic"),  # with a combining accent, which belongs to every script
        ("हिन्दी", "Devanagari"),
        ("漢字", "Han"),
        ("ひらがな", "Hiragana"),
        ("コード", "Katakana"),  # its long vowel mark is common to both kana
        ("食べる", "Japanese"),
        ("한국어", "Hangul"),
        ("한國", "mixed scripts"),
        ("ᐃᓄᒃᑎᑐᑦ", "Canadian Aboriginal"),
        ("𐤀", "other scripts"),  # Phoenician
        ("٣", "digits"),
        ("½", "digits"),
        ("1,", "digits"),
        ("。", "punctuation and symbols"),
        (" +=", "punctuation and symbols"),
        ("👩‍💻", "punctuation and symbols"),
        (" \t\u3000", "white space"),
        ("\x00", "other"),
        ("", "other"),
    ],
)
def test_the_class_of_a_text(text, expected):
    assert text_class(text) == expected


def test_byte_level_tokens(tiny_tokenizer):
    size = len(tiny_tokenizer)
    found = token_classes(tiny_tokenizer, size + 2)
    assert found.texts == (*(token_text(tiny_tokenizer, token) for token in range(size)), None, None)
    assert found.classes[size:] == ("no token", "no token")
    assert len(found) == len(found.classes) == len(found.leading_space) == size + 2
    assert [token for token, name in enumerate(found.classes) if name == "special"] == [0, 1, 2]
    # Bytes from 0x80 on are never a character by themselves, and the alphabet has one token for each of them.
    assert found.classes.count("byte") == 128
    by_text = dict(zip(found.texts, found.classes, strict=True))
    assert (by_text["E"], by_text["7"], by_text[":"], by_text["\n"]) == (
        *("Latin", "digits", "punctuation and symbols", "white space"),
    )
    spaced = {text or "" for text, space in zip(found.texts, found.leading_space.tolist(), strict=True) if space}
    assert " to" in spaced
    assert " " not in spaced
    assert all(text.startswith(" ") and text.strip() for text in spaced)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    pieces = ["<unk>", "<s>", "<0x0A>", "<0xE2>", "▁the", "ing", "▁", "▁дом", "</think>"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens([AddedToken("<new>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def test_sentencepiece_tokens(sentencepiece_tokenizer):
    found = token_classes(sentencepiece_tokenizer, 12)
    assert found.texts[:10] == tuple(token_text(sentencepiece_tokenizer, token) for token in range(10))
    assert found.classes == (
        *("special", "special", "byte", "byte", "Latin", "Latin", "white space", "Cyrillic", "Latin", "Latin"),
        *("no token", "no token"),
    )
    assert [text for text, space in zip(found.texts, found.leading_space.tolist(), strict=True) if space] == [
        " the",
        " дом",
    ]


def test_a_tokenizer_that_has_no_native_library_gives_the_same(tiny_tokenizer):
    class Plain:
        """The methods that every tokenizer has."""

        def __init__(self, inner):
            self.convert_ids_to_tokens, self.decode = inner.convert_ids_to_tokens, inner.decode
            self.added_tokens_decoder, self.size = inner.added_tokens_decoder, len(inner)

        def __len__(self):
            return self.size

        def __call__(self, text):
            raise NotImplementedError

    plain, native = token_classes(Plain(tiny_tokenizer), 320), token_classes(tiny_tokenizer, 320)
    assert (plain.texts, plain.classes) == (native.texts, native.classes)


def test_a_tokenizer_of_another_model_or_one_that_fails_is_refused(tiny_tokenizer, monkeypatch):
    with pytest.raises(InputError, match="they are of different models; load the tokenizer of this model"):
        token_classes(tiny_tokenizer, 10)
    broken = SimpleNamespace(decode_batch=lambda *_args, **_options: 1 / 0)
    monkeypatch.setattr(type(tiny_tokenizer), "backend_tokenizer", broken)
    with pytest.raises(InputError, match="tokenizer failed to decode its tokens: division by zero"):
        token_classes(tiny_tokenizer, 320)
