"""What the report says about contributions: how many rows are enough, and the curves of the selectors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from report_samples import Sample, comparison

from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.lab.report import advice, contribution_facts, picture
from kslottery_fast.lab.report.contribution_facts import at, of_language, sentence
from kslottery_fast.lab.report.contribution_figure import contributions
from kslottery_fast.lab.report.figures import pictures
from kslottery_fast.tickets.evidence import Evidence


def cell(seed: int, worth: list[float], counts: list[int]) -> SimpleNamespace:
    """Rows 0, 1, 2, ... with these contributions and KS counts; L2 and the others rank the last row first."""
    n = len(worth)
    rising, zeros = torch.arange(n).double(), torch.zeros(n).double()
    evidence = Evidence(torch.arange(n), torch.tensor(counts), rising, rising, torch.arange(n), 100, 8)
    values = torch.tensor(worth, dtype=torch.float64)
    found = RowContributions(torch.arange(n), values, zeros, 100, "gauss", zeros[:3], zeros[:3], 20)
    return SimpleNamespace(seed=seed, evidence=evidence, contributions=found)


def test_numbers_are_those_of_every_seed_and_curves_their_mean():
    found = of_language([cell(0, [1.0, 0.5, 0.75, -0.25], [5, 4, 3, 0]), cell(1, [1.0, 1.0, 0.0, 0.0], [0, 0, 2, 1])])
    assert found["total"] == [2.0, 2.0]
    assert found["negative"] == [-0.25, 0.0]
    assert (found["moved"], found["examples"], found["points"]) == ([4, 4], [20, 20], [3, 3])
    assert found["enough"] == [
        {"share": 0.5, "rows": [1, 1]},
        {"share": 0.8, "rows": [2, 2]},
        {"share": 0.9, "rows": [3, 2]},
        {"share": 0.95, "rows": [3, 2]},
    ]
    curves = found["curves"]
    assert curves["contribution"] == {"rows": [1, 2, 3, 4], "share": [0.5, 0.9375, 1.0625, 1.0]}
    assert curves["l2"] == {"rows": [1, 2, 3, 4], "share": [-0.0625, 0.125, 0.5, 1.0]}
    assert curves["ks"] == {"rows": [1, 2], "share": [0.25, 0.375]}, "as many rows as every seed ranks"
    assert at(found, "contribution", 4) == 1.0
    assert at(found, "ks", 3) is None


def test_a_loss_that_does_not_fall_has_no_shares_and_the_sentence_says_so():
    found = of_language([cell(0, [1.0, 0.5], [1, 1]), cell(1, [-1.0, 0.5], [1, 1])])
    assert (found["enough"], found["curves"]) == (None, None)
    assert sentence(found) == (
        "The contributions of the rows that Embed Tuning moved sum to 0.500 nats per token. The training loss does not "
        "fall, so no row accounts for a share of a fall."
    )


def test_a_seed_in_which_no_row_has_a_ks_statistic_leaves_no_curve_of_ks():
    found = of_language([cell(0, [1.0, 0.5], [1, 1]), cell(1, [1.0, 0.5], [0, 0])])
    assert found["curves"]["ks"] == {"rows": [], "share": []}
    assert at(found, "ks", 1) is None


@pytest.fixture
def measured() -> Sample:
    """A comparison with contributions of the shape that was measured on SmolLM2-135M."""
    data = comparison(rows=60)
    generator = np.random.default_rng(0)
    worth = np.sort(generator.lognormal(-9, 2.2, 2500))[::-1] * np.where(generator.random(2500) < 0.1, -0.3, 1)
    one = cell(0, (2.5 * worth / worth.sum()).tolist(), np.arange(2500, 0, -1).tolist())
    noise = torch.from_numpy(generator.lognormal(0, 1.5, (3, 2500)))
    base = one.contributions.contribution.abs()
    l2, gradient, frequency = base * noise
    one.evidence = Evidence(
        one.evidence.token_ids, (base.sqrt() * noise[2] * 1e4).long(), l2, gradient, (frequency * 1e6).long(), 2500, 576
    )
    data.spanish["contributions"] = of_language([one])
    return data


def test_the_figure_has_a_curve_for_each_selector_and_its_text_the_shares(measured):
    names = [each.name for each in pictures(measured.summary, measured.rows)]
    assert names[names.index("ecdf-es") + 1] == "contributions-es"
    with picture.style():
        drawn = contributions("es", measured.spanish, ", Spanish")
    (axes,) = drawn.figure.axes
    labels = [line.get_label() for line in axes.get_lines()[:5]]
    assert labels == ["largest contribution", "largest L2 shift", "largest gradient", "most frequent", "largest D (KS)"]
    assert axes.get_xscale() == "log"
    assert len({line.get_color() for line in axes.get_lines()[:5]}) == 5
    found = measured.spanish["contributions"]
    assert f"18 rows: largest contribution {at(found, 'contribution', 18):.0%}, " in drawn.alt
    assert sentence(found) in drawn.caption
    assert drawn.title.endswith(", Spanish")


def test_findings_say_how_many_rows_account_for_the_fall_if_it_was_measured(measured):
    text = sentence(measured.spanish["contributions"])
    assert text in advice.sentences(measured.spanish, None)
    del measured.spanish["contributions"]
    assert text not in advice.sentences(measured.spanish, None)
    assert contribution_facts.SHARES == (0.5, 0.8, 0.9, 0.95)
