"""Languages: one spelling for every code, names for prompts, and a hint for what is unknown."""

from __future__ import annotations

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.languages import LANGUAGES, Language, canonical_code, find_language


@pytest.mark.parametrize(
    ("written", "code"),
    [("es", "es"), ("ES", "es"), ("es-ES", "es"), ("es_MX", "es_mx"), ("pt-br", "pt_br"), ("pt_PT", "pt"),
     ("zh_Hans", "zh_hans"), ("zh-CN", "zh_hans"), ("zh_TW", "zh_hant"), ("cs_CZ", "cs"), ("sr@latin", "sr@latin"),
     (" he_IL ", "he")],
)  # fmt: skip
def test_a_region_goes_where_it_adds_nothing_and_stays_where_it_is_another_catalogue(written, code):
    assert canonical_code(written) == code


def test_codes_are_canonical_and_every_name_finds_its_own_code():
    for code, name in LANGUAGES.items():
        assert canonical_code(code) == code
        assert find_language(name.upper()) == find_language(code) == Language(code, name)
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)
    assert {
        "es": "Spanish",
        "ca": "Catalan",
        "ro": "Romanian",
        "de": "German",
        "fr": "French",
    }.items() <= LANGUAGES.items()


def test_another_language_is_given_as_code_and_name():
    assert find_language("nah = Classical Nahuatl") == Language("nah", "Classical Nahuatl")


@pytest.mark.parametrize("text", ["nah=", "=Nahuatl", "n h=Nahuatl"])
def test_half_a_code_and_name_is_refused(text):
    with pytest.raises(InputError, match=r"write CODE=NAME, as in nah=Nahuatl"):
        find_language(text)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("spansh", "es (Spanish)"),
        ("Catalonian", "ca (Catalan)"),
        ("pt_bz", "pt_br (Brazilian Portuguese)"),
        ("ex", "eu (Basque), et (Estonian), es (Spanish), eo (Esperanto), en (English) or el (Greek)?"),
        ("xx", "vi (Vietnamese), zh_hans (Simplified Chinese), "),
    ],
)
def test_an_unknown_language_suggests_the_nearest_few(text, guess):
    with pytest.raises(InputError) as caught:
        find_language(text)
    message = str(caught.value)
    assert message.startswith(f"unknown language {text!r}; did you mean {guess}")
    assert message.count("(") <= 6
    assert message.endswith("? Write CODE=NAME for another language, as in nah=Nahuatl")


def test_an_unknown_language_that_resembles_none_gets_no_guess():
    with pytest.raises(
        InputError, match=r"^unknown language '12345'; give a code such as es or a name such as Spanish. Wr"
    ):
        find_language("12345")
