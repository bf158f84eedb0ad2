"""Rows that hold the same values in another order: D cannot see them, and no message calls them identical."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kslottery_fast import attach_rows, ks_select, ks_statistics
from kslottery_fast.base.options import Correction
from kslottery_fast.ks.order import identical_start, reordered_rows
from kslottery_fast.ks.tables import counts_and_largest
from kslottery_fast.tickets.attached import ks_select_rows

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(700, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"correction": "bh"}], ids=str)
def test_a_table_of_reordered_rows_is_not_called_identical(
    table: torch.Tensor, options: dict[str, Correction | int]
) -> None:
    expected = (
        r"^no row of emb_after holds other values than in emb_before, but 700 rows hold them in another order "
        r"\(token ids 0, 1, 2, 3, 4, \.\.\.\): the KS test compares the values of a row, not their order"
    )
    with pytest.warns(RuntimeWarning, match=expected):
        assert len(ks_select(table, table.flip(1), **options)) == 0  # type: ignore[arg-type]
    one = table.clone()
    one[613, [3, 4]] = one[613, [4, 3]]
    with pytest.warns(RuntimeWarning, match=r"but 1 row holds them in another order \(token ids 613\)"):
        ks_select(table, one, **options)  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match="^no row differs between emb_before and emb_after: all are identical"):
        ks_select(table, table.clone(), **options)  # type: ignore[arg-type]


def test_zeros_of_either_sign_and_another_dtype_are_the_same_values(table: torch.Tensor) -> None:
    zeros = table.clone()
    zeros[:, 0] = 0.0
    negative = zeros.clone()
    negative[:, 0] = -0.0
    with pytest.warns(RuntimeWarning, match="all are identical"):
        ks_select(zeros, negative)
    rounded = table.to(torch.bfloat16)
    for other in (rounded.float(), rounded.double()):
        with pytest.warns(RuntimeWarning, match="all are identical"):
            ks_select(rounded, other)
        with pytest.warns(RuntimeWarning, match="but 700 rows hold them in another order"):
            ks_select(rounded, other.flip(1))


def test_attached_rows_that_were_reordered_are_named_by_their_token_ids(table: torch.Tensor) -> None:
    model = attach_rows(torch.nn.Embedding.from_pretrained(table), [9, 5, 600])
    with torch.no_grad():
        model.rows[1] = table[5].flip(0)  # type: ignore[index, operator]
    with pytest.warns(RuntimeWarning, match=r"but 1 row holds them in another order \(token ids 5\)"):
        ks_select_rows(model)
    with torch.no_grad():
        model.rows[1] = table[5]  # type: ignore[index, operator]
    with pytest.warns(RuntimeWarning, match="no row differs between the table and the attached rows: all are ident"):
        ks_select_rows(model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 3, 64, 333])
def test_rows_that_start_a_table_identical_are_found_in_whole_blocks(dtype: torch.dtype, d: int) -> None:
    before = torch.randn(3000, d).to(dtype)
    assert identical_start(before, before.clone()) == 3000
    for at in (0, 1700, 2999):
        after = before.clone()
        after[at, -1] += 1
        assert identical_start(before, after) <= at
        expected = ks_statistics(before, after)
        h, flags, same = counts_and_largest(before, after, 1)
        assert torch.equal(h, expected)
        assert flags.sum() == 0
        assert not same
    for bad in (torch.nan, torch.inf):
        both = before.clone()
        both[2100, 0] = bad
        assert identical_start(both, both.clone()) <= 2100, "NaN and Inf are refused elsewhere"
    assert identical_start(before.t(), before.t().clone()) == 0 or d == 1
    assert identical_start(before[:0], before[:0]) == 0


def test_a_row_that_begins_between_words_is_read_as_it_is() -> None:
    numbers = torch.randn(3 * 41 + 1).to(torch.bfloat16)
    before = numbers[1:].view(41, 3)
    assert identical_start(before, before.clone()) == 41
    assert identical_start(before, before.flip(0)) == 0


def test_reordered_rows_are_those_of_count_0_whose_values_stand_elsewhere() -> None:
    generator = np.random.default_rng(0)
    before = generator.integers(0, 3, (3000, 4)).astype(np.float32)  # many ties, so that chance reorders rows
    after = generator.integers(0, 3, (3000, 4)).astype(np.float32)
    after[1000:1500] = before[1000:1500]
    expected = [
        row
        for row in range(3000)
        if np.array_equal(np.sort(before[row]), np.sort(after[row])) and not np.array_equal(before[row], after[row])
    ]
    assert len(expected) > 50
    first, second = torch.from_numpy(before), torch.from_numpy(after)
    h = ks_statistics(first, second)
    assert reordered_rows(first, second, h).tolist() == expected
    assert reordered_rows(first[:0], second[:0], h[:0]).tolist() == []
