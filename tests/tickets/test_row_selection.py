"""ks_select_rows gives the tickets of the merged table without merging."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import V, make

from kslottery_fast import (
    attach_rows,
    detach_rows,
    embedding_table,
    get_rows,
    ks_select,
    ks_select_rows,
    merge_rows,
)
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import tables

IDS = [50, 7, 5, 40, 41, 9]


def shifted(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = attach_rows(make("llama", tied=False).to(dtype), IDS)
    with torch.no_grad():
        get_rows(model).rows[:4] += torch.tensor([3.0, 1.5, 0.5, 0.2])[:, None]
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3}, {"correction": "bonferroni"}, {"correction": "bh"}, {"top_k": 3}, {"method": "paper"}],
)
def test_the_tickets_are_those_of_the_whole_table(options):
    model = shifted()
    before = embedding_table(model).detach().clone()
    after = embedding_table(merge_rows(copy.deepcopy(model)))
    got = ks_select_rows(model, **options)
    assert got == ks_select(before, after, **options)
    assert 1 <= len(got) < len(IDS)


def test_exact_counts_are_asked_for_from_the_threshold_on(monkeypatch):
    asked: list[int] = []
    original = tables.statistics_and_identity

    def watch(before, after, threshold):
        asked.append(threshold)
        return original(before, after, threshold)

    monkeypatch.setattr(tables, "statistics_and_identity", watch)
    monkeypatch.setattr(tables, "_SMALL", 0)  # no rows are so few that all are counted
    tickets = ks_select_rows(shifted())
    assert max(asked) == tickets.threshold_count


@pytest.mark.filterwarnings("ignore:no row is significant:RuntimeWarning")
def test_a_correction_counts_the_rows_that_did_not_train():
    model = shifted()
    before = embedding_table(model).detach().clone()
    after = embedding_table(merge_rows(copy.deepcopy(model)))
    for alpha in torch.linspace(0.001, 0.99, 300).tolist():  # near some of them a smaller family would select more
        assert ks_select_rows(model, alpha, correction="bh") == ks_select(before, after, alpha, correction="bh")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.3}, {"correction": "bh"}, {"top_k": 3}])
def test_the_tickets_are_those_of_the_whole_table_in_its_own_dtype(dtype, options):
    model = shifted(dtype)
    before = embedding_table(model).detach().clone()
    got = ks_select_rows(model, **options)
    assert got == ks_select(before, embedding_table(merge_rows(model)), **options)
    assert 1 <= len(got) < len(IDS)


def test_a_change_that_a_bfloat16_table_rounds_away_makes_no_ticket():
    model = attach_rows(torch.nn.Embedding.from_pretrained(torch.ones(50, 256)).bfloat16(), [1, 2])
    with torch.no_grad():
        get_rows(model).rows[0] += 1e-3  # the next number is 1.0078
        get_rows(model).rows[1] += 1e-2
    before = embedding_table(model).clone()
    got = ks_select_rows(model)
    assert got.token_ids.tolist() == [2]
    assert got == ks_select(before, embedding_table(merge_rows(model)))


def test_rows_that_overflow_the_dtype_of_the_table_are_refused_as_a_merge_would_refuse_them():
    model = shifted(torch.float16)
    get_rows(model).rows.data[1, 0] = 1e6
    with pytest.raises(
        InputError, match=r"diverged.*\(torch.float16 table\): 1 of 6 rows hold NaN or Inf \(token ids 7"
    ):
        ks_select_rows(model)
    with pytest.raises(InputError, match=r"cannot merge into a torch.float16 table"):
        merge_rows(model)


def test_rows_that_did_not_move_warn_and_give_no_ticket():
    with pytest.warns(RuntimeWarning, match="no row differs between the table and the attached rows"):
        assert len(ks_select_rows(attach_rows(make("llama"), IDS))) == 0


def test_nan_and_a_model_without_rows_are_refused():
    model = shifted()
    get_rows(model).rows.data[2, 0] = float("nan")
    with pytest.raises(InputError, match=r"training diverged.*1 of 6 rows hold NaN or Inf \(token ids 5\)"):
        ks_select_rows(model)
    damaged = shifted()
    embedding_table(damaged).data[40, 3] = float("inf")
    with pytest.raises(InputError, match=r"table itself is damaged.*1 of 6 rows hold NaN or Inf \(token ids 40\)"):
        ks_select_rows(damaged)
    with pytest.raises(InputError, match="no rows are attached to this model"):
        ks_select_rows(detach_rows(model))
    assert max(IDS) < V
