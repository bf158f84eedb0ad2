"""Tables of different heights: the rows that both have are compared on request, and tickets remember both heights."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from stored_tables import BLOCKS, NAME, D, V, refused, write

from kslottery_fast import InputError, Tickets, attach_rows, get_rows, ks_select, transfer_rows
from kslottery_fast.tickets import SelectedRows
from kslottery_fast.tickets.stored import ks_select_checkpoints, l2_select_checkpoints

NEW = 6


@pytest.fixture
def taller(tables) -> torch.Tensor:
    """The tuned table with new rows at its end."""
    return torch.cat([tables[1], torch.ones(NEW, D)])


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"correction": "bonferroni"}, {"correction": "bh"}], ids=str)
def test_the_rows_that_both_have_are_compared_as_if_there_were_no_others(tables, taller, tmp_path, options) -> None:
    expected = ks_select(*tables, **options)
    paths = [write(tmp_path / f"{i}.safetensors", each) for i, each in enumerate((tables[0], taller))]
    for block_bytes in BLOCKS:
        stored = ks_select_checkpoints(*paths, rows="shared", block_bytes=block_bytes, **options)
        assert stored == ks_select(tables[0], taller, rows="shared", **options)
        assert stored == ks_select(tables[0].numpy(), taller.numpy(), rows="shared", **options)
    for name in ("token_ids", "counts", "threshold_count", "alpha", "correction"):
        assert str(getattr(stored, name)) == str(getattr(expected, name))
    assert (stored.vocab_size, stored.vocab_size_after, stored.compared_rows) == (V, V + NEW, V)
    assert stored.summary() == expected.summary().replace("rows", "shared rows", 1) + "; 6 rows new and not compared"
    back = ks_select(taller, tables[0], rows="shared", **options)
    assert (back.vocab_size, back.vocab_size_after, back.compared_rows) == (V + NEW, V, V)
    assert back.summary().endswith("; 6 rows gone and not compared")
    same = ks_select(*tables, rows="shared", **options)
    assert same == expected
    assert same.vocab_size_after is None


def test_two_heights_are_refused_by_default_and_the_message_names_the_option(tables, taller, tmp_path) -> None:
    message = f"emb_before is [{V}, {D}] and emb_after is [{V + NEW}, {D}]: was the vocabulary resized between them? "
    with pytest.raises(InputError, match=re.escape(f"{message}rows='shared' compares the {V} rows that both have")):
        ks_select(tables[0], taller)
    with pytest.raises(InputError, match="rows is 'some': expected 'all' or 'shared'"):
        ks_select(tables[0], taller, rows="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows of different lengths"):
        ks_select(tables[0], taller[:, :-1], rows="shared")
    paths = [write(tmp_path / f"{i}.safetensors", each) for i, each in enumerate((tables[0], taller))]
    refused(*paths, f"rows='shared' (--rows shared) compares the {V} rows that both have")
    with pytest.raises(InputError, match="rows='shared'"):
        l2_select_checkpoints(*paths, 3)


def test_the_file_keeps_both_heights_and_a_file_without_them_is_read_as_before(tables, taller, tmp_path) -> None:
    tickets = ks_select(tables[0], taller, rows="shared")
    tickets.save(tmp_path / "tickets.json")
    assert Tickets.load(tmp_path / "tickets.json") == tickets
    plain = ks_select(*tables)
    assert "vocab_size_after" not in plain.to_dict()
    assert plain != tickets
    assert (tickets[:2].vocab_size_after, (tickets | tickets).vocab_size_after) == (V + NEW, V + NEW)
    with pytest.raises(InputError, match="other has vocab_size_after None"):
        _ = tickets | plain
    settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
    with pytest.raises(InputError, match="vocab_size_after is 10: expected null, or a number of rows other than"):
        Tickets.from_counts([3], [4], **settings, vocab_size_after=10)
    with pytest.raises(InputError, match="token_ids holds 9, outside a table of 8 rows"):
        Tickets.from_counts([9], [4], **settings, vocab_size_after=8)


def test_tickets_of_shared_rows_are_tickets_of_both_models_and_of_no_third(tables, taller, tmp_path) -> None:
    tickets = ks_select(tables[0], taller, rows="shared", top_k=4)
    tickets.save(tmp_path / "tickets.json")
    for given in (tickets, tmp_path / "tickets.json"):
        target = tables[0].clone()
        transfer_rows(taller, target, given)
        expected = tables[0].clone()
        expected[tickets.token_ids] = tables[1][tickets.token_ids]
        assert torch.equal(target, expected)
        for table in (tables[0], taller):
            model = attach_rows(torch.nn.Embedding.from_pretrained(table.clone()), given)
            assert sorted(get_rows(model).token_ids.tolist()) == sorted(tickets)
        with pytest.raises(InputError, match=f"these tickets are of a table with {V} rows, but this one has {V + 1}"):
            attach_rows(torch.nn.Embedding(V + 1, D), given)


def test_rows_of_largest_shift_are_of_shared_rows_too(tables, taller, tmp_path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", each) for i, each in enumerate((tables[0], taller))]
    rows = l2_select_checkpoints(*paths, 5, rows="shared")
    plain = l2_select_checkpoints(paths[0], write(tmp_path / "same.safetensors", tables[1]), 5)
    assert rows.token_ids.tolist() == plain.token_ids.tolist()
    assert rows.summary() == f"5 of {V} shared rows: the largest L2 shift; 6 rows new and not compared"
    rows.save(tmp_path / "rows.json")
    assert SelectedRows.load(tmp_path / "rows.json").vocab_size_after == V + NEW
    assert "vocab_size_after" not in plain.to_dict()
    for table in (tables[0], taller):
        attach_rows(torch.nn.Embedding.from_pretrained(table.clone()), tmp_path / "rows.json")


def test_dtypes_may_be_mixed(tables, taller, tmp_path) -> None:
    rounded = taller.to(torch.bfloat16)
    paths = [write(tmp_path / f"{i}.safetensors", each) for i, each in enumerate((tables[0], rounded))]
    expected = ks_select(tables[0], rounded[:V].float())
    found = ks_select_checkpoints(*paths, rows="shared")
    assert found.counts.tolist() == expected.counts.tolist()
    assert found == ks_select(tables[0], rounded, rows="shared")


def test_a_name_that_after_lacks_is_aligned_or_mapped(tables, pair, tmp_path) -> None:
    expected = ks_select(*tables)
    names = {"old": "net.tokens", "new": "m.net.tokens"}
    odd = [
        write(tmp_path / f"{file}.safetensors", table, name)
        for (file, name), table in zip(names.items(), tables, strict=True)
    ]
    with pytest.warns(
        RuntimeWarning, match=r"new.safetensors has no tensor net.tokens: m.net.tokens is compared, which"
    ):
        assert ks_select_checkpoints(*odd, tensor="net.tokens") == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ks_select_checkpoints(*odd, tensor="net.tokens", name_map={"": "m"}) == expected
        assert ks_select_checkpoints(pair[0], odd[1], name_map={NAME: "m.net.tokens"}) == expected
    refused(*odd, "new.safetensors has no tensor tokens", tensor="net.tokens", name_map={"net": ""})
    refused(*pair, "name_map none=a", name_map={"none": "a"})
    refused(*odd, "leave name_map (--map) out", tensor=("net.tokens", "m.net.tokens"), name_map={"net": "m.net"})


def test_texts_may_come_from_the_tokenizer_of_either_model(tiny_tokenizer) -> None:
    size = len(tiny_tokenizer)
    before = torch.zeros(size - 4, 32)
    after = torch.zeros(size, 32)
    after[1] = 1
    tickets = ks_select(before, after, rows="shared", tokenizer=tiny_tokenizer)
    assert len(tickets.token_texts or ()) == 1
    with pytest.raises(InputError, match=r"the tokenizer has .* tokens, but the table has 3 rows"):
        ks_select(before[:3], after[:2], rows="shared", tokenizer=tiny_tokenizer)
