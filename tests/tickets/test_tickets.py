"""Tickets, their file, and every way in which one can be wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import digest_of
from kslottery_fast.ks.significance import pvalues
from kslottery_fast.tickets.tickets import Tickets


def some(**changes: Any) -> Tickets:
    fields = {"vocab_size": 10, "dimension": 8, "threshold_count": 5, "alpha": 0.05}
    return Tickets.from_counts([4, 9, 1], [6, 8, 6], **{**fields, **changes})


def test_from_counts_sorts_and_the_parts_are_consistent() -> None:
    tickets = some()
    assert tickets.token_ids.tolist() == [9, 1, 4]
    assert tickets.counts.tolist() == [8, 6, 6]
    assert tickets.statistic.tolist() == [1.0, 0.75, 0.75]
    assert tickets.pvalue.tolist() == pvalues([8, 6, 6], 8).tolist()
    assert tickets.log_pvalue.exp().tolist() == pytest.approx(tickets.pvalue.tolist())
    assert torch.nonzero(tickets.mask()).reshape(-1).tolist() == [1, 4, 9]
    assert len(tickets) == 3
    assert bool(tickets)


@pytest.mark.parametrize(("method", "dimension"), [("exact", 1 << 20), ("asymp", (1 << 20) + 1)])
def test_tickets_of_long_rows_are_saved_and_loaded(method: str, dimension: int, tmp_path: Path) -> None:
    tickets = some(method=method, dimension=dimension)
    tickets.save(tmp_path / "tickets.json")
    assert Tickets.load(tmp_path / "tickets.json") == tickets


def test_what_load_would_refuse_is_not_saved(tmp_path: Path) -> None:
    tickets = some(method="exact", dimension=(1 << 20) + 1)
    for refused in (tickets.to_dict, lambda: tickets.save(tmp_path / "tickets.json")):
        with pytest.raises(InputError, match=r"dimension is 1048577: expected at most 1048576 .* use method='asymp'"):
            refused()
    assert not list(tmp_path.iterdir())


def test_tickets_are_values() -> None:
    assert some() == some()
    assert hash(some()) == hash(some())
    for changes in (
        {"alpha": 0.01},
        {"vocab_size": 11},
        {"dimension": 9},
        {"threshold_count": 4},
        {"method": "asymp"},
        {"correction": "bh"},
        {"selected_by": "top_k"},
    ):
        assert some() != some(**changes)
    assert some() != Tickets.from_counts(
        [4, 9, 2], [6, 8, 6], vocab_size=10, dimension=8, threshold_count=5, alpha=0.05
    )
    assert some() != Tickets.from_counts(
        [4, 9, 1], [6, 7, 6], vocab_size=10, dimension=8, threshold_count=5, alpha=0.05
    )
    assert some() == some(token_texts=("a", "b", "c"))
    assert some() != "tickets"
    assert pickle.loads(pickle.dumps(some())) == some()
    assert repr(some()) == "Tickets(3 of 10 rows, d=8, alpha=0.05, method='exact', selected_by='alpha')"
    with pytest.raises(AttributeError):
        some().alpha = 0.1  # type: ignore[misc]


def test_the_summary_is_one_line_that_says_how_they_were_selected() -> None:
    assert some().summary() == "3 tickets of 10 rows (30%): D >= 0.6250 (5/8), alpha 0.05, exact KS test"
    assert "alpha 0.05, Benjamini-Hochberg, exact" in some(correction="bh").summary()
    assert "alpha 0.05, Bonferroni, exact" in some(correction="bonferroni").summary()
    assert "the largest D whatever their p-value" in some(selected_by="top_k").summary()
    assert (
        Tickets.from_counts([], [], vocab_size=0, dimension=8, threshold_count=5, alpha=0.05)
        .summary()
        .startswith("0 tickets of 0 rows: D >= ")
    )


def test_jaccard_is_the_overlap_of_two_sets_of_rows() -> None:
    other = Tickets.from_counts([1, 2], [8, 8], vocab_size=10, dimension=8, threshold_count=5, alpha=0.05)
    empty = Tickets.from_counts([], [], vocab_size=10, dimension=8, threshold_count=5, alpha=0.05)
    assert some().jaccard(some()) == 1
    assert some().jaccard(other) == other.jaccard(some()) == 1 / 4
    assert some().jaccard(empty) == 0
    assert empty.jaccard(empty) == 1
    with pytest.raises(InputError, match="other is of a table of 11 rows, but these tickets are of one of 10"):
        some().jaccard(some(vocab_size=11))


@pytest.mark.parametrize(
    "tickets", [some(), some(selected_by="top_k", alpha=None), some(correction="bh", method="asymp")]
)
def test_a_file_gives_back_equal_tickets(tickets: Tickets, tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    tickets.save(path)
    again = Tickets.load(path)
    assert again == tickets
    assert again.token_ids.dtype == again.counts.dtype == torch.int64
    assert again.pvalue.tolist() == tickets.pvalue.tolist()
    assert json.loads(path.read_text())["format"] == "kslottery-tickets/1"
    empty = Tickets.from_counts([], [], vocab_size=10, dimension=8, threshold_count=9, alpha=0.05)
    empty.save(path)
    assert Tickets.load(path) == empty


def test_tokens_are_texts_with_their_leading_space(tiny_tokenizer: Any, tmp_path: Path) -> None:
    size = len(tiny_tokenizer)
    word = tiny_tokenizer.encode(" English")[0]
    part = tiny_tokenizer.encode("é")[0]
    fields = {"vocab_size": size + 8, "dimension": 8, "threshold_count": 5, "alpha": 0.05}
    tickets = Tickets.from_counts([word, part], [8, 7], **fields)
    assert tickets.tokens(tiny_tokenizer)[0] == tiny_tokenizer.decode([word])
    assert tickets.tokens(tiny_tokenizer)[0].startswith(" ")
    assert tickets.tokens(tiny_tokenizer)[1] == tiny_tokenizer.convert_ids_to_tokens(part)  # half a character
    tickets.save(tmp_path / "t.json", tiny_tokenizer)
    again = Tickets.load(tmp_path / "t.json")
    assert again.token_texts == tuple(tickets.tokens(tiny_tokenizer))
    assert again == tickets
    again.save(tmp_path / "u.json")
    assert (tmp_path / "u.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    with pytest.raises(InputError, match=f"token id {size} is a ticket, but the tokenizer ends at {size - 1}"):
        Tickets.from_counts([size], [8], **fields).tokens(tiny_tokenizer)
    with pytest.raises(InputError, match=f"the tokenizer has {size} tokens, but the table has {size - 1} rows"):
        Tickets.from_counts([0], [8], **{**fields, "vocab_size": size - 1}).tokens(tiny_tokenizer)


class SentencePieceLike:
    """Decodes as SentencePiece tokenizers do: the space before a word is in the piece, not in the text."""

    pieces = ("▁the", "the")

    def __len__(self) -> int:
        return 2

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is encoded")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return self.pieces[tokens[0]].removeprefix("▁")


def test_sentencepiece_words_keep_the_space_that_tells_them_from_word_parts() -> None:
    tickets = Tickets.from_counts([0, 1], [8, 8], vocab_size=2, dimension=8, threshold_count=5, alpha=0.05)
    assert tickets.tokens(SentencePieceLike()) == [" the", "the"]


FIELD_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": -1}, "vocab_size is -1: expected an integer of at least 0"),
    ({"vocab_size": 10.0}, "vocab_size is 10.0: expected an integer"),
    ({"vocab_size": 9}, "token_ids holds 9, outside a table of 9 rows"),
    ({"dimension": 0}, "dimension is 0: expected an integer of at least 1"),
    ({"dimension": True}, "dimension is True: expected an integer"),
    ({"dimension": 7}, "counts holds 8: expected 5 to 7"),
    ({"threshold_count": 0}, "threshold_count is 0: expected an integer of at least 1"),
    ({"threshold_count": 10}, r"threshold_count is 10: expected 1\.\.9 for rows of 8 numbers"),
    ({"threshold_count": 7}, "counts holds 6: expected 7 to 8"),
    ({"method": "auto"}, "method is 'auto': expected 'exact', 'asymp' or 'paper'"),
    ({"method": ["exact"]}, r"method is the list \['exact'\]: expected 'exact', "),
    ({"correction": "holm"}, "correction is 'holm': expected None, 'bonferroni' or 'bh'"),
    ({"selected_by": "hand"}, "selected_by is 'hand': expected 'alpha' or 'top_k'"),
    ({"alpha": 1.0}, "alpha is 1.0: expected a significance level"),
    ({"alpha": "0.05"}, "alpha is '0.05': expected a number"),
    ({"alpha": None}, "alpha is None, but selected_by is 'alpha'"),
]


@pytest.mark.parametrize(("changes", "message"), FIELD_ERRORS)
def test_fields_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        some(**changes)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        (torch.tensor([4, 1]), torch.tensor([6, 6]), "token_ids must be sorted by falling count, then rising id"),
        (torch.tensor([1, 4]), torch.tensor([6, 7]), "token_ids must be sorted by falling count"),
        (torch.tensor([1, 1]), torch.tensor([7, 6]), "token_ids holds a row twice"),
        (torch.tensor([-1]), torch.tensor([7]), "token_ids holds -1, outside a table of 10 rows"),
        (torch.tensor([1, 2]), torch.tensor([7]), "counts has 1 entries, token_ids 2"),
        (torch.tensor([1.0]), torch.tensor([7]), r"token_ids must be an int64 tensor \[k\]"),
        (torch.tensor([1]), torch.tensor([[7]]), r"counts must be an int64 tensor \[k\]"),
        ([1], torch.tensor([7]), "token_ids must be an int64 tensor"),
    ],
)
def test_rows_that_do_not_fit_are_refused(ids: Any, counts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tickets(ids, counts, vocab_size=10, dimension=8, threshold_count=5, alpha=0.05)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], *, sign: bool) -> Path:
    """A saved file with a change; ``sign`` makes the digest fit again, as one who forges would."""
    some().save(path)
    data = json.loads(path.read_text())
    replaced = change(data)
    data = data if replaced is None else replaced
    if sign:
        data["digest"] = digest_of({k: v for k, v in data.items() if k != "digest"})
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(vocab_size=11), "digest does not match: the file was changed after it was written"),
        (lambda data: data.update(digest=None), "digest does not match"),
        (lambda data: data.update(format="kslottery-tickets/2"), "format is 'kslottery-tickets/2': expected"),
        (lambda data: data.pop("format") and None, "not a tickets file: expected a JSON object with the key 'format'"),
        (lambda data: [1, 2], "not a tickets file"),
        (lambda data: data.pop("digest") and None, "missing digest"),
        (lambda data: data.pop("alpha") and None, "missing alpha"),
        (lambda data: data.update(note="hi"), "unknown key 'note'"),
    ],
)
def test_a_changed_or_foreign_file_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "tickets.json", change, sign=False)
    with pytest.raises(InputError, match=rf"tickets\.json: {message}"):
        Tickets.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[((lambda data, c=changes: data.update(c)), message) for changes, message in FIELD_ERRORS],
        (lambda data: data.update(token_ids="1"), "token_ids must be a list of integers"),
        (lambda data: data.update(token_ids=[9, 1, True]), "token_ids must be a list of integers"),
        (lambda data: data.update(counts=[8, 6, 2**63]), "counts must be a list of integers"),
        (lambda data: data.update(counts=[8, 6]), "counts has 2 entries, token_ids 3"),
        (lambda data: data.update(token_ids=[9, 4, 1]), "token_ids must be sorted"),
        (lambda data: data.update(tokens=["a"]), "token_texts has 1 entries, token_ids 3: expected one text per row"),
        (lambda data: data.update(tokens=[1, 2, 3]), "tokens must be a list of strings"),
        (lambda data: data.update(threshold=0.5), "threshold does not follow from counts, dimension and method"),
        (lambda data: data.update(threshold=[0.625]), "threshold must be a number"),
        (lambda data: data["statistic"].__setitem__(1, 0.7), "statistic does not follow"),
        (lambda data: data.update(statistic=[1.0]), "statistic does not follow"),
        (lambda data: data.update(pvalue="small"), "pvalue must be a list of numbers"),
        (lambda data: data["pvalue"].__setitem__(0, data["pvalue"][0] * 1.001), "pvalue does not follow"),
        (lambda data: data["pvalue"].__setitem__(0, float("nan")), "pvalue does not follow"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_even_with_a_fitting_digest(
    change: Any, message: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "tickets.json", change, sign=True)
    with pytest.raises(InputError, match=message):
        Tickets.load(path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        Tickets.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": "kslottery-tick')
    with pytest.raises(InputError, match=r"half\.json is not valid JSON"):
        Tickets.load(tmp_path / "half.json")


def test_a_dict_is_the_content_of_the_file_and_gives_the_tickets_back(tmp_path: Path) -> None:
    tickets = some(token_texts=("a", "b", "c"))
    tickets.save(tmp_path / "t.json")
    assert tickets.to_dict() == json.loads((tmp_path / "t.json").read_text())
    again = Tickets.from_dict(tickets.to_dict())
    assert (again, again.token_texts) == (tickets, tickets.token_texts)
    with pytest.raises(InputError, match="data: digest does not match"):
        Tickets.from_dict({**tickets.to_dict(), "vocab_size": 11})
    with pytest.raises(TypeError, match=r"data is 't\.json': expected a dict that to_dict returned"):
        Tickets.from_dict("t.json")  # type: ignore[arg-type]


def test_a_place_where_no_file_can_be_written_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"path none/t\.json is in the folder none, which does not exist; make it first"
    ):
        some().save("none/t.json")
    with pytest.raises(InputError, match=r"path \. is a folder: name a file, such as tickets\.json"):
        some().save(".")
    for value, told in ((None, "None"), (3, "3")):
        with pytest.raises(TypeError, match=f"^path is {told}: expected a path"):
            some().save(value)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"^path is {told}: expected a path"):
            Tickets.load(value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"path \. is a folder: name a ticket file, such as tickets\.json"):
        Tickets.load(".")
    for method in (some().save, Tickets.load):
        with pytest.raises(InputError, match="path is empty: expected a path"):
            method("")
    with pytest.raises(TypeError, match="tokenizer is 'gpt2': expected a tokenizer; load it first"):
        some().save("t.json", "gpt2")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_tokenizer_is_refused_by_name() -> None:
    for method in (some().tokens, some().with_texts, some().check_tokenizer):
        with pytest.raises(TypeError, match=r"^tokenizer is 'gpt2': expected a tokenizer; load it first"):
            method("gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "counts", "error", "message"),
    [
        ([3.7], [6], InputError, r"token_ids has dtype torch\.float32: expected integers"),
        ([3], [6.0], InputError, r"counts has dtype torch\.float32: expected integers"),
        ([True], [6], InputError, r"token_ids has dtype torch\.bool: expected integers"),
        (["a"], [6], TypeError, r"token_ids is the list \['a'\]: expected integers in a list, array or tensor"),
        (None, [6], TypeError, "token_ids is None: expected integers"),
        ([3], {6}, TypeError, r"counts is the set \{6\}: expected integers"),
        ([10**30], [6], TypeError, "token_ids is the list .*: expected integers"),
        (3, 6, InputError, r"token_ids must be an int64 tensor \[k\]"),
    ],
)
def test_ids_and_counts_that_are_no_integers_are_refused_and_not_rounded(
    ids: Any, counts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Tickets.from_counts(ids, counts, vocab_size=10, dimension=8, threshold_count=5, alpha=0.05)


def test_numbers_of_numpy_are_taken_and_can_be_saved(recwarn: pytest.WarningsRecorder) -> None:
    ids = np.array([3, 7])
    ids.flags.writeable = False  # as pandas gives arrays, of which torch warns
    shape = {"vocab_size": np.int64(10), "dimension": np.int32(8), "threshold_count": np.int64(4)}
    tickets = Tickets.from_counts(ids, ids + 1, **shape, alpha=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(tickets.to_dict()))["alpha"] == 0.5
    assert not recwarn.list


def test_texts_follow_their_tickets_into_the_order_of_tickets() -> None:
    assert some(token_texts=["four", "nine", "one"]).token_texts == ("nine", "one", "four")
    with pytest.raises(TypeError, match="token_texts is 'abc': expected a list of strings, or None"):
        some(token_texts="abc")
    with pytest.raises(InputError, match="token_texts has 2 entries, token_ids 3"):
        some(token_texts=["a", "b"])
