"""Choosing rows by recorded evidence is choosing them from the tables."""

import warnings
from dataclasses import replace

import pytest
import torch

from kslottery_fast.tickets.evidence import SELECTORS, Evidence, Witness, frequency_ranks, ks_order, token_counts
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.tables import ks_statistics

FEATURES = [{"input_ids": [5, 5, 1], "labels": [-100, -100, 1]}, {"input_ids": [5, 3], "labels": [-100, 3]}]
V, D = 400, 48
ACTIVE = torch.arange(0, V, 4)


@pytest.fixture(scope="module")
def tables():
    """A table and one in which the active rows moved, some of them far and the first not at all."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(V, D, generator=generator)
    after = before.clone()
    moved = torch.linspace(0, 2, len(ACTIVE))[torch.randperm(len(ACTIVE), generator=generator)]
    after[ACTIVE] += moved[:, None]
    return before, after


@pytest.fixture(scope="module")
def evidence(tables) -> Evidence:
    before, after = tables
    counts = ks_statistics(before[ACTIVE], after[ACTIVE])
    numbers = torch.arange(len(ACTIVE))
    return Evidence(ACTIVE, counts, numbers.double(), numbers.flip(0).double(), numbers % 7, V, D)


def test_rows_that_moved_without_other_values_are_not_called_identical(evidence) -> None:
    counts = torch.zeros_like(evidence.counts)
    l2 = torch.zeros(len(evidence)).index_fill(0, torch.tensor([2]), 1.0).double()
    notes: list[str] = []
    replace(evidence, counts=counts, l2=l2).table().tickets(0.05, "auto", None, 1, notes.append)
    assert any(f"1 row holds them in another order (token ids {int(evidence.token_ids[2])})" in note for note in notes)
    notes.clear()
    replace(evidence, counts=counts, l2=0 * l2).table().tickets(0.05, "auto", None, 1, notes.append)
    assert any("all are identical" in note for note in notes)


@pytest.mark.parametrize("alpha", [1e-8, 0.01, 0.05, 0.4])
@pytest.mark.parametrize("correction", [None, "bonferroni", "bh"])
@pytest.mark.parametrize("method", ["auto", "paper"])
def test_as_many_rows_are_significant_as_ks_select_selects_and_they_are_the_same(
    tables, evidence, alpha, correction, method
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = ks_select(*tables, alpha, method=method, correction=correction)
    assert evidence.significant(alpha, method, correction) == len(expected)
    if len(expected) == 0:
        expected = ks_select(*tables, alpha, method=method, top_k=18)
    assert evidence.table().tickets(alpha, method, correction, 18) == expected
    assert expected.token_ids.tolist() == ACTIVE[ks_order(evidence, 0)[: len(expected)]].tolist()


def test_who_asks_for_tickets_is_told_what_ks_select_warns_of_and_nobody_else(evidence):
    def ask(*note):
        return evidence.table().tickets(1e-15, "auto", "bonferroni", 1000, *note)

    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(notes.append) == ask()
    assert [note.partition(":")[0] for note in notes] == [
        "no row is significant at alpha 1e-15 after the correction for many tests",
        "only 99 rows moved (D > 0), but top_k is 1000",
    ]


def test_a_row_that_did_not_move_is_never_chosen_by_ks(evidence):
    still = (evidence.counts == 0).nonzero().flatten()
    assert len(still) > 0
    assert len(ks_order(evidence, 0)) == len(evidence) - len(still)
    assert not torch.isin(still, ks_order(evidence, 0)).any()


def test_selectors_order_by_their_column_with_ties_to_the_lower_id(evidence):
    assert SELECTORS["l2"](evidence, 0)[0] == len(evidence) - 1
    assert SELECTORS["gradient"](evidence, 0)[0] == 0
    assert SELECTORS["frequency"](evidence, 0)[:3].tolist() == [6, 13, 20]
    first, again, other = (SELECTORS["random"](evidence, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == list(range(len(evidence)))


def test_evidence_survives_its_files(evidence, tmp_path):
    full = Evidence(
        *(getattr(evidence, name) for name in ("token_ids", "counts", "l2", "gradient", "frequency")),
        V,
        D,
        ((3, evidence.counts // 2), (6, evidence.counts)),
    )
    full.save(tmp_path)
    loaded = Evidence.load(tmp_path)
    assert [step for step, _ in loaded.trajectory] == [3, 6]
    assert torch.equal(loaded.trajectory[0][1], evidence.counts // 2)
    assert torch.equal(loaded.gradient, evidence.gradient)
    assert (loaded.vocab_size, loaded.dimension) == (V, D)


def test_a_witness_sums_gradient_norms_by_ascending_token_and_looks_on_the_way(tables):
    before, after = tables
    ids = ACTIVE[:3].flip(0)  # trained in another order than they are kept

    class Embedding:
        rows = torch.nn.Parameter(after[ids].clone())
        token_ids = ids

    witness = Witness(before, steps=8)
    gradients = [torch.full((3, D), 1.0), torch.arange(3.0)[:, None].expand(3, D)]
    for step, gradient in enumerate(gradients):
        Embedding.rows.grad = gradient.clone()
        witness.watch(step, Embedding)
        seen, witness = witness.state(), Witness(before, steps=8)  # interrupted after every step
        witness.restore(seen)
    found = witness.evidence(ACTIVE[:3], after[ACTIVE[:3]], torch.arange(V), 8)
    assert found.gradient == pytest.approx(D**0.5 * (1 + torch.tensor([2.0, 1.0, 0.0]).double()))
    assert found.frequency.tolist() == ACTIVE[:3].tolist()
    assert [step for step, _ in found.trajectory] == [1, 8]
    assert torch.equal(found.trajectory[0][1], found.counts)


def test_counts_cover_prompt_and_target_and_unseen_tokens_and_the_last_one_only_if_asked_for():
    assert token_counts(FEATURES, 7).tolist() == [0, 1, 0, 1, 0, 3, 0]
    assert token_counts(FEATURES, 7, last=False).tolist() == [0, 0, 0, 0, 0, 3, 0]


def test_ranks_begin_with_the_most_frequent_and_ties_go_to_the_lower_id():
    assert frequency_ranks(token_counts(FEATURES, 7)).tolist() == [4, 2, 5, 3, 6, 1, 7]
