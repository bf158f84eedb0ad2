"""Rows in state dicts: they come with their token ids or not at all, and keep their dtype."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make, tuned

from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.tables import embedding_table


def test_state_dict_round_trip_restores_rows_ids_and_slots():
    model = tuned(make("llama"))
    other = attach_rows(make("llama"), [11, 12, 13])
    other.load_state_dict(model.state_dict())
    assert get_rows(other).token_ids.tolist() == TOKENS
    assert torch.equal(get_rows(other).slots, get_rows(model).slots)
    assert torch.equal(logits(other, batch(other)), logits(model, batch(model)))


@pytest.mark.parametrize(("ids", "message"), [([5, 5, 6], "5 more than once"), ([5, 6, V], f"has {V}, outside")])
def test_a_state_dict_with_bad_token_ids_is_refused(ids, message):
    model = tuned(make("llama"))
    state = model.state_dict()
    state["model.embed_tokens.row_sets.default._extra_state"] = torch.tensor(ids)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert get_rows(model).token_ids.tolist() == TOKENS


@pytest.mark.parametrize(
    ("change", "strict", "message"),
    [
        (lambda state, key: state.update({f"{key}.rows": torch.zeros(3, 5)}), False, "size mismatch"),
        (lambda state, key: state.pop(f"{key}.rows"), True, "Missing key"),
        (lambda state, key: state.pop(f"{key}.rows"), False, None),
    ],
)
def test_token_ids_whose_rows_are_not_loaded_are_not_loaded_either(change, strict, message):
    model, other = tuned(make("llama")), attach_rows(make("llama"), [11, 12, 13])
    state = other.state_dict()
    change(state, "model.embed_tokens.row_sets.default")
    with pytest.raises(RuntimeError, match=message) if message else nullcontext():
        model.load_state_dict(state, strict=strict)
    assert get_rows(model).token_ids.tolist() == TOKENS
    assert get_rows(model).slots[TOKENS].tolist() == [0, 1, 2]


@pytest.mark.parametrize("strict", [True, False])
def test_rows_without_their_token_ids_are_not_loaded(strict):
    state, model = tuned(make("llama")).state_dict(), attach_rows(make("llama"), [1, 2, 3])
    before = get_rows(model).rows.detach().clone()
    del state["model.embed_tokens.row_sets.default._extra_state"]
    with pytest.raises(RuntimeError, match="rows come without their token ids"):
        model.load_state_dict(state, strict=strict)
    assert torch.equal(get_rows(model).rows, before)


@pytest.mark.parametrize("double", [False, True])
def test_rows_of_16_bits_that_are_assigned_become_32_bits_again(double):
    model = tuned(make("llama").double() if double else make("llama"))
    dtype = get_rows(model).rows.dtype
    state = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    model.load_state_dict(copy.copy(state), assign=True)
    assert get_rows(model).rows.dtype == dtype
    assert get_rows(model).rows.requires_grad
    assert embedding_table(model).dtype == torch.bfloat16
    assert torch.equal(get_rows(model).rows, state["model.embed_tokens.row_sets.default.rows"].to(dtype))
    model(**batch(model)).logits.sum().backward()
    assert get_rows(model).rows.grad.dtype == dtype
