"""What single rows do, rows switched on by position, and the parts of a prompt."""

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.effects import (
    PARTS,
    position_effects,
    prompt_parts,
    switched,
    template_tokens,
    ticket_effects,
    wearing,
)
from kslottery_fast.evaluation.encoding import Example
from kslottery_fast.evaluation.evaluate import TargetNll, nll
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows

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
    slow = type("Slow", (), {"is_fast": False, "__call__": None, "convert_ids_to_tokens": None})()
    with pytest.raises(InputError, match="tokenizer is not a fast one"):
        prompt_parts(slow, prompt, "The")
    with pytest.raises(InputError, match="is not in its prompt"):
        prompt_parts(tiny_tokenizer, prompt, "the garden")


SOURCES = ["The house", "Save the file", "Delete all"]
EXAMPLES = [Example(f"Say it in Spanish.\nEnglish: {text}\nSpanish:", f" {text[::-1]}") for text in SOURCES]
OPTIONS = {"n_bootstrap": 20, "batch_size": 2}


@pytest.fixture
def moved(tiny_llama, tiny_tokenizer):
    """A model, and three rows of its texts' tokens, moved, in no order: ``(model, ids, rows)``."""
    model = tiny_llama(tied=True)
    ids = torch.tensor(sorted(set(tiny_tokenizer(EXAMPLES[0].prompt)["input_ids"]))[-3:])[[1, 2, 0]]
    change = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return model, ids, model.get_input_embeddings().weight[ids].detach() + change


def test_a_model_wears_rows_inside_the_block_alone_and_may_wear_none(moved):
    model, ids, rows = moved
    plain = logits(model)
    with wearing(model, ids, rows) as worn:
        assert torch.equal(worn.get_input_embeddings()(ids), rows)
    with wearing(model, ids[:0], rows[:0]) as worn:
        assert not has_rows(worn)
    assert not has_rows(model)
    assert torch.equal(logits(model), plain)


def test_the_effect_of_a_row_is_the_nll_without_it_minus_that_with_it(moved, tiny_tokenizer):
    model, ids, rows = moved
    steps = []

    def measured(*places: int) -> float:
        with wearing(model, ids[list(places)], rows[list(places)]):
            return nll(model, tiny_tokenizer, EXAMPLES, **OPTIONS).interval.value

    found = ticket_effects(
        model, tiny_tokenizer, EXAMPLES, ids, rows, shown=2, progress=lambda *step: steps.append(step), **OPTIONS
    )
    assert steps == [(step, 6) for step in range(1, 7)]
    assert TargetNll.from_dict(found["nothing"]).interval.value == measured()
    assert found["all"]["interval"]["value"] == measured(0, 1, 2)
    assert [effect["token_id"] for effect in found["tickets"]] == ids[:2].tolist()
    for place, effect in enumerate(found["tickets"]):
        others = [other for other in range(3) if other != place]
        assert effect["alone"]["value"] == pytest.approx(measured() - measured(place))
        assert effect["left_out"]["value"] == pytest.approx(measured(*others) - measured(0, 1, 2))
        assert effect["alone"]["value"] != 0


def test_shares_of_positions_add_up_to_the_gain_and_rows_of_the_source_have_none_in_the_instruction(
    moved, tiny_tokenizer
):
    model, ids, rows = moved
    found = position_effects(model, tiny_tokenizer, EXAMPLES, SOURCES, ids, rows, **OPTIONS)
    assert sum(found[part]["shapley"]["value"] for part in PARTS) == pytest.approx(found["gain"]["value"], abs=1e-9)
    plain = nll(model, tiny_tokenizer, EXAMPLES, **OPTIONS).interval.value
    with wearing(model, ids, rows):
        tuned = nll(model, tiny_tokenizer, EXAMPLES, **OPTIONS).interval.value
    assert found["gain"]["value"] == pytest.approx(plain - tuned, abs=1e-5)
    of_template = template_tokens(tiny_tokenizer, [example.prompt for example in EXAMPLES], SOURCES)
    others = {token for text in SOURCES for token in tiny_tokenizer(f" {text}")["input_ids"]} - of_template
    ids = torch.tensor(sorted(others))
    found = position_effects(model, tiny_tokenizer, EXAMPLES, SOURCES, ids, torch.zeros(len(ids), 32), **OPTIONS)
    assert found["instruction"]["shapley"]["value"] == 0
    assert found["source"]["shapley"]["value"] != 0
