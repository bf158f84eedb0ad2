"""Templates: prompt and target are exactly what the template says, and a bad template says what is wrong."""

from __future__ import annotations

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, PARAPHRASED_TEMPLATE, check_template, to_examples


def test_the_default_template_is_that_of_the_published_measurements():
    (example,) = to_examples([Pair("Save", "Guardar")], "English", "Spanish")
    assert example.prompt == "Translate this from English to Spanish.\nEnglish: Save\nSpanish:"
    assert example.target == " Guardar"


def test_the_paraphrase_asks_the_same_in_other_words():
    (example,) = to_examples([Pair("Save", "Guardar")], "English", "Spanish", PARAPHRASED_TEMPLATE)
    assert example.prompt != to_examples([Pair("Save", "Guardar")], "English", "Spanish")[0].prompt
    for word in ("Save", "English", "Spanish"):
        assert word in example.prompt
    assert "Translate" not in example.prompt
    assert example.prompt.endswith(":")


def test_braces_in_a_text_are_text():
    (example,) = to_examples([Pair("{source} {0} {{", "{x}")], "English", "Spanish", "{source} {{ok}} {source}:")
    assert example.prompt == "{source} {0} {{ {ok} {source} {0} {{:"
    assert example.target == " {x}"


@pytest.mark.parametrize(
    "template",
    ["no field", "{target_language}:", "{source} {target}", "{source} {}", "{source.__class__}", "{source!r}",
     "{source:>10}", "{source} {source_language[0]}"],
)  # fmt: skip
def test_a_template_with_other_fields_or_without_source_is_refused(template):
    with pytest.raises(
        InputError, match=r"must contain {source}, and may contain {source_language} and {target_language}; no"
    ):
        check_template(template)


@pytest.mark.parametrize("template", ["{source", "source} {source}"])
def test_a_template_with_unbalanced_braces_is_refused(template):
    with pytest.raises(InputError, match=r"write a literal brace twice"):
        check_template(template)


def test_the_templates_of_this_module_are_good():
    check_template(DEFAULT_TEMPLATE)
    check_template(PARAPHRASED_TEMPLATE)
