"""Cleaning: every rule drops what it says and counts it, and leaves its neighbours alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kslottery_fast.lab.data.pairs import Pair, clean_pairs, comparison_key, normalise


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("", "Guardar", "empty"),
        ("Save", "  \n", "empty"),
        ("...", "…", "empty"),
        ("Save\nit", "Guardar", "several lines"),
        ("Save", "Guardar\r\nlo", "several lines"),
        ("Save " * 50, "Guardar", "too long"),
        ("Save", "Guardar" * 50, "too long"),
        ("Email", " Email ", "identical"),
        ("%s files", "%s archivos", "placeholders"),
        ("files", "%s archivos", "placeholders"),
        ("%(a)s of %(b)s", "%(a)s de %(b)s", "placeholders"),
        ("{count} files", "{count} archivos", "placeholders"),
        ("files", "{count} archivos", "placeholders"),
        ("100%% of it", "100%% de ello", "placeholders"),
        ("<a href='x'>Save</a>", "<a href='y'>Guardar</a>", "markup"),
        ("Save it", "<b>Guardar</b>", "markup"),
        ("Save<br/>it", "Guardar", "markup"),
    ],
)
def test_what_is_not_usable_is_dropped_and_counted(source, target, reason):
    assert clean_pairs([Pair(source, target)]) == ([], Counter({reason: 1}))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("100 % of all", "100 % de todo"),
        ("{ is a brace", "{ es una llave"),
        ("a < b", "a es menor que b"),
        ("Save", "SAVE"),
        ("x" * 200, "y" * 200),
        ("3", "tres"),
    ],
)
def test_what_is_usable_stays(source, target):
    assert clean_pairs([Pair(source, target, "o")]) == ([Pair(source, target, "o")], Counter())


def test_text_is_normalised_and_a_source_keeps_its_first_target():
    pairs, dropped = clean_pairs([
        Pair("  Save\u00a0 it\n", "Guardar\tlo"), Pair("Save it", "Salvar"), Pair("cafe\u0301", "coffee"),
    ])  # fmt: skip
    assert pairs == [Pair("Save it", "Guardar lo"), Pair("caf\u00e9", "coffee")]
    assert dropped == {"duplicate source": 1}


def test_the_limit_on_length_is_the_one_given():
    assert clean_pairs([Pair("abcd", "efgh")], max_characters=3)[1] == {"too long": 1}
    assert len(clean_pairs([Pair("abcd", "efgh")], max_characters=4)[0]) == 1


@pytest.mark.parametrize("other", ["save and add", "SAVE, AND ADD…", "  Save  and-add ", "“Save” and add!"])
def test_case_punctuation_and_white_space_do_not_make_another_text(other):
    assert comparison_key("Save and add") == comparison_key(other)


@pytest.mark.parametrize("other", ["Save and ad", "Save and adds", "Save and add 2", "Savé and add"])
def test_letters_digits_and_accents_make_another_text(other):
    assert comparison_key("Save and add") != comparison_key(other)


@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)
    assert comparison_key(normalise(text)) == comparison_key(text)


def test_labels_of_a_word_are_dropped_where_more_words_are_asked_for():
    pairs = [Pair("Save", "Guardar"), Pair("Save it", "Guárdalo"), Pair("New", "Muy nuevo")]
    assert clean_pairs(pairs, min_words=2) == ([pairs[1]], Counter({"too few words": 2}))
    assert clean_pairs(pairs)[0] == pairs
