"""Tickets as a sequence of token ids and as a set: each part is valid Tickets, and equal to what ks_select gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.tickets import Tickets

SETTINGS: dict[str, Any] = {"vocab_size": 10, "dimension": 8, "threshold_count": 5, "alpha": 0.05}
IDS, COUNTS = [4, 9, 1, 7], [6, 8, 6, 5]  # in the order of tickets: 9, 1, 4, 7


def some(ids: list[int] = IDS, counts: list[int] = COUNTS, **changes: Any) -> Tickets:
    return Tickets.from_counts(ids, counts, **{**SETTINGS, **changes})


def evidence(tickets: Tickets) -> dict[int, int]:
    return dict(zip(tickets, tickets.counts.tolist(), strict=True))


def test_tickets_are_a_sequence_of_ints() -> None:
    tickets = some()
    assert list(tickets) == [9, 1, 4, 7] == [tickets[i] for i in range(4)]
    assert all(type(token_id) is int for token_id in tickets)
    assert list(reversed(tickets)) == [7, 4, 1, 9]
    assert (tickets[-1], tickets[np.int64(1)], tickets[torch.tensor(2)]) == (7, 1, 4)
    assert [token_id in tickets for token_id in (7, np.int64(4), torch.tensor(1), 0, -1, 10, 10**30)] == [True] * 3 + [
        False
    ] * 4
    for found in (tickets, tickets[:0]):
        array = np.array(found)
        assert (array.dtype, array.tolist()) == (np.int64, list(found))
        assert np.zeros(10)[array].shape == torch.zeros(10)[found].shape == (len(found),)
        assert torch.tensor(found).tolist() == torch.as_tensor(found).tolist() == list(found)
    array = np.asarray(tickets, dtype=np.int32)
    array[0] = 0
    assert tickets[0] == 9
    with pytest.raises(ValueError, match="copy is False, but an array of tickets is always a copy"):
        np.array(tickets, copy=False)
    for outside in (4, -5):
        with pytest.raises(IndexError, match=f"index is {outside}, but there are 4 tickets"):
            tickets[outside]
    with pytest.raises(TypeError, match="token_id is ' the': expected a token id"):
        " the" in tickets  # noqa: B015


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(2), [9, 1]),
        (slice(1, None), [1, 4, 7]),
        (slice(None, None, 2), [9, 4]),
        (slice(4, None), []),
        (torch.tensor([True, False, False, True]), [9, 7]),
        (np.array([False, True, False, False]), [1]),
        ([False, False, True, True], [4, 7]),
    ],
)
def test_a_slice_or_mask_gives_tickets_with_their_evidence_and_texts(index: Any, expected: list[int], tmp_path) -> None:
    whole = some(token_texts=["a", "b", "c", "d"])  # in the order of IDS
    part = whole[index]
    assert type(part) is Tickets
    assert list(part) == expected
    assert evidence(part) == {token: count for token, count in zip(IDS, COUNTS, strict=True) if token in expected}
    assert part.token_texts == tuple("abcd"[IDS.index(token)] for token in expected)
    assert (part.threshold_count, part.alpha, part.selected_by) == (5, 0.05, "alpha")
    part.save(tmp_path / "part.json")
    assert Tickets.load(tmp_path / "part.json") == part == pickle.loads(pickle.dumps(part))


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (slice(None, None, -1), InputError, r"index has a negative step, .* reversed\(tickets\) gives"),
        (torch.tensor([True]), InputError, r"index is a mask of shape \[1\]: expected \[4\], one bool per ticket"),
        (torch.tensor([0, 1]), TypeError, "index is a Tensor: expected an int, a slice, or a mask of 4 bools"),
        ([0, 1], TypeError, r"index is the list \[0, 1\]: expected an int"),
        ("a", TypeError, "index is 'a': expected an int"),
        (None, TypeError, "index is None: expected an int"),
        (1.0, TypeError, "index is 1.0: expected an int"),
    ],
)
def test_what_is_no_index_is_refused_by_name(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        some()[index]


def test_the_first_tickets_of_top_k_are_those_of_a_smaller_top_k() -> None:
    before = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    after = before + torch.linspace(0, 2, 50)[:, None]
    whole = ks_select(before, after, top_k=20)
    for k in (1, 7, 20):
        assert whole[:k] == ks_select(before, after, top_k=k)
    with pytest.warns(RuntimeWarning, match="no row differs"):
        assert whole[:0] == ks_select(before[:, :], before.clone(), top_k=5)


def test_intersection_and_difference_keep_the_evidence_of_the_left(tmp_path) -> None:
    left, right = some(token_texts=["a", "b", "c", "d"]), some([4, 2, 7], [8, 7, 5], method="asymp", alpha=0.01)
    assert evidence(left & right) == {4: 6, 7: 5}
    assert (left & right).token_texts == ("a", "d")
    assert evidence(right & left) == {4: 8, 7: 5}
    assert (right & left).alpha == 0.01
    assert evidence(left - right) == {9: 8, 1: 6}
    assert len(left - left) == 0
    assert left & left == left
    right.save(tmp_path / "right.json")
    assert left & tmp_path / "right.json" == left & right == left & str(tmp_path / "right.json")
    other_table = some([4, 2], [8, 12], dimension=12)  # another model with the same tokenizer
    assert list(left & other_table) == [4]


def test_union_has_the_rows_of_both_and_the_evidence_of_the_left_where_both_have_it() -> None:
    left, right = some(), some([4, 2, 3], [8, 7, 5])
    assert evidence(left | right) == {9: 8, 2: 7, 1: 6, 4: 6, 3: 5, 7: 5}
    assert list(left | right) == [9, 2, 1, 4, 3, 7]
    assert evidence(right | left)[4] == 8
    assert set(left | right) == set(right | left) == set(left) | set(right)
    assert left | left == left == left | left[:0] == left[:0] | left
    texts = some(token_texts=["a", "b", "c", "d"]) | some([2], [7], token_texts=["e"])
    assert texts.token_texts == ("b", "e", "c", "a", "d")
    assert (some(token_texts=["a", "b", "c", "d"]) | right).token_texts is None


def test_union_of_top_k_has_its_smallest_count_as_threshold_and_an_alpha_only_if_it_is_one() -> None:
    top: dict[str, Any] = {"selected_by": "top_k"}
    left, right = some(**top), some([4, 2], [8, 2], threshold_count=2, **top)
    assert (left | right).threshold_count == 2
    assert (right[:1] | left).threshold_count == 5
    assert (left | right).alpha == 0.05
    assert (left | some([2], [7], alpha=None, **top)).alpha is None
    assert (left[:0] | left[:0]).threshold_count == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.01}, "other has alpha 0.01, but these tickets have 0.05, so no single test"),
        ({"method": "asymp"}, "other has method 'asymp', but these tickets have 'exact'"),
        ({"correction": "bh"}, "other has correction 'bh', but these tickets have None"),
        ({"selected_by": "top_k"}, "other has selected_by 'top_k', but these tickets have 'alpha'"),
        (
            {"dimension": 9},
            r"other has dimension 9, but these tickets have 8, .* take the token ids alone: sorted\(\{\*tickets",
        ),
    ],
)
def test_a_union_that_no_single_test_selects_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        some() | some(**changes)


@pytest.mark.parametrize("operation", [Tickets.__and__, Tickets.__or__, Tickets.__sub__, Tickets.jaccard])
def test_other_vocabularies_and_what_is_no_tickets_are_refused(operation: Any) -> None:
    with pytest.raises(InputError, match="other is of a table of 11 rows, but these tickets are of one of 10"):
        operation(some(), some(vocab_size=11))
    texts = some(token_texts=["a", "b", "c", "d"]), some(token_texts=["a", "b", "x", "d"])
    with pytest.raises(InputError, match="other is of another tokenizer: token 1 is 'x' there and 'c' here"):
        operation(*texts)
    for value, told in (([1, 2], r"the list \[1, 2\]"), (None, "None"), ({4}, r"the set \{4\}")):
        with pytest.raises(TypeError, match=f"other is {told}: expected Tickets, or the path of a ticket file"):
            operation(some(), value)
    with pytest.raises(InputError, match=r"^other: none\.json: no such file"):
        operation(some(), "none.json")
