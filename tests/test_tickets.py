"""ks_select against scipy row by row; Tickets, their file, and every way in which one can be wrong."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from kslottery_fast import ops, ticket_file
from kslottery_fast.errors import InputError
from kslottery_fast.stats import critical_count, ks_statistics, pvalues
from kslottery_fast.tickets import Tickets, ks_select

V, D = 200, 64


@pytest.fixture
def before() -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def after(before: torch.Tensor) -> torch.Tensor:
    """Rows 0..59 shifted, from hardly to a lot; the others as they were."""
    tuned = before.clone()
    tuned[:60] += torch.linspace(0.0, 1.5, 60)[:, None]
    return tuned


def scipy_pvalues(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ks_2samp(before.double().numpy(), after.double().numpy(), axis=1).pvalue


@pytest.mark.parametrize("correction", [None, "bonferroni", "bh"])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
def test_selected_are_the_rows_that_scipy_finds_significant(
    before: torch.Tensor, after: torch.Tensor, alpha: float, correction: str | None
) -> None:
    p = scipy_pvalues(before, after)
    adjusted = {None: p, "bonferroni": p * V, "bh": stats.false_discovery_control(p)}[correction]
    tickets = ks_select(before, after, alpha, correction=correction)
    assert 0 < len(tickets) < 60
    assert sorted(tickets.token_ids.tolist()) == np.flatnonzero(adjusted < alpha).tolist()
    np.testing.assert_allclose(tickets.pvalue.numpy(), p[tickets.token_ids.numpy()], rtol=1e-10)
    assert (tickets.alpha, tickets.correction, tickets.selected_by) == (alpha, correction, "alpha")


def test_tickets_are_sorted_by_falling_statistic_then_id(before: torch.Tensor, after: torch.Tensor) -> None:
    tickets = ks_select(before, after)
    order = list(zip((-tickets.counts).tolist(), tickets.token_ids.tolist(), strict=True))
    assert order == sorted(order)
    assert len(set(tickets.counts.tolist())) < len(tickets), "no equal counts: the test shows nothing"
    assert tickets.statistic.tolist() == [h / D for h in tickets.counts.tolist()]
    assert tickets.counts.tolist() == ks_statistics(before, after)[tickets.token_ids].tolist()


@pytest.mark.parametrize("method", ["exact", "asymp", "paper", "auto"])
def test_the_threshold_is_the_smallest_significant_statistic(
    before: torch.Tensor, after: torch.Tensor, method: str
) -> None:
    tickets = ks_select(before, after, method=method)
    assert tickets.threshold_count == critical_count(D, 0.05, method)
    assert tickets.threshold == tickets.threshold_count / D
    assert (
        sorted(tickets.token_ids.tolist())
        == torch.nonzero(ks_statistics(before, after) >= tickets.threshold_count).reshape(-1).tolist()
    )
    assert tickets.method == ("exact" if method == "auto" else method)


def test_the_tables_are_read_once_and_exact_counts_asked_for_from_the_threshold_on(
    before: torch.Tensor, after: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    original = ops.ks_statistics

    def watch(x: torch.Tensor, y: torch.Tensor, threshold: int) -> Any:
        asked.append((len(x), threshold))
        return original(x, y, threshold)

    monkeypatch.setattr(ops, "ks_statistics", watch)
    tickets = ks_select(before, after)
    assert asked == [(len(before), tickets.threshold_count)]


def test_top_k_takes_the_largest_statistics_whatever_alpha_says(before: torch.Tensor, after: torch.Tensor) -> None:
    h = ks_statistics(before, after).tolist()
    expected = sorted(range(V), key=lambda row: (-h[row], row))[:7]
    for alpha in (0.05, 1e-9, None):
        tickets = ks_select(before, after, alpha, top_k=7)
        assert tickets.token_ids.tolist() == expected
        assert (tickets.selected_by, tickets.alpha) == ("top_k", alpha)
        assert tickets.threshold_count == h[expected[-1]]


def test_top_k_breaks_ties_by_the_lower_id_and_never_takes_an_unmoved_row() -> None:
    before = torch.zeros(6, 4)
    after = before.clone()
    after[[4, 1, 2]] = 1.0
    assert ks_select(before, after, top_k=2).token_ids.tolist() == [1, 2]
    with pytest.warns(RuntimeWarning, match=r"only 3 rows moved \(D > 0\), top_k asked for 5"):
        tickets = ks_select(before, after, top_k=5)
    assert tickets.token_ids.tolist() == [1, 2, 4]


def test_nothing_significant_gives_empty_tickets_and_says_why(before: torch.Tensor) -> None:
    barely = before + 0.01
    with pytest.warns(RuntimeWarning, match=r"no row is significant at alpha 0.05: the largest D is 0\.0\d+, the thr"):
        tickets = ks_select(before, barely)
    assert len(tickets) == 0
    assert not tickets
    assert tickets.mask().sum() == 0
    for correction in ("bonferroni", "bh"):
        with pytest.warns(RuntimeWarning, match="alpha 0.05 after the correction for many tests: the largest D is"):
            assert len(ks_select(before, barely, correction=correction)) == 0
    with pytest.warns(RuntimeWarning, match="no row differs between emb_before and emb_after"):
        ks_select(before, before.clone())
    with pytest.warns(RuntimeWarning, match="no row differs"):
        assert ks_select(before, before.clone(), top_k=3).threshold_count == 1


def test_an_alpha_that_no_row_can_reach_is_said_to_be_so() -> None:
    before, after = torch.zeros(5, 3), torch.ones(5, 3)
    assert pvalues(3, 3).item() > 0.05
    with pytest.warns(RuntimeWarning, match="no row of 3 numbers can be significant at alpha 0.05: use a larger alpha"):
        tickets = ks_select(before, after)
    assert len(tickets) == 0
    assert tickets.threshold_count == 4
    assert tickets.threshold > 1


def test_a_table_that_was_tuned_in_place_is_noticed(before: torch.Tensor) -> None:
    embedding = nn.Embedding.from_pretrained(before)
    with pytest.warns(RuntimeWarning, match="emb_before and emb_after are the same memory: clone the table before"):
        ks_select(embedding.weight, embedding)


def test_a_selection_that_finds_tickets_is_silent(before: torch.Tensor, after: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ks_select(before, after)
        ks_select(before, after, correction="bh")
        ks_select(before, after, top_k=3)


def test_an_empty_table_gives_empty_tickets() -> None:
    for options in ({}, {"top_k": 2}, {"correction": "bh"}, {"correction": "bonferroni"}):
        assert len(ks_select(torch.zeros(0, 8), torch.zeros(0, 8), **options)) == 0  # type: ignore[arg-type]


def test_embeddings_arrays_and_mixed_dtypes_are_taken(before: torch.Tensor, after: torch.Tensor) -> None:
    expected = ks_select(before, after)
    assert ks_select(nn.Embedding.from_pretrained(before), nn.Parameter(after)) == expected
    assert ks_select(before.numpy(), after.double()) == expected
    half = ks_select(before.bfloat16(), after.bfloat16())
    assert half.counts.tolist() == ks_statistics(before.bfloat16(), after.bfloat16())[half.token_ids].tolist()


def test_nan_and_inf_in_either_table_are_refused_with_rows(before: torch.Tensor, after: torch.Tensor) -> None:
    bad = after.clone()
    bad[[5, 17, 18, 90, 91, 150], 3] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, 1e30 * 1e30, torch.nan, torch.nan]
    )
    expected = r"^emb_after has NaN or Inf in 6 rows \(token ids 5, 17, 18, 90, 91, \.\.\.\): training diverged; lower"
    for options in ({}, {"top_k": 3}, {"correction": "bh"}):
        with pytest.raises(InputError, match=expected):
            ks_select(before, bad, **options)  # type: ignore[arg-type]
    one = before.clone()
    one[7, 0] = torch.inf
    with pytest.raises(InputError, match=r"^emb_before has NaN or Inf in 1 row \(token ids 7\): this is no healthy"):
        ks_select(one, after)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0}, InputError, "alpha is 0: expected a significance level between 0 and 1"),
        ({"alpha": 1.5}, InputError, "alpha is 1.5"),
        ({"alpha": None}, TypeError, "alpha is None: expected a number"),
        ({"alpha": 7, "top_k": 3}, InputError, "alpha is 7"),
        ({"method": "fast"}, InputError, "method is 'fast': expected 'auto', 'exact', 'asymp' or 'paper'"),
        ({"correction": "BH"}, InputError, "correction is 'BH': expected None, 'bonferroni' or 'bh'"),
        ({"top_k": 0}, InputError, "top_k is 0: expected at least 1 row"),
        ({"top_k": 2.0}, TypeError, "top_k is 2.0: expected a number of rows, or None"),
        ({"top_k": True}, TypeError, "top_k is True"),
    ],
)
def test_bad_options_are_named(
    before: torch.Tensor, after: torch.Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ks_select(before, after, **options)


def test_a_resized_vocabulary_is_recognized(before: torch.Tensor, after: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"emb_before is \[200, 64\] and emb_after is \[190, 64\]: was the vocabulary"):
        ks_select(before, after[:190])


# --- Tickets ---


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


def test_tickets_are_values() -> None:
    assert some() == some()
    assert hash(some()) == hash(some())
    assert some() != some(alpha=0.01)
    assert some() != "tickets"
    assert pickle.loads(pickle.dumps(some())) == some()
    assert repr(some()) == "Tickets(3 of 10 rows, d=8, alpha=0.05, method='exact', selected_by='alpha')"
    with pytest.raises(AttributeError):
        some().alpha = 0.1  # type: ignore[misc]


def test_the_summary_is_one_line_that_says_how_they_were_selected() -> None:
    assert some().summary() == "3 tickets of 10 rows (30 %): D >= 0.6250 (5/8), alpha 0.05, exact KS test"
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
    with pytest.raises(InputError, match="other is of a table of 11 rows, these tickets of one of 10"):
        some().jaccard(some(vocab_size=11))


@pytest.mark.parametrize(
    "tickets", [some(), some(selected_by="top_k", alpha=None), some(correction="bh", method="asymp")]
)
def test_a_file_gives_back_equal_tickets(tickets: Tickets, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tickets.json"
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
    with pytest.raises(InputError, match=f"token id {size} is a ticket, the tokenizer ends at {size - 1}"):
        Tickets.from_counts([size], [8], **fields).tokens(tiny_tokenizer)
    with pytest.raises(InputError, match=f"the tokenizer has {size} tokens, the table {size - 1} rows"):
        Tickets.from_counts([0], [8], **{**fields, "vocab_size": size - 1}).tokens(tiny_tokenizer)


class SentencePieceLike:
    """Decodes as SentencePiece tokenizers do: the space before a word is in the piece, not in the text."""

    pieces = ("▁the", "the")

    def __len__(self) -> int:
        return 2

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
    ({"dimension": 7}, "counts holds 8: tickets here have 5 <= h <= 7"),
    ({"threshold_count": 0}, "threshold_count is 0: expected an integer of at least 1"),
    ({"threshold_count": 10}, r"threshold_count is 10: expected 1\.\.9 for rows of 8 numbers"),
    ({"threshold_count": 7}, "counts holds 6: tickets here have 7 <= h <= 8"),
    ({"method": "auto"}, r"method is 'auto': expected one of \['exact', 'asymp', 'paper'\]"),
    ({"method": ["exact"]}, "method is .'exact'.: expected one of"),
    ({"correction": "holm"}, r"correction is 'holm': expected one of \[None, 'bonferroni', 'bh'\]"),
    ({"selected_by": "hand"}, r"selected_by is 'hand': expected one of \['alpha', 'top_k'\]"),
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
        data["digest"] = ticket_file.digest_of({k: v for k, v in data.items() if k != "digest"})
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
        (lambda data: data.update(tokens=["a"]), "tokens has 1 entries, token_ids 3"),
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
