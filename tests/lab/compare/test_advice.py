"""Recommendation and warnings on made-up numbers."""

import numpy as np
import pytest

from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.report.advice import (
    Candidate,
    control_sentence,
    recommend,
    recommendation_text,
    ticket_warnings,
)


def nll(value: float, *draws: float) -> Replicates:
    return Replicates(value, np.array(draws or (value, value))[:, None])


def model(arm: str, rows: int, *validation: float, test: float = 3.0) -> Candidate:
    return Candidate(arm, rows, nll(*validation), nll(test))


UNTUNED, EMBED = model("untuned", 0, 4.0, test=5.0), model("embed", 999, 2.0)
SMALL = model("partial@18", 18, 2.3, 2.1, 2.5)  # keeps 85 %, 75 to 95
MIDDLE = model("partial@64", 64, 2.1, 2.05, 2.15, test=3.2)  # keeps 95 %, 92.5 to 97.5; on the test pairs 90 %
LARGE = model("partial@256", 256, 2.0, 1.99, 2.01)


def test_the_smallest_set_whose_lower_bound_is_within_the_margin_is_recommended():
    found = recommend([LARGE, SMALL, MIDDLE], UNTUNED, EMBED, 0.1)
    assert (found["arm"], found["rows"]) == ("partial@64", 64)
    assert [one["arm"] for one in found["kept"]] == ["partial@18", "partial@64", "partial@256"]
    assert found["kept"][0]["value"] == pytest.approx(0.85)
    assert "Recommended: partial@64, 64 rows" in recommendation_text(found)
    assert "on the test pairs, which did not choose it, 90% (95 % interval 90% to 90%)" in recommendation_text(found)
    assert recommend([SMALL, MIDDLE, LARGE], UNTUNED, EMBED, 0.3)["arm"] == "partial@18"


def test_a_good_mean_with_a_wide_interval_is_not_enough():
    lucky = model("partial@4", 4, 2.0, 1.0, 3.0)
    assert recommend([lucky], UNTUNED, EMBED, 0.1)["arm"] is None
    text = recommendation_text(recommend([lucky, SMALL], UNTUNED, EMBED, 0.1))
    assert "surely keeps 90% of" in text
    assert "the best, partial@4" in text


def test_a_small_set_that_passes_while_a_larger_one_fails_is_not_recommended():
    lucky = model("partial@4", 4, 2.02, 2.01, 2.03)
    assert recommend([lucky], UNTUNED, EMBED, 0.1)["arm"] == "partial@4"
    assert recommend([lucky, SMALL, MIDDLE, LARGE], UNTUNED, EMBED, 0.1)["arm"] == "partial@64"
    assert recommend([lucky, SMALL], UNTUNED, EMBED, 0.1)["arm"] is None


def test_a_test_split_without_a_gain_gives_no_share():
    found = recommend([LARGE], UNTUNED, model("embed", 999, 2.0, test=5.1), 0.1)
    assert found["kept"][0]["test"] is None
    assert "no share can be told" in recommendation_text(found)


def test_without_candidates_or_without_a_gain_there_is_no_recommendation():
    assert "has no arm `partial`" in recommendation_text(recommend([], UNTUNED, EMBED, 0.1))
    assert recommend([SMALL], UNTUNED, model("embed", 999, 3.9, 4.1, 3.7), 0.1) is None
    assert "not clearly above 0" in recommendation_text(None)


def test_an_empty_set_is_never_recommended():
    nothing = model("partial@0.001", 0, 2.0)
    assert recommend([nothing], UNTUNED, EMBED, 0.1)["arm"] is None


@pytest.mark.parametrize(
    ("counts", "overlap", "expected"),
    [
        ([0, 0], None, ["selects no row"]),
        ([3, 9], 0.8, ["Few tickets at alpha = 0.05 (3 to 9)"]),
        ([300, 90], 0.8, ["Many tickets at alpha = 0.05 (90 to 300 of 2,000 active rows)"]),
        ([50, 60], 0.4, ["Unstable tickets: two training seeds share 40%"]),
        ([50, 60], 0.8, []),
    ],
)
def test_few_many_and_unstable_tickets_are_warned_about(counts, overlap, expected):
    by_alpha = {0.05: counts, 0.025: counts, 0.1: counts}
    found = ticket_warnings(0.05, by_alpha, [2000, 2000], overlap)
    assert len(found) == len(expected)
    for sentence, words in zip(found, expected, strict=True):
        assert words in sentence


def test_a_count_that_is_steep_in_alpha_is_warned_about():
    (found,) = ticket_warnings(0.05, {0.05: [20], 0.025: [6], 0.1: [40]}, [2000], None)
    assert "steep in alpha: 6 at half, 20 at alpha = 0.05, 40 at double" in found


def test_the_warning_of_unstable_tickets_says_which_sets_it_compares():
    counts = {0.05: [3, 30], 0.025: [3, 30], 0.1: [3, 30]}
    assert (
        "share 40% of their 18 rows of largest D"
        in ticket_warnings(0.05, counts, [2000] * 2, 0.4, "18 rows of largest D")[-1]
    )


def say(low: float, high: float, *per_seed: float) -> str:
    difference = {"value": (low + high) / 2, "low": low, "high": high}
    return control_sentence("frequency@18", "partial@18", difference, per_seed, (0.57, 0.13))


def test_a_control_is_better_worse_or_not_told_apart_by_its_interval():
    assert say(0.1, 0.3, 0.15, 0.2, 0.25).startswith("partial@18 is better than frequency@18")
    assert say(-0.3, -0.1, -0.2, -0.2).startswith("frequency@18 is better than partial@18")
    assert "cannot be told apart" in say(-0.1, 0.1, 0.02, 0.01, 0.03)
    assert "by seed +0.150, +0.200" in say(0.1, 0.3, 0.15, 0.2)
    assert "its rows are 57% of the training tokens, those of partial@18 13%" in say(0.1, 0.3, 0.15, 0.2)
    assert "one training seed, so nothing is known of another" in say(0.1, 0.3, 0.2)


def test_nothing_is_called_better_whose_seeds_disagree():
    assert "cannot be told apart" in say(0.1, 0.3, 0.4, 0.4, -0.1)
    assert "cannot be told apart" in say(-0.3, -0.1, -0.4, -0.4, 0.1)
