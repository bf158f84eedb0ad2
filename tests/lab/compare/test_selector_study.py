"""The study of selectors: what each puts first, what greedy selection finds, and that no measurement is made twice."""

from __future__ import annotations

import itertools

import pytest
import scipy
import torch

from benchmarks import selector_study
from benchmarks.greedy_rows import Remembered, better_of, greedy
from benchmarks.selector_rankings import BY_CONTRIBUTION, BY_EVIDENCE, best_first, excess, shrunk, wasserstein
from benchmarks.selector_study import NAMES, RANDOM, Study, main, open_cell
from benchmarks.selector_tables import difference, gain, value_of
from benchmarks.stage1_study import transfer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.evaluation.contribution import row_contributions
from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.tickets.evidence import Evidence

# Row:               10    20   30   40   50
COUNTS = torch.tensor([9, 8, 6, 2, 3])
L2 = torch.tensor([1.0, 4.0, 3.0, 1.5, 2.0]).double()
GRADIENT = torch.tensor([5.0, 3.0, 6.0, 2.0, 8.0]).double()
FREQUENCY = torch.tensor([1, 4, 16, 64, 4])
MADE_UP = Evidence(torch.tensor([10, 20, 30, 40, 50]), COUNTS, L2, GRADIENT, FREQUENCY, 60, 16)
CONTRIBUTION = torch.tensor([0.2, 0.35, 0.4, -0.1, 0.25]).double()
ERROR = torch.tensor([0.01, 0.01, 0.39, 0.01, 0.2]).double()


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "ks": [10, 20, 30, 50, 40],
        "ks-root": [30, 20, 40, 10, 50],  # 24, 16, 16, 9, 6
        "l2": [20, 30, 50, 40, 10],
        "l2-root": [30, 40, 20, 50, 10],  # 12, 12, 8, 4, 1
        "gradient": [50, 30, 10, 20, 40],
        "gradient-l2": [30, 50, 20, 10, 40],  # 18, 16, 12, 5, 3
        "frequency": [40, 30, 20, 50, 10],
        "contribution": [30, 20, 50, 10, 40],
        "contribution-shrunk": [20, 10, 50, 30, 40],  # 0.350, 0.200, 0.090, 0.020, -0.099
        "contribution-l2": [20, 30, 50, 10, 40],  # the roots of 1.4, 1.2, 0.5, 0.2, 0
    }.items(),
)
def test_a_selector_puts_the_rows_with_the_largest_numbers_first(name, expected):
    if name in BY_EVIDENCE:
        values, ties = BY_EVIDENCE[name](MADE_UP), None
    else:
        values, ties = BY_CONTRIBUTION[name](CONTRIBUTION, ERROR, MADE_UP), CONTRIBUTION
    assert best_first(MADE_UP, values, ties).tolist() == expected


def test_rows_whose_contribution_is_all_error_are_ranked_by_their_contribution():
    error = torch.full((5,), torch.nan).double()
    assert not shrunk(CONTRIBUTION, error).any()
    assert best_first(MADE_UP, shrunk(CONTRIBUTION, error), CONTRIBUTION).tolist() == [30, 20, 50, 10, 40]


