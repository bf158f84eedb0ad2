"""Rows switched on by position, and the parts of a prompt."""

import itertools
import json

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.lab.experiment.interpret import PARTS, prompt_parts, switched
from kslottery_fast.rows.attach import attach_rows, get_rows

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def tuned(tiny_llama):
    model = attach_rows(tiny_llama(tied=True), [5, 7])
    with torch.no_grad():
        get_rows(model).rows.add_(1.0)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_switched_on_everywhere_is_the_tuned_model_and_nowhere_the_original(tuned, tiny_llama):
    with switched(tuned, torch.ones(1, 4, dtype=torch.bool)):
        assert torch.equal(logits(tuned), logits(tuned))
        everywhere = logits(tuned)
    with switched(tuned, torch.zeros(1, 4, dtype=torch.bool)):
        nowhere = logits(tuned)
    assert torch.equal(everywhere, logits(tuned))
    assert torch.equal(nowhere, logits(tiny_llama(tied=True)))
    assert not torch.equal(everywhere, nowhere)


def test_a_row_switched_on_at_one_position_acts_there_alone(tuned, tiny_llama):
    with switched(tuned, torch.tensor([[False, True, True, True]])):
        found = logits(tuned)
    other = attach_rows(tiny_llama(tied=True), [7])
    with torch.no_grad():
        get_rows(other).rows.add_(1.0)
    assert torch.equal(found, logits(other))


def test_the_parts_of_a_prompt_are_told_by_the_characters_of_the_source(tiny_tokenizer):
    prompt = "Say English in Spanish.\nEnglish: The English house\nSpanish:"
    parts = prompt_parts(tiny_tokenizer, prompt, "The English house")
    ids = tiny_tokenizer(prompt)["input_ids"]
    assert len(parts) == len(ids)
    text = tiny_tokenizer.decode([token for token, part in zip(ids, parts, strict=True) if part])
    assert text.strip() == "The English house"
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(InputError, match="needs a fast tokenizer"):
        prompt_parts(slow, prompt, "The")
    with pytest.raises(InputError, match="does not hold its source"):
        prompt_parts(tiny_tokenizer, prompt, "the garden")


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
