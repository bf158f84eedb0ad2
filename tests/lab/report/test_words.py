"""Words and numbers as page, figures, tables and advice show them."""

import pytest

from kslottery_fast.base.visible import visible_text, visible_token
from kslottery_fast.lab.report.page import fact, latex
from kslottery_fast.lab.report.picture import MUTED, TICKET, colour_of, token_label
from kslottery_fast.lab.report.words import (
    arm_label,
    compact,
    count_text,
    interval_cell,
    is_model,
    model_key,
    number,
    percent,
    plural,
    pvalue_text,
    selection_of,
)

SHOWN = [
    *[(is_model, spec, spec in ("partial@tickets", "embed")) for spec in ("partial@tickets", "partial@18", "embed")],
    (is_model, "l2@tickets", False),
    (model_key, "partial@tickets", "partial_tuning"),
    (model_key, "partial@18", "partial@18"),
    (count_text, 31680, "31,680"),
    (count_text, None, "–"),
    (percent, 0.971, "97%"),
    (percent, None, "–"),
    (compact, 576, "576"),
    (compact, 31680, "31.7 k"),
    (compact, 1297728, "1.30 M"),
    (compact, 2.1e9, "2.10 G"),
    (compact, None, "–"),
    (pvalue_text, 0.0312, "0.031"),
    (pvalue_text, 3.21e-7, "3.2e-07"),
    (pvalue_text, 0.0, "< 1e-300"),
    (visible_token, " Spanish", "␣Spanish"),
    (visible_token, "\n", "↵"),
    (visible_token, "a\u00a0\u202e", "a\\u00a0\\u202e"),
    (visible_token, "\U000e0001", "\\U000e0001"),
    (visible_token, "", "(empty)"),
    (visible_text, "two\nlines\x00\u202e\u200d", "two\nlines\\u0000\\u202e\u200d"),
    (token_label, " Spanish", "␣Spanish"),
    (token_label, "$x_1$", "$x_1$"),
    (token_label, "\u8bd1", "\\u8bd1"),
    (token_label, ".", "“.”"),
    (token_label, "a" * 30, "a" * 17 + "…"),
    (colour_of, "partial@18", TICKET),
    (colour_of, "partial@tickets", TICKET),
    (colour_of, "lora@18", MUTED),
    (fact, {"on": True, "sizes": [1, 2]}, "on: yes\nsizes: 1, 2"),
    (fact, {"a": {"b": 1, "c": ""}}, "a: b: 1, c: –"),
    (fact, None, "–"),
    (fact, 0.1 + 0.2, "0.3"),
    (latex, "95% of a_b, -0.5, 1–2", "95\\% of a\\_b, $-$0.5, 1--2"),
    (latex, "\\x{1}~^…\u00a0", "\\textbackslash{}x\\{1\\}\\textasciitilde{}\\textasciicircum{}\\,..\\,~"),
]


@pytest.mark.parametrize(("function", "value", "expected"), SHOWN)
def test_a_value_is_shown(function, value, expected):
    assert function(value) == expected


def test_counts_have_their_nouns_and_numbers_their_digits():
    assert [plural(0, "ticket"), plural(1, "ticket"), plural(2200, "row")] == ["no ticket", "1 ticket", "2,200 rows"]
    assert [number(1.8634, 2), number(float("nan"), 2), number(None, 2)] == ["1.86", "–", "–"]
    assert percent(0.971, 1) == "97.1%"


@pytest.mark.parametrize(
    ("spec", "label", "expected"),
    [
        ("frequency@18", "Frequency Tuning", "Frequency Tuning @18"),
        ("full:lr=0.001", "Full Tuning", "Full Tuning :lr=0.001"),
        ("partial@tickets", "Partial Tuning (KS)", "Partial Tuning"),
    ],
)
def test_an_arm_has_its_size_in_its_label(spec, label, expected):
    assert arm_label(spec, {"label": label}) == expected


def test_a_selection_says_whether_alpha_made_it():
    language = {"name": "Spanish", "selection": {"count": 18, "alpha": 0.05, "selected_by": "top_k"}}
    summary = {"languages": {"es": language}, "grid": {"seeds": [0]}}
    assert selection_of(summary, "es") == "18 rows of largest D, none significant at alpha = 0.05"
    language["selection"] = {"count": 1, "alpha": 0.05, "selected_by": "alpha"}
    assert selection_of(summary, "es") == "1 ticket at alpha = 0.05"
    several = {"languages": {"es": language, "ca": language}, "grid": {"seeds": [3, 4]}}
    assert selection_of(several, "es") == "1 ticket at alpha = 0.05, Spanish, training seed 3"


def test_an_interval_has_a_sign_where_it_is_a_difference():
    found = {"value": 1.234, "low": -0.5, "high": 2.0}
    assert interval_cell(found, 2, signed=True) == ("+1.23", "-0.50…+2.00")
    assert interval_cell({"value": 1.7814, "low": 1.664, "high": 1.909}, 3, 2) == ("1.781", "1.66–1.91")
    assert interval_cell(None, 2) == ("–", "")
