"""ks_select on models, with the texts of tokens, and where its warnings point."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from stored_tables import write
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows, merge_rows
from kslottery_fast.rows.sets import use_rows
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.attached import ks_select_rows
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.stored import ks_select_checkpoints
from kslottery_fast.tickets.tables import ks_statistics


@pytest.fixture(scope="module")
def models(tiny_llama) -> tuple[Any, Any]:
    before, after = tiny_llama(tied=True), tiny_llama(tied=True)
    with torch.no_grad():
        after.model.embed_tokens.weight[[40, 7, 300]] += 2
    return before, after


def test_two_models_are_compared_by_their_input_embeddings(models) -> None:
    before, after = models
    expected = ks_select(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert sorted(expected) == [7, 40, 300]
    assert ks_select(before, after) == expected
    assert ks_select(before.model, after.model.embed_tokens) == expected
    assert ks_select(embedding_table(before), after) == expected
    assert ks_select(before, embedding_table(after).detach().numpy()) == expected
    assert torch.nonzero(ks_statistics(before, after)).flatten().tolist() == [7, 40, 300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attached_rows_in_use_are_read_as_a_merge_would_write_them(models, dtype) -> None:
    before = copy.deepcopy(models[0]).to(dtype)
    model = attach_rows(copy.deepcopy(before), [5, 9, 11])
    with torch.no_grad():
        get_rows(model).rows[:2] += torch.tensor([2.0, 1e-4])[:, None]
    table = embedding_table(model).detach().clone()
    found = ks_select(before, model, top_k=1)
    for wrapped in (nn.Sequential(model), get_rows(model), model.model):
        assert ks_select(before, wrapped, top_k=1) == found
    assert torch.equal(embedding_table(model), table)
    assert torch.equal(ks_statistics(before, model), ks_statistics(before, merge_rows(copy.deepcopy(model))))
    assert list(found) == [5]
    use_rows(model, None)
    assert ks_statistics(before, model).sum() == 0


def test_a_model_that_accelerate_offloaded_is_read_where_it_is(models) -> None:
    after = cpu_offload(copy.deepcopy(models[1]), execution_device="cpu")
    assert embedding_table(after).is_meta
    assert sorted(ks_select(models[0], after)) == [7, 40, 300]
    attach_rows(after, [5])
    with torch.no_grad():
        get_rows(after).rows.add_(2)
    assert sorted(ks_select(models[0], after)) == [5, 7, 40, 300]
    late = cpu_offload(attach_rows(copy.deepcopy(models[1]), [5]), execution_device="cpu")
    for select in (ks_select_rows, lambda model: ks_select(models[0], model)):
        with pytest.raises(InputError, match=r"without values \(device meta\): offload it first, then attach rows"):
            select(late)


def test_what_is_no_table_says_what_fits(models, tiny_llama, tiny_tokenizer) -> None:
    before, after = models
    with pytest.raises(
        TypeError, match=r"^emb_after is a Linear: .* pass their weights, such as model\.lm_head\.weight"
    ):
        ks_select(before, after.lm_head)
    assert ks_select(before.lm_head.weight, after.lm_head.weight) == ks_select(before, after)
    for path in ("gpt2", Path("model.safetensors")):
        with pytest.raises(TypeError, match=r"^emb_before is .*: expected a table or .*; ks_select_checkpoints takes"):
            ks_select(path, after)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^emb_before, a Sequential, has no input embedding"):
        ks_select(nn.Sequential(nn.Linear(2, 2)), after)
    for value in (None, 3, 0.5, [[1.0]], tiny_tokenizer, []):
        with pytest.raises(TypeError, match=r"^emb_before is "):
            ks_select(value, after)  # type: ignore[arg-type]
    resized = tiny_llama(tied=True, vocab_size=300)
    with pytest.raises(
        InputError,
        match=r"^emb_before has 320 rows and emb_after has 300: was the vocabulary resized between them\? "
        r"ks_select\(before, after, rows='shared'\) compares the 300 rows that both have$",
    ):
        ks_select(before, resized)
    assert ks_select(before, resized, rows="shared").compared_rows == 300


def test_a_tokenizer_gives_tickets_the_texts_of_their_tokens(models, tiny_tokenizer, tmp_path) -> None:
    before, after = models
    paths = [write(tmp_path / f"{i}.safetensors", embedding_table(model)) for i, model in enumerate(models)]
    attached = attach_rows(copy.deepcopy(before), [7, 40])
    with torch.no_grad():
        get_rows(attached).rows.add_(2)
    plain = ks_select(before, after, top_k=2)
    assert plain.token_texts is None
    for found in (
        ks_select(before, after, top_k=2, tokenizer=tiny_tokenizer),
        ks_select_checkpoints(*paths, top_k=2, tokenizer=tiny_tokenizer),
        ks_select_rows(attached, tokenizer=tiny_tokenizer),
        plain.with_texts(tiny_tokenizer),
    ):
        assert found.token_texts == tuple(found.tokens(tiny_tokenizer))
        assert len(found) == 2
    for select in (
        lambda tokenizer: ks_select(before, after, tokenizer=tokenizer),
        lambda tokenizer: ks_select_checkpoints(*paths, tokenizer=tokenizer),
        lambda tokenizer: ks_select_rows(attached, tokenizer=tokenizer),
    ):
        with pytest.raises(TypeError, match=r"tokenizer is 'gpt2': expected a tokenizer; load it first"):
            select("gpt2")
    with pytest.raises(
        InputError, match=r"tokenizer has .* tokens, but the table has 200 rows: they are of different models"
    ):
        ks_select(embedding_table(before)[:200], embedding_table(after)[:200], tokenizer=tiny_tokenizer)


def test_warnings_point_at_the_line_that_asked(models, tmp_path) -> None:
    table = np.zeros((4, 8))
    path = write(tmp_path / "a.safetensors", torch.zeros(4, 8))
    model = attach_rows(copy.deepcopy(models[0]), [5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ks_select(table, table.copy())
        ks_select_checkpoints(path, path)
        ks_select_rows(model)
    assert [(warning.filename, _line(warning.lineno)) for warning in caught] == [
        (__file__, "ks_select(table, table.copy())"),
        (__file__, "ks_select_checkpoints(path, path)"),
        (__file__, "ks_select_rows(model)"),
    ]


def _line(number: int) -> str:
    return Path(__file__).read_text(encoding="utf-8").splitlines()[number - 1].strip()
