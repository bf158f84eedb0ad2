"""Moving rows between models, tensors and arrays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import TOKENS, V, make, tuned

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.merge import merge_rows
from kslottery_fast.rows.new_token_marks import mark_new_tokens
from kslottery_fast.rows.sets import use_rows
from kslottery_fast.rows.tables import embedding_table, is_tied
from kslottery_fast.rows.transfer import transfer_rows


def test_attached_rows_of_the_source_are_transferred():
    source, target = tuned(make("llama")), torch.zeros(V, 16)
    transfer_rows(source, target, [5, 9])
    assert torch.equal(target[5], get_rows(source).rows[1])
    assert torch.equal(target[9], embedding_table(source)[9])
    assert target.abs().sum(dim=1).nonzero().flatten().tolist() == [5, 9]


def test_a_source_with_no_set_in_use_gives_the_rows_of_its_table():
    source, target = use_rows(tuned(make("llama")), None), torch.zeros(V, 16)
    transfer_rows(source, target, TOKENS)
    assert torch.equal(target[TOKENS], embedding_table(source)[TOKENS])


def test_a_tied_transfer_changes_the_head_too():
    source, target = make("llama", tied=False), make("llama")
    with torch.no_grad():
        embedding_table(source).add_(1)
    transfer_rows(source, target, TOKENS, output="tied")
    assert is_tied(target)
    assert torch.equal(embedding_table(target)[TOKENS], embedding_table(source)[TOKENS])


@pytest.mark.parametrize("tied", [True, False])
def test_what_was_learned_of_an_added_token_reaches_the_head_by_default(tied):
    base = make("llama", tied=tied)
    base.resize_token_embeddings(V + 1)
    mark_new_tokens([base.get_input_embeddings()], [V])
    source, target = copy.deepcopy(base), copy.deepcopy(base)
    head = base.get_output_embeddings().weight.detach().clone()
    attach_rows(source, [5, V], output="auto")
    with torch.no_grad():
        for rows in (parameter for parameter in source.parameters() if parameter.requires_grad):
            rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    transfer_rows(source, target, [5, V])
    assert is_tied(target) == tied
    ids = torch.tensor([[1, 5, V, 7]])
    with torch.no_grad():
        assert torch.equal(target(ids).logits, merge_rows(source)(ids).logits)
    old = target.get_output_embeddings().weight[5]
    assert torch.equal(old, head[5]) != tied  # an old token of an untied model keeps its row of the head
    for tensor in (torch.zeros(V + 1, 16), torch.ones(V + 1, 16)):
        transfer_rows(source, tensor, [V])
        transfer_rows(tensor, copy.deepcopy(base), [V])


def test_transfer_refuses_what_does_not_fit_and_writes_nothing():
    table = torch.zeros(V, 16)
    for source, target, ids, message in [
        (torch.zeros(V, 8), table, [1], "source has rows of dimension 8, but target has rows of dimension 16"),
        (torch.zeros(5, 16), table, [7], r"token_ids \(in the source\) has 7"),
        (torch.zeros(V), table, [1], "source must be a floating-point table"),
        (torch.full((V, 16), float("nan")), table, [1], "cannot transfer: 1 of 1 rows"),
        (torch.ones(V, 16), tuned(make("llama")), [1], "the target has attached rows"),
        (make("llama").to("meta"), table, [1], r"source has no values \(device meta\); load it into memory"),
        (torch.ones(V, 16, device="meta"), table, [1], "source has no values"),
        (torch.ones(V, 16), torch.ones(V, 16, device="meta"), [1], "target has no values"),
    ]:
        with pytest.raises(InputError, match=message):
            transfer_rows(source, target, ids)
    with pytest.raises(TypeError, match=r"source is the list .*: expected a model, or a table"):
        transfer_rows([1.0], table, [1])
    assert table.abs().sum() == 0


def test_a_tied_transfer_to_an_untied_target_is_refused():
    for target in (make("llama", tied=False), torch.zeros(V, 16)):
        before = target.clone() if torch.is_tensor(target) else embedding_table(target).clone()
        with pytest.raises(InputError, match="output='tied' needs a target whose head shares the input table"):
            transfer_rows(torch.ones(V, 16), target, TOKENS, output="tied")
        assert torch.equal(target if torch.is_tensor(target) else embedding_table(target), before)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4"])
def test_arrays_are_sources_and_targets_in_place(dtype):
    table = np.arange(V * 4, dtype=dtype).reshape(V, 4)[:, ::-1]
    table.flags.writeable = False
    target = np.zeros((V, 4), dtype=np.float32)
    assert transfer_rows(table, target, TOKENS) is target
    assert np.array_equal(target[TOKENS], table[TOKENS])
    assert sorted(target.any(axis=1).nonzero()[0].tolist()) == sorted(TOKENS)
    model = make("llama", tied=False)
    wide = np.repeat(table, 4, axis=1)
    transfer_rows(wide, model, TOKENS)
    assert np.array_equal(embedding_table(model)[TOKENS].detach().numpy(), wide[TOKENS].astype(np.float32))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (np.zeros((V, 4))[:, ::-1], InputError, "target is an array that cannot be written in place; pass a copy"),
        (np.frombuffer(bytes(V * 32)).reshape(V, 4), InputError, "target is an array that cannot be written in place"),
        (np.zeros((V, 4), dtype=int), InputError, "target must be a floating-point table .V, d., not int64"),
        (np.zeros(V), InputError, "target must be a floating-point table .V, d., not float64 .60."),
        (np.ma.zeros((V, 4)), TypeError, "target is a masked array"),
        ("gpt2", TypeError, "target is 'gpt2': expected a model, or a table"),
    ],
)
def test_targets_that_cannot_be_written_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        transfer_rows(torch.ones(V, 4), target, TOKENS)
