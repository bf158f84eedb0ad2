"""What became of each row between two tables: statuses, distances, classes, sentences, CSV."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from stored_tables import BLOCKS, NAME, write

from kslottery_fast import InputError, compare_checkpoints, compare_tables, ks_select
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.tickets import l2_select_checkpoints
from kslottery_fast.tickets import row_differences as measuring
from kslottery_fast.tickets.scan import scan_checkpoints

V, D = 40, 32


@pytest.fixture(scope="module")
def pair():
    """Rows 0 to 3 shifted far, 4 to 8 a little, 9 and 10 reordered, 11 of zeros that moved, 12 that became zeros."""
    before = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
    before[11] = 0
    before[13, 0] = 0.0
    after = before.clone()
    after[:4] += 3
    after[4:9] *= 1.01
    after[9:11] = before[9:11].flip(1)
    after[11, 0], after[12] = 1.0, 0.0
    after[13, 0] = -0.0
    return before, after


def test_each_row_has_the_status_and_the_numbers_that_numpy_and_scipy_give(pair, monkeypatch):
    monkeypatch.setattr(measuring, "_PIECE", 3 * D)  # several pieces
    found = compare_tables(*pair)
    before, after = (table.double().numpy() for table in pair)
    expected = ["identical"] * V
    expected[:13] = ["significant"] * 4 + ["moved"] * 5 + ["reordered"] * 2 + ["moved", "significant"]
    assert found.statuses() == expected
    for row in range(V):
        test = scipy.stats.ks_2samp(before[row], after[row], method="exact")
        assert found.counts[row] == round(test.statistic * D)
        assert found.pvalue[row].item() == pytest.approx(test.pvalue, rel=1e-9)
        norm, other = np.linalg.norm(before[row]), np.linalg.norm(after[row])
        shift = np.linalg.norm(after[row] - before[row])
        assert found.l2[row].item() == pytest.approx(shift, rel=1e-12)
        if norm and other:
            assert found.relative_l2[row].item() == pytest.approx(shift / norm, rel=1e-12)
            assert found.cosine[row].item() == pytest.approx(before[row] @ after[row] / norm / other, rel=1e-12)
    assert math.isnan(found.relative_l2[11])
    assert math.isnan(found.cosine[11])
    assert found.relative_l2[12] == 1
    assert math.isnan(found.cosine[12])
    assert found.numbers == {"identical": 27, "reordered": 2, "moved": 6, "significant": 5, "new": 0, "gone": 0}
    assert (found.changed, len(found), found.rows("reordered").tolist()) == (13, V, [9, 10])


@pytest.mark.parametrize("factor", [1e200, 1e-200, 3e-310])
def test_norms_of_numbers_whose_squares_leave_the_range_of_float64(pair, tmp_path, factor):
    large = [table.double() * factor for table in pair]
    found, expected = compare_tables(*large), compare_tables(*pair)
    rtol = 1e-6 if factor > 1e-300 else 1e-3  # subnormal numbers have few digits
    torch.testing.assert_close(found.l2 / factor, expected.l2, rtol=rtol, atol=0)
    torch.testing.assert_close(found.cosine, expected.cosine, rtol=rtol, atol=1e-3 * rtol, equal_nan=True)
    for name, table in zip("ab", large, strict=True):
        write(tmp_path / name, table, norm=table[0].clone())
    rows = l2_select_checkpoints(tmp_path / "a", tmp_path / "b", 5)
    assert list(rows) == list(found.l2_rows(5))
    assert torch.equal(rows.values, found.l2_rows(5).values)
    (vector,) = scan_checkpoints(tmp_path / "a", tmp_path / "b").vectors
    assert vector.relative_l2 == pytest.approx(found.relative_l2[0].item(), rel=1e-12)


def test_norms_of_rows_with_the_largest_and_the_smallest_numbers():
    largest, least = torch.finfo(torch.float64).max, 2.0**-1074
    rows = torch.tensor(
        [[0.0, 0.0], [largest, 0.0], [largest, largest], [least, 0.0], [torch.inf, 1.0], [torch.nan, 1.0], [3.0, 4.0]],
        dtype=torch.float64,
    )
    found = measuring.row_norms(rows)
    assert found[[0, 1, 2, 3, 4, 6]].tolist() == [0.0, largest, math.inf, least, math.inf, 5.0]
    assert math.isnan(found[5])
    assert measuring.row_norms(torch.zeros(3, 0, dtype=torch.float64)).tolist() == [0.0] * 3
    assert measuring.l2_shifts(-rows[1:2], rows[1:2]).tolist() == [math.inf]


@pytest.mark.parametrize("options", [{}, {"correction": "bh"}, {"correction": "bonferroni"}, {"method": "paper"}])
def test_its_tickets_are_those_of_ks_select(pair, options):
    found = compare_tables(*pair, alpha=0.1, **options)
    tickets = ks_select(*pair, alpha=0.1, **options)
    assert found.tickets() == tickets
    assert sorted(tickets) == found.rows("significant").tolist()
    assert (found.threshold_count, found.method) == (tickets.threshold_count, tickets.method)
    assert found.tickets(top_k=7) == ks_select(*pair, alpha=0.1, top_k=7, method=found.method)


def test_no_ticket_gives_the_warning_of_ks_select_only_when_tickets_are_asked_for(pair):
    before, _ = pair
    found = compare_tables(before, before.clone())
    with pytest.warns(RuntimeWarning, match="no row differs"):
        assert len(found.tickets()) == 0


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("block_bytes", BLOCKS)
def test_checkpoints_give_the_same_as_tables_in_memory(pair, tmp_path, block_bytes, dtypes):
    tables = [table.to(dtype) for table, dtype in zip(pair, dtypes, strict=True)]
    paths = [write(tmp_path / f"{place}.safetensors", table) for place, table in zip("ab", tables, strict=True)]
    calls = []
    stored = compare_checkpoints(*paths, block_bytes=block_bytes, progress=lambda *done: calls.append(done))
    memory = compare_tables(*tables)
    assert calls[-1] == (V, V)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    for name in ("counts", "l2", "relative_l2", "cosine", "status_codes"):
        torch.testing.assert_close(getattr(stored, name), getattr(memory, name), rtol=0, atol=0, equal_nan=True)
    assert stored.before == f"{paths[0]}, tensor {NAME}"
    shifts, rows = l2_select_checkpoints(*paths, 5, block_bytes=block_bytes), stored.l2_rows(5)
    assert list(rows) == list(shifts)
    assert torch.equal(rows.values, shifts.values)


def test_rows_of_several_blocks_in_memory(pair, monkeypatch):
    expected = compare_tables(*pair)
    monkeypatch.setattr("kslottery_fast.tickets.comparison.BLOCK_BYTES", 3 * 2 * D * 4)
    assert torch.equal(compare_tables(*pair).status_codes, expected.status_codes)


def test_classes_are_counted_and_averaged(tiny_tokenizer):
    before = torch.randn(330, 16, generator=torch.Generator().manual_seed(2))
    after = before.clone()
    digits = tiny_tokenizer.convert_tokens_to_ids(["1", "2"])
    after[digits[0]] += 4
    after[digits[1]] += 0.001
    found = compare_tables(before, after, tokenizer=tiny_tokenizer)
    first, *others = found.by_class()
    assert (first.name, first.rows, first.significant, first.moved, first.identical) == ("digits", 10, 1, 1, 8)
    assert first.mean_d == pytest.approx(found.statistic[digits].sum().item() / 10)
    assert first.mean_l2 == pytest.approx((4 + 0.001) * 4 / 10, rel=1e-4)
    assert all(each.changed == 0 and each.mean_cosine == 1 for each in others)
    assert {each.name for each in others} >= {"Latin", "special", "byte", "no token", "punctuation and symbols"}
    assert sum(each.rows for each in found.by_class()) == 330
    spaces = {each.name: each.rows for each in found.by_leading_space()}
    assert spaces["leading space"] == sum(
        text is not None and text.startswith(" ") and bool(text.strip()) for text in found.tokens.texts
    )
    assert spaces.keys() == {"leading space", "no leading space"}
    lines = found.summary().splitlines()
    assert "Changed tokens by class: digits 2 of 10." in lines
    untouched = next(line for line in lines if line.startswith("Classes without a changed token: "))
    assert "Latin (" in untouched
    without = compare_tables(before, after)
    assert without.by_class() == without.by_leading_space() == []
    assert "classes" not in without.to_dict()


def test_the_summary_says_what_the_rows_tell(pair):
    before, after = pair
    assert compare_tables(before, after).summary().splitlines()[:2] == [
        "40 rows of 32 numbers: 27 identical (67.5%), 2 the same numbers in another order (5%), 6 moved but not "
        "significant (15%), 5 significant (12.5%).",
        "The training never touched the 27 identical rows: the data has no such token, or its updates were smaller "
        "than the rounding of the table.",
    ]
    frozen = compare_tables(before, before.clone()).summary().splitlines()
    assert frozen[1:] == ["No row moved: the embedding was frozen, or both are the same model."]
    head = compare_tables(before, before.clone(), table="output").summary()
    assert "No row moved: the output head was frozen" in head
    permuted = compare_tables(before[:11], before[:11].flip(1)).summary().splitlines()
    assert permuted[1] == "No value changed, but 11 rows hold their values in another order: look for permuted columns."
    every = compare_tables(before, before * 1.5 + 0.01).summary().splitlines()
    assert every[1].startswith("Every row changed, so this does not tell which tokens the training data had.")
    empty = compare_tables(before[:0], before[:0])
    assert (empty.summary(), repr(empty)) == (
        "0 rows of 32 numbers: nothing to compare.",
        "TableComparison(no rows)",
    )


def test_a_share_is_never_rounded_to_none_or_all():
    before = torch.zeros(200_000, 1)
    after = before.clone()
    after[0] = 1
    line = compare_tables(before, after).summary().splitlines()[0]
    assert line == (
        "200,000 rows of 1 numbers: 199,999 identical (over 99.9%), 1 moved but not significant (under 0.001%)."
    )


def test_the_csv_has_every_row_and_json_the_summary(pair, tiny_tokenizer):
    found = compare_tables(*pair)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [int(row["token_id"]) for row in rows] == list(range(V))
    assert [row["status"] for row in rows] == found.statuses()
    for name in ("statistic", "pvalue", "log_pvalue", "l2"):
        assert [float(row[name]) for row in rows] == getattr(found, name).tolist()
    assert (rows[11]["relative_l2"], rows[11]["cosine"], rows[0]["count"]) == ("", "", str(found.counts[0].item()))
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["format"] == "kslottery-comparison/1"
    assert content["rows"] == found.numbers
    assert content["changed"]["rows"] == 13
    assert content["changed"]["median_l2"] == pytest.approx(np.median(found.l2[:13].numpy()))
    texts = compare_tables(torch.zeros(320, 4), torch.zeros(320, 4), tokenizer=tiny_tokenizer).to_csv()
    read = list(csv.DictReader(io.StringIO(texts, newline="")))
    assert [row["token"] for row in read] == [token_text(tiny_tokenizer, token) for token in range(320)]
    space, quote = (read[tiny_tokenizer.convert_tokens_to_ids(piece)] for piece in ("Ċ", '"'))
    assert (space["token"], space["class"], space["leading_space"]) == ("\n", "white space", "0")
    assert (quote["token"], quote["class"]) == ('"', "punctuation and symbols")
    assert (read[0]["token"], read[0]["class"]) == ("<|endoftext|>", "special")


def test_a_tokenizer_mistake_does_not_lose_the_result(pair, tiny_tokenizer, monkeypatch):
    with pytest.raises(InputError, match="they are of different models"):
        compare_tables(*pair, tokenizer=tiny_tokenizer)
    monkeypatch.setattr(type(tiny_tokenizer), "convert_ids_to_tokens", lambda *_: 1 / 0)
    tables = torch.zeros(320, 4), torch.ones(320, 4)
    with pytest.warns(RuntimeWarning, match="texts and classes of the tokens are left out: tokenizer failed"):
        found = compare_tables(*tables, tokenizer=tiny_tokenizer)
    assert (found.numbers["significant"], found.tokens) == (320, None)


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
    before, after = pair
    damaged = after.clone()
    damaged[[2, 30], 1] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(InputError, match=r"after has NaN or Inf in 2 rows \(token ids 2, 30\): training diverged"):
        compare_tables(before, damaged)
    paths = [write(tmp_path / f"{name}.safetensors", table) for name, table in (("a", before), ("b", damaged))]
    with pytest.raises(InputError, match=r"b.safetensors, tensor .* has NaN or Inf in 2 rows \(token ids 2, 30\)"):
        compare_checkpoints(*paths, block_bytes=1)
    with pytest.raises(InputError, match="rows of different lengths"):
        compare_tables(before, after[:, :3])
    found = compare_tables(before, after)
    with pytest.raises(InputError, match="status is 'lost': expected 'identical', 'reordered', "):
        found.rows("lost")
    with pytest.raises(InputError, match="token_id is 40: expected less than 40, the number of rows"):
        found.status(40)
    with pytest.raises(InputError, match="k is 0: expected at least 1"):
        found.l2_rows(0)


@pytest.mark.parametrize("taller", ["before", "after"])
def test_rows_that_one_table_has_are_new_or_gone(pair, tmp_path, taller):
    before, after = pair[0], torch.cat([pair[1], torch.ones(3, D)])
    if taller == "before":
        before, after = after, before
    with pytest.raises(InputError, match="rows='shared' compares the 40 rows that both have"):
        compare_tables(before, after)
    found = compare_tables(before, after, rows="shared")
    only = "new" if taller == "after" else "gone"
    assert found.statuses()[40:] == [only] * 3
    assert (len(found), found.numbers[only], found.changed, found.status(42)) == (43, 3, 13, only)
    assert found.tickets() == ks_select(before, after, rows="shared")
    assert (found.l2_rows(3).vocab_size, found.l2_rows(3).vocab_size_after) == (len(before), len(after))
    last = list(csv.DictReader(io.StringIO(found.to_csv())))[-1]
    assert (last["status"], last["statistic"], last["l2"]) == (only, "", "")
    paths = [write(tmp_path / f"{name}.safetensors", table) for name, table in (("a", before), ("b", after))]
    stored = compare_checkpoints(*paths, rows="shared")
    assert torch.equal(stored.status_codes, found.status_codes)
    assert stored.tickets() == found.tickets()
    assert f"3 {only} (6.98%)" in found.summary()
