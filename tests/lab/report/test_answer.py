"""How many rows are enough: the recommended set, and the line that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kslottery_fast.evaluation.comparison import Candidate, recommend
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.report.answer import answer, reason
from kslottery_fast.lab.report.words import way_of


def nll(value: float, *draws: float) -> Replicates:
    return Replicates(value, np.array(draws or (value, value))[:, None])


def model(arm: str, rows: float, *validation: float, test: float = 3.0) -> Candidate:
    return Candidate(arm, rows, nll(*validation), nll(test), way_of(arm), arm.startswith("random"))


UNTUNED, EMBED = model("untuned", 0, 4.0, test=5.0), model("embed", 999, 2.0)
SMALL = model("partial@18", 18, 2.3, 2.1, 2.5)  # keeps 85%, 75 to 95
MIDDLE = model("partial@64", 64, 2.1, 2.05, 2.15, test=3.2)  # keeps 95%, 92.5 to 97.5; on the test pairs 90%
LARGE = model("partial@256", 256, 2.0, 1.99, 2.01)


def found_among(*sets: Candidate, margin: float = 0.1) -> dict[str, Any]:
    found = recommend(sets, UNTUNED, EMBED, margin)
    assert found is not None
    return found


def test_the_smallest_set_whose_lower_bound_is_within_the_margin_is_recommended():
    found = found_among(LARGE, SMALL, MIDDLE)
    assert (found["arm"], found["rows"], found["take"]) == ("partial@64", 64, "partial@64")
    assert [one["arm"] for one in found["kept"]] == ["partial@18", "partial@64", "partial@256"]
    assert [one["passes"] for one in found["kept"]] == [False, True, True]
    assert found["kept"][0]["value"] == pytest.approx(0.85)
    assert found_among(SMALL, MIDDLE, LARGE, margin=0.3)["arm"] == "partial@18"


def test_a_good_mean_with_a_wide_interval_is_not_enough_but_is_taken_if_nothing_else_is():
    lucky = model("partial@4", 4, 2.0, 1.0, 3.0)
    found = found_among(lucky, SMALL)
    assert (found["arm"], found["rows"], found["take"]) == (None, None, "partial@4")
    assert answer(found).endswith("Take partial@4, the best set here, which trains the 4 rows of largest D.")
    assert reason(found).startswith(
        "No set here keeps at least 90% of Embed Tuning's gain in validation NLL at the lower"
    )
    assert "The one that keeps most is partial@4 with 100%" in reason(found)


def test_a_small_set_that_passes_while_a_larger_one_of_its_way_fails_is_not_recommended():
    lucky = model("partial@4", 4, 2.02, 2.01, 2.03)
    assert found_among(lucky)["arm"] == "partial@4"
    assert found_among(lucky, SMALL, MIDDLE, LARGE)["arm"] == "partial@64"
    assert found_among(lucky, SMALL)["arm"] is None
    other = model("l2@18", 18, 2.3, 2.1, 2.5)
    assert found_among(lucky, other)["arm"] == "partial@4"


def test_the_smallest_set_of_all_ways_is_recommended_and_of_equally_many_rows_the_best():
    copied, better = model("transfer-l2@200", 200, 2.1, 2.05, 2.15), model("l2@64", 64, 2.05, 2.02, 2.08)
    found = found_among(MIDDLE, copied, better)
    assert found["arm"] == "l2@64"
    assert answer(found).startswith(
        "On the validation pairs, 200 copied rows are enough for 95% of Embed Tuning's gain, and 64 trained rows are "
        "enough for 98%. Take l2@64, which trains the 64 rows of largest L2 shift."
    )
    copied = found_among(model("transfer-contribution@18", 18, 2.1, 2.05, 2.15), MIDDLE)
    assert answer(copied).endswith(
        "Take transfer-contribution@18, which copies the 18 rows that account for most of the loss's fall."
    )


def test_a_control_may_do_as_well_but_is_never_recommended():
    lucky = model("random@18", 18, 2.1, 2.05, 2.15)
    found = found_among(lucky, MIDDLE)
    assert found["arm"] == "partial@64"
    assert [one["arm"] for one in found["kept"]] == ["partial@64"]
    assert [one["arm"] for one in found["as_good"]] == ["random@18"]
    assert answer(found).endswith("Random rows may do as well at 18 rows.")


def test_a_simpler_selector_is_named_at_the_smallest_size_at_which_it_is_not_clearly_worse():
    better = model("l2@64", 64, 2.05, 2.02, 2.08)
    worse, equal = model("frequency@64", 64, 2.2, 2.17, 2.23), model("frequency@208", 208, 2.06, 2.01, 2.1)
    found = found_among(better, worse, equal)
    assert found["take"] == "l2@64"
    (one,) = found["as_good"]
    assert (one["arm"], one["rows"], one["difference"]["value"]) == ("frequency@208", 208, pytest.approx(0.01))
    assert one["difference"]["low"] < 0 < one["difference"]["high"]
    assert answer(found).endswith("Frequency may do as well at 208 rows.")
    assert found_among(better, worse)["as_good"] == []
    assert "Frequency" not in answer(found_among(better, worse))
    copies = found_among(better, model("transfer-frequency@208", 208, 2.06, 2.01, 2.1))
    assert answer(copies).endswith("Frequency may do as well at 208 copied rows.")


def test_a_poor_set_with_a_wide_interval_does_not_count_as_doing_as_well():
    poor = model("frequency@18", 18, 3.0, 1.9, 4.0)
    assert found_among(MIDDLE, poor)["as_good"] == []


def test_if_frequency_itself_is_to_be_taken_the_answer_says_whether_ks_may_do_as_well():
    frequent = model("frequency@18", 18, 2.02, 2.01, 2.03)
    assert answer(found_among(frequent, MIDDLE)).endswith(
        "Take frequency@18, which trains the rows of the 18 most frequent tokens."
    )
    equal = model("partial@64", 64, 2.01, 2.0, 2.02)
    assert answer(found_among(frequent, equal)).endswith("KS may do as well at 64 rows.")


@pytest.mark.parametrize(
    ("arm", "rows", "outcome", "ending"),
    [
        ("frequency@64", 64, "worse", "Frequency may do as well at 64 rows (it does worse on the test pairs)."),
        ("frequency@64", 64, "better", "Frequency may do as well at 64 rows (it does better on the test pairs)."),
        ("frequency@64", 64, "tie", "Frequency may do as well at 64 rows."),
        ("frequency@18", 18, "worse", "Frequency may do as well at 18 rows (it does worse at 64 on the test pairs)."),
        ("frequency@18", 18, "better", "Frequency may do as well at 18 rows."),
        ("frequency@208", 208, "worse", "Frequency may do as well at 208 rows."),
        (
            "frequency@208",
            208,
            "better",
            "Frequency may do as well at 208 rows (it does better at 64 on the test pairs).",
        ),
        ("frequency@64:lr=0.1", 64, "worse", "Frequency may do as well at 64 rows."),  # tested with other options
        ("transfer-frequency@64", 64, "worse", "Frequency may do as well at 64 copied rows."),
        ("random@64:draw=1", 64, "worse", "Random rows may do as well at 64 rows (they do worse on the test pairs)."),
    ],
)
def test_where_the_test_pairs_differ_from_validation_the_answer_says_both(arm, rows, outcome, ending):
    found = found_among(MIDDLE, model(arm, rows, 2.1, 2.04, 2.16))
    found["take"] = found["arm"] = "partial@64"
    found["as_good"] = [{"arm": arm, "rows": rows}]
    selector = "random" if arm.startswith("random") else "frequency"
    assert answer(found, on_test={selector: outcome, "l2": "worse"}).endswith(ending)


def test_one_size_is_answered_without_a_choice():
    found = found_among(MIDDLE)
    assert answer(found) == "On the validation pairs, 64 trained rows are enough for 95% of Embed Tuning's gain."
    assert reason(found) == (
        "partial@64 keeps 95% (95% interval 93% to 97%) of Embed Tuning's gain in validation NLL. On the test pairs, "
        "which were not used to choose it, it keeps 90% (95% interval 90% to 90%)."
    )
    single = found_among(model("partial@1", 1, 2.1, 2.05, 2.15))
    assert answer(single) == "On the validation pairs, 1 trained row is enough for 95% of Embed Tuning's gain."


def test_a_larger_set_that_keeps_no_more_is_left_out_of_the_sizes():
    found = found_among(MIDDLE, model("partial@200", 200, 2.15, 2.12, 2.18), SMALL)
    assert answer(found).startswith(
        "On the validation pairs, 18 trained rows are enough for 85% of Embed Tuning's gain and 64 for 95%. Take"
    )


def test_several_languages_are_answered_by_their_mean_and_mean_numbers_of_rows_are_rounded():
    found = found_among(model("partial@tickets", 52.5, 2.1, 2.05, 2.15), SMALL)
    assert answer(found, "in the mean over 2 languages") == (
        "In the mean over 2 languages, on the validation pairs, 18 trained rows are enough for 85% of Embed Tuning's "
        "gain and about 52 for 95%. Take partial@tickets, which trains the rows of largest D (about 52)."
    )


def test_a_test_split_without_a_gain_gives_no_share():
    found = recommend([LARGE], UNTUNED, model("embed", 999, 2.0, test=5.1), 0.1)
    assert found is not None
    assert found["kept"][0]["test"] is None
    assert "its share cannot be given" in reason(found)


def test_without_a_gain_without_candidates_and_without_any_use_nothing_is_advised():
    assert recommend([SMALL], UNTUNED, model("embed", 999, 3.9, 4.1, 3.7), 0.1) is None
    assert "did not clearly lower the NLL, so it cannot be said how many rows are enough" in answer(None)
    nothing = found_among()
    assert answer(nothing).startswith("No arm here trains or copies rows that a selector chose")
    useless = found_among(model("partial@18", 18, 4.1))
    assert useless["take"] is None
    assert answer(useless) == (
        "On the validation pairs, no set of rows keeps any of Embed Tuning's gain. Add larger sets."
    )
    assert [reason(None), reason(nothing), reason(useless)] == ["", "", ""]


def test_an_empty_set_is_neither_recommended_nor_taken():
    found = found_among(model("partial@0.001", 0, 2.0))
    assert (found["arm"], found["take"]) == (None, None)