@pytest.fixture(scope="module")
def many() -> Evidence:
    """300 rows that occur once and moved far, 300 that occur often and did not, and one of each that stands out."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.cat([torch.ones(300), torch.randint(50, 2000, (300,), generator=generator)]).long()
    counts = torch.cat([torch.full((300,), 60.0), torch.full((300,), 20.0)])
    counts += 4 * torch.randn(600, generator=generator)
    counts[7], counts[400] = 90, 44
    numbers = torch.zeros(600).double()
    return Evidence(torch.arange(600), counts.round().long(), numbers, numbers, frequency, 600, 576)


def test_a_row_stands_out_of_those_that_occur_as_often_not_of_all(many):
    for found in excess(many):
        assert sorted(found.sort(descending=True).indices[:2].tolist()) == [7, 400]
    assert best_first(many, many.counts).tolist().index(400) > 290


def test_the_null_of_a_row_is_median_and_spread_of_its_class(many):
    difference_, standardized = excess(many)
    once = many.counts[:300].numpy()
    spread = scipy.stats.median_abs_deviation(once, scale="normal")
    expected = (once - scipy.stats.scoreatpercentile(once, 50)) / spread
    torch.testing.assert_close(standardized[:300], torch.from_numpy(expected), rtol=1e-4, atol=0)
    far = (many.frequency.double().log() - many.frequency[400].double().log()).abs()
    nearest = many.counts[far.argsort()[:100]].double()
    assert difference_[400] == 44 - nearest.quantile(0.5)


def test_the_distance_of_wasserstein_is_that_of_scipy():
    before, after = torch.randn(2, 6, 33, generator=torch.Generator().manual_seed(1)).double()
    expected = [scipy.stats.wasserstein_distance(x, y) for x, y in zip(before.numpy(), after.numpy(), strict=True)]
    assert wasserstein(before, after).tolist() == pytest.approx(expected, rel=1e-12)


class Covering:
    """The loss falls by the weights of the points that some sets cover: gains only shrink as sets are added."""

    def __init__(self, sets: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.covered = torch.rand(sets, 40, generator=generator) < 0.2
        self.weights = torch.rand(40, generator=generator)
        self.asked: list[tuple[tuple[int, ...], bool]] = []

    def __call__(self, rows: tuple[int, ...], *, whole: bool) -> float:
        self.asked.append((rows, whole))
        return -float(self.weights[self.covered[list(rows)].any(dim=0)].sum())


@pytest.mark.parametrize("seed", range(5))
def test_a_lazy_search_chooses_what_one_chooses_that_looks_at_all_candidates_each_time(seed):
    score, chosen = Covering(30, seed), []
    for _ in range(6):
        left = [row for row in range(30) if row not in chosen]
        chosen.append(min(left, key=lambda row: score((*chosen, row), whole=True)))
    thorough, lazy = len(score.asked), Covering(30, seed)
    found = greedy(lazy, range(30), 6, looks=30, finalists=1)
    assert found == chosen
    assert len(set(lazy.asked)) < thorough * 0.6


def test_finalists_are_decided_on_all_examples():
    def score(rows: tuple[int, ...], *, whole: bool) -> float:
        return -sum({1: 3.0, 2: 2.9, 3: 1.0}[row] if not whole else {1: 1.0, 2: 2.0, 3: 9.0}[row] for row in rows)

    assert greedy(score, [1, 2, 3], 1, finalists=1) == [1]
    assert greedy(score, [1, 2, 3], 1, finalists=2) == [2]
    assert greedy(score, [1, 2, 3], 3, finalists=3) == [3, 2, 1]


def test_where_a_search_is_trapped_the_order_of_the_candidates_wins():
    def score(rows: tuple[int, ...], *, whole: bool) -> float:
        return -10.0 if {1, 2} <= set(rows) else -float(len({3, 4} & set(rows)))  # 1 and 2 are worth nothing alone

    found = greedy(score, [1, 2, 3, 4], 2)
    assert sorted(found) == [3, 4]
    assert better_of(score, found, [1, 2]) == [1, 2]
    assert better_of(score, [1, 2], found) == [1, 2]


def test_a_search_that_was_interrupted_goes_on_and_finds_the_same(tmp_path):
    expected = greedy(Covering(20, 3), range(20), 4)
    first, path = Covering(20, 3), tmp_path / "scores.json"

    def breaks(rows: tuple[int, ...], *, whole: bool) -> float:
        if len(first.asked) == 15:
            raise KeyboardInterrupt
        return first(rows, whole=whole)

    with pytest.raises(KeyboardInterrupt):
        greedy(Remembered(breaks, path), range(20), 4)
    second = Covering(20, 3)
    assert greedy(Remembered(second, path), range(20), 4) == expected
    assert second.asked
    assert not set(first.asked) & set(second.asked)


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory) -> Study:
    cell = open_cell(finished, seed=1)
    return Study(cell, tmp_path_factory.mktemp("selectors"), lambda _: None, points=4, candidates=6, part=3)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_selectors_are_scored_by_partial_transfer_and_their_folder_stays_as_it_is(study, finished):
    before = stamps(finished)
    for name in ("l2", "frequency", "gradient"):
        found, expected = study.measured(name, 4), transfer(study.cell, name, 4)
        assert (value_of(found), found["cover"]) == (expected["nll"], expected["cover"])
    assert stamps(finished) == before
    assert gain(study, study.measured("embed")) == 1
    assert gain(study, study.measured("untuned")) == 0
    own = difference(study.measured("l2", 4), study.measured("frequency", 4))
    assert own.value == pytest.approx(value_of(study.measured("l2", 4)) - value_of(study.measured("frequency", 4)))
    assert own.low <= own.value <= own.high


def test_a_contribution_is_that_of_the_first_training_examples(study):
    shop, tuned = study.cell.shop, study.cell.tuned
    batches = [collate(shop.train_features[i : i + 8], shop.pad_token_id) for i in (0, 8)]
    found = row_contributions(
        shop.model, shop.base_table()[tuned.token_ids], tuned.rows, batches, token_ids=tuned.token_ids, points=4, seed=1
    )
    assert study.contributions(16).contribution.tolist() == found.contribution.tolist()
    every = study.measured("contribution", 4)["token_ids"]
    assert every == study.contributions(24).ranked[:4].tolist()
    assert study.worth(every) == pytest.approx(float(study.contributions(24).cumulative[3]))
    assert study.measured("contribution-160", 4)["token_ids"] == every  # there are only 24 examples


def test_draws_differ_and_are_the_same_again(study):
    drawn = [tuple(study.ranking(name, 4)[:4].tolist()) for name in RANDOM]
    assert len(set(drawn)) == len(RANDOM)
    assert drawn == [tuple(study.ranking(name, 4)[:4].tolist()) for name in RANDOM]


def test_greedy_rows_are_no_worse_than_the_first_candidates_and_at_best_the_best_pair(study):
    candidates = study.ranking("contribution", 6)[:6].tolist()
    for size in (1, 2, 3):
        chosen, first = study.measured("greedy", size), study.measured("contribution", size)
        assert len(set(chosen["token_ids"])) == size
        assert set(chosen["token_ids"]) <= set(candidates)
        assert value_of(chosen) <= value_of(first)
    pairs = [study.remembered(pair, whole=True) for pair in itertools.combinations(candidates, 2)]
    assert min(pairs) <= value_of(study.measured("greedy", 2)) <= sorted(pairs)[len(pairs) // 2]


def test_the_command_measures_each_thing_once_and_prints_all(finished, tmp_path, monkeypatch, capsys):
    names = "ks,ks-z,frequency,wasserstein,contribution,contribution-shrunk,random-0,random-1,greedy"
    call = ["--folder", str(finished), "--output", str(tmp_path), "--sizes", "2,4", "--only", names]
    call += ["--greedy-sizes", "2"]
    scored, stop = [], len(names.split(",")) // 2

    def counting(self, rows, examples, score=Study.score):
        if len(scored) == stop:
            raise KeyboardInterrupt
        scored.append((None if rows is None else tuple(rows.tolist()), len(examples)))
        return score(self, rows, examples)

    monkeypatch.setattr(Study, "score", counting)
    with pytest.raises(KeyboardInterrupt):
        main(call)
    measured = {path: path.read_bytes() for path in tmp_path.glob("*.validation.json")}
    assert len(measured) == stop
    stop = -1
    assert main(call) == 0
    assert all(path.read_bytes() == content for path, content in measured.items())
    assert len(scored) - len(measured) == len(list(tmp_path.glob("*.validation.json"))) - len(measured) + len(
        list(tmp_path.glob("*.test.json"))
    ) + len(read_json(tmp_path / "greedy-scores.json"))

    monkeypatch.setattr(Study, "score", None)  # so nothing can be measured again
    monkeypatch.setattr(selector_study, "row_contributions", None)
    capsys.readouterr()
    assert main(call) == 0
    lines = [text.split() for text in capsys.readouterr().out.splitlines()]
    assert [text[0] for text in lines[:3]] == ["selector", "untuned", "embed"]
    heads = [text[0] for text in lines if text]
    assert heads.count("ks-z") == heads.count("contribution-shrunk") == 2  # scores, and differences from frequency
    assert ["random,", "2", "draws"] in [text[:3] for text in lines]
    value = value_of(read_json(tmp_path / "ks@4.validation.json"))
    assert f"{value:.3f}" in next(text for text in lines if text and text[0] == "ks")
    assert [text[:2] for text in lines if text and text[0] == "greedy"] == [["greedy", "2"]]


def test_another_study_is_not_continued_and_an_unknown_selector_is_named(study, finished, capsys):
    with pytest.raises(InputError, match=r"belongs to .*'seed': 1.* not to .*'seed': 0"):
        Study(open_cell(finished, seed=0), study.output, print)
    with pytest.raises(InputError, match="no such language and seed; it has es, 0, es, 1"):
        open_cell(finished, target="ca")
    with pytest.raises(SystemExit):
        main(["--folder", str(finished), "--output", str(study.output), "--only", "ks,best"])
    assert f"--only names best; expected some of {', '.join(NAMES)}" in " ".join(capsys.readouterr().err.split())
