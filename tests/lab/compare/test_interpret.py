"""What a comparison says of single tickets and of positions fits what its arms were scored with."""

import itertools
import json

import pytest

from kslottery_fast.evaluation.effects import PARTS
from kslottery_fast.evaluation.encoding import Example, encode


def test_shares_of_positions_add_up_to_the_gain_and_the_gain_is_that_of_the_plain_evaluation(finished):
    for spec in ("embed", "partial@0.3"):
        found = json.loads((finished / "stages" / f"es.0.positions.{spec}" / "positions.json").read_text())
        assert sum(found[part]["shapley"]["value"] for part in PARTS) == pytest.approx(found["gain"]["value"], abs=1e-9)
        validation = [
            json.loads((finished / "stages" / f"{stage}.score" / "validation.json").read_text())["interval"]["value"]
            for stage in ("es.untuned", f"es.0.{spec}")
        ]
        assert found["gain"]["value"] == pytest.approx(validation[0] - validation[1], abs=1e-5)


def test_effects_of_single_tickets_are_differences_of_transferred_models(finished, summary):
    found = json.loads((finished / "stages" / "es.0.effects@2" / "effects.json").read_text())
    listed = summary["languages"]["es"]["tickets"]["list"]
    assert [effect["token_id"] for effect in found["tickets"]] == [ticket["token_id"] for ticket in listed[:2]]
    untuned = json.loads((finished / "stages" / "es.untuned.score" / "validation.json").read_text())
    assert found["nothing"]["interval"]["value"] == untuned["interval"]["value"]
    assert listed[0]["alone"] == found["tickets"][0]["alone"]
    assert listed[2]["alone"] is None
    values = [effect[name]["value"] for effect, name in itertools.product(found["tickets"], ("alone", "left_out"))]
    assert any(value != 0 for value in values)


def test_tickets_of_the_template_are_told_apart(finished, summary, tiny_tokenizer):
    found = json.loads((finished / "stages" / "es.0.effects@2" / "effects.json").read_text())
    prompt = "Translate this from English to Spanish.\nEnglish: dog\nSpanish:"
    tokens = encode(tiny_tokenizer, Example(prompt, " perro"))["input_ids"]
    (newline,) = tiny_tokenizer("\n")["input_ids"]
    assert newline in found["template_tokens"]
    assert set(found["template_tokens"]) <= set(tokens)
    flags = {ticket["token_id"]: ticket["in_template"] for ticket in summary["languages"]["es"]["tickets"]["list"]}
    assert all(flag == (token in found["template_tokens"]) for token, flag in flags.items())
