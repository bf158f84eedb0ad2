"""Rows that hold the same values in another order: D cannot see them, and no message calls them identical."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kslottery_fast import attach_rows, ks_select, ks_statistics
from kslottery_fast.base.options import Correction
from kslottery_fast.ks.order import reordered_rows
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
def test_identical_rows_are_known_from_the_pass_that_counts(dtype: torch.dtype, d: int) -> None:
    before = torch.randn(3000, d).to(dtype)
    after = before.clone()
    after[[0, 1700, 2999], -1] += 1
    expected = ks_statistics(before, after)
    for first, second in ((before, after), (before.t().contiguous().t(), after)):
        h, flags, identical = counts_and_largest(first, second, 1)
        assert torch.equal(h, expected)
        assert flags.sum() == 0
        assert torch.equal(identical, (before == after).all(dim=1))
    for bad in (torch.nan, torch.inf):
        both = before.clone()
        both[2100, 0] = bad
        _, flags, identical = counts_and_largest(both, both.clone(), 1)
        assert torch.nonzero(flags).tolist() == [[2100]]
        assert torch.nonzero(~identical).tolist() == [[2100]], "NaN and Inf are refused elsewhere"
    assert [part.numel() for part in counts_and_largest(before[:0], before[:0], 1)] == [0, 0, 0]


def test_tables_that_the_pass_knows_to_be_identical_are_not_read_again(
    table: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    compared = torch.Tensor.__ne__
    monkeypatch.setattr(torch.Tensor, "__ne__", lambda first, other: read.append(first) or compared(first, other))
    for dtype in DTYPES:
        with pytest.warns(RuntimeWarning, match="all are identical"):
            ks_select(table.to(dtype), table.to(dtype, copy=True))
    assert read == []


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
    assert reordered_rows(first, second, h, (first == second).all(dim=1)).tolist() == expected
    assert reordered_rows(first[:0], second[:0], h[:0]).tolist() == []
