"""One interface to all selectors: the ranking of each, how many rows are enough, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from kslottery_fast import attach_rows, get_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.base.ticket_ids import digest_of
from kslottery_fast.tickets.evidence import Evidence
from kslottery_fast.tickets.selected_rows import SelectedRows
from kslottery_fast.tickets.selectors import select_rows

EVIDENCE = Evidence(
    token_ids=torch.tensor([2, 4, 6, 8]),
    counts=torch.tensor([3, 0, 4, 3]),
    l2=torch.tensor([0.1, 0.2, 0.4, 0.3], dtype=torch.float64),
    gradient=torch.tensor([4.0, 3.0, 2.0, 1.0]).double(),
    frequency=torch.tensor([5, 9, 5, 1]),
    vocab_size=10,
    dimension=4,
)
WORTH = SimpleNamespace(token_ids=torch.tensor([2, 6, 8]), contribution=torch.tensor([0.5, -0.25, 1.75]).double())


@pytest.mark.parametrize(
    ("by", "ranked", "values"),
    [
        ("ks", [6, 2, 8], [4, 3, 3]),
        ("l2", [6, 8, 4], [0.4, 0.3, 0.2]),
        ("gradient", [2, 4, 6], [4, 3, 2]),
        ("frequency", [4, 2, 6], [9, 5, 5]),
        ("contribution", [8, 2, 4], [1.75, 0.5, 0]),
    ],
)
def test_each_selector_takes_the_rows_with_most_of_its_evidence(by, ranked, values):
    rows = select_rows(EVIDENCE, by, 3, contributions=WORTH if by == "contribution" else None)
    assert rows.selected_by == by
    assert list(rows) == ranked
    assert rows.values.tolist() == values


def test_enough_rows_are_the_beginning_of_the_ranking_that_reaches_the_share():
    counts = {
        by: len(select_rows(EVIDENCE, by, "enough", contributions=WORTH, share=0.8))
        for by in ("contribution", "gradient", "ks")
    }
    assert counts == {"contribution": 1, "gradient": 4, "ks": 3}
    rows = select_rows(EVIDENCE, "l2", 2, contributions=WORTH)
    assert rows.cumulative.tolist() == [-0.125, 0.75]
    assert repr(rows) == "SelectedRows(2 of 10 rows, 75% of the loss's fall, selected_by='l2')"
    missing = SimpleNamespace(token_ids=torch.tensor([2, 4]), contribution=torch.tensor([0.5, 0.5]).double())
    with pytest.raises(InputError, match=r"share is 0.95, and all 3 rows that 'ks' ranks do not account for it"):
        select_rows(EVIDENCE, "ks", "enough", contributions=missing)


@pytest.mark.parametrize("by", ["ks", "l2", "contribution"])
def test_a_file_of_selected_rows_holds_all_of_them_and_is_taken_as_token_ids(by, tmp_path):
    rows = select_rows(EVIDENCE, by, 2, contributions=WORTH if by == "contribution" else None)
    rows.save(tmp_path / "rows.json")
    again = SelectedRows.load(tmp_path / "rows.json")
    assert again.to_dict() == rows.to_dict()
    assert again.values.dtype == rows.values.dtype
    assert (again.cumulative is None) == (by != "contribution")
    assert get_rows(attach_rows(torch.nn.Embedding(10, 4), tmp_path / "rows.json")).token_ids.tolist() == list(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [2, 4]}, "digest does not match: the file was changed"),
        ({"format": "kslottery-rows/2"}, "format is 'kslottery-rows/2': expected 'kslottery-rows/1'"),
        ({"selected_by": None}, "selected_by is null: expected one of"),
        ({"values": [1.0]}, "values has 1 entries, token_ids 2"),
        ({"values": None}, "values must be a list of numbers"),
        ({"vocab_size": "10"}, "vocab_size is '10': expected an integer"),
    ],
)
def test_a_file_of_selected_rows_that_was_changed_is_refused(change, message, tmp_path):
    rows = select_rows(EVIDENCE, "l2", 2)
    content = {name: value for name, value in {**rows.to_dict(), **change}.items() if name != "digest"}
    digest = rows.to_dict()["digest"] if "token_ids" in change else digest_of(content)
    write_json(tmp_path / "rows.json", {**content, "digest": digest})
    with pytest.raises(InputError, match=message):
        SelectedRows.load(tmp_path / "rows.json")
    write_json(tmp_path / "rows.json", {"format": "kslottery-rows/1"})
    with pytest.raises(InputError, match="missing cumulative, digest, selected_by, token_ids, values, vocab_size"):
        SelectedRows.load(tmp_path / "rows.json")


def test_selected_rows_are_taken_as_token_ids():
    model = attach_rows(torch.nn.Embedding(10, 4), select_rows(EVIDENCE, "frequency", 2))
    assert get_rows(model).token_ids.tolist() == [4, 2]


def test_fewer_rows_than_k_are_warned_of():
    with pytest.warns(RuntimeWarning, match="only 3 rows can be selected by 'ks', k asked for 4") as caught:
        assert len(select_rows(EVIDENCE, "ks", 4)) == 3
    assert caught[0].filename == __file__


def test_what_cannot_be_selected_is_refused_by_name():
    elsewhere = SimpleNamespace(token_ids=torch.tensor([3]), contribution=torch.ones(1))
    rising = SimpleNamespace(token_ids=torch.tensor([2]), contribution=-torch.ones(1))
    for arguments, options, message in (
        ((None, "ks", 3), {}, "evidence is None: expected Evidence"),
        ((EVIDENCE, "size", 3), {}, "by is 'size': expected 'ks', 'l2', 'gradient', 'frequency' or 'contr"),
        ((EVIDENCE, "ks", 0), {}, "k is 0: expected at least 1"),
        ((EVIDENCE, "ks", "all"), {}, "k is 'all': expected an integer of at least 1, or 'enough'"),
        ((EVIDENCE, "contribution", 3), {}, "contributions is None, and by='contribution' needs them"),
        ((EVIDENCE, "l2", "enough"), {}, "contributions is None, and k='enough' needs them"),
        ((EVIDENCE, "l2", 1), {"contributions": [1]}, r"contributions is the list \[1\]: expected what"),
        ((EVIDENCE, "l2", 1), {"contributions": elsewhere}, "contributions has rows that evidence lacks"),
        ((EVIDENCE, "l2", 1), {"contributions": rising}, "contributions sum to -1.000 nats per token, so the loss"),
        ((EVIDENCE, "l2", "enough"), {"contributions": WORTH, "share": 95}, "share is 95: expected a number"),
        ((EVIDENCE, "l2", "enough"), {"contributions": WORTH, "share": None}, "share is None: expected a number"),
    ):
        with pytest.raises((InputError, TypeError), match=message):
            select_rows(*arguments, **options)
