"""The sentences follow from the numbers, including unwelcome results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from report_samples import certificate, comparison, control, interval, realistic, ticket_facts

from kslottery_fast.evaluation.comparison import Candidate, recommend
from kslottery_fast.evaluation.replicates import Replicates
from kslottery_fast.lab.report.advice import recommendation_text, sentences


def say(correction: str | None = None, **changes: Any) -> list[str]:
    """The sentences about a plain run with some parts changed."""
    language = realistic(rows=60).spanish
    return sentences({**language, "tickets": ticket_facts([], 55, 2200), **changes}, correction)


def test_a_plain_run_says_selection_gain_controls_stopping_and_certificate_once_each():
    text = say()
    assert len(text) == 7
    assert text[0].startswith("At alpha = 0.05 the KS test selects 55 of 49,152 rows (D of at least 0.0816).")
    assert "from 3.558 to 1.781, a gain of 1.777 nats (95% interval 1.727 to 1.827)." in text[1]
    assert (
        "Copying the 55 tickets recovers 78% (74% to 82%) of this gain; training them recovers 95% (92% to 98%)."
        in text[1]
    )
    assert text[2].startswith(
        "Training the 55 tickets gave a worse model than training equally many of the most frequent"
    )
    assert "-0.065 nats per token (95% interval -0.105 to -0.025). Coverage" in text[2]
    assert "57% for Frequency Tuning and 13% for Partial Tuning." in text[2]
    assert "random corpus rows" in text[3]
    assert text[4].startswith("There is one training seed")
    assert "29% of the untuned outputs end by themselves, compared with 99% after Partial Tuning" in text[5]
    assert "Raw BLEU goes from 0.16 to 9.11. On the first line" in text[5]
    assert text[6].startswith(
        "49.5% of 1,100 positions are certified at alpha = 0.05; the certificate is wrong at 38 of these 544 (7.0%)."
    )
    assert "the 55 rows that alpha selects predicts another token there" in text[6]
    assert "Copying the 55 tickets gives the same prediction as Embed Tuning at 78.0% of all positions" in text[6]


def test_a_certificate_of_no_position_has_no_share_of_wrong_ones():
    found = certificate()
    for level in found["levels"]:
        level |= {"certified": 0.0, "violations": 0}
    assert say(certificates={"0": found})[6].startswith("0.0% of 1,100 positions are certified at alpha = 0.05. Wrong")


def test_rows_that_are_not_significant_are_never_called_tickets():
    selection = realistic(rows=60).spanish["selection"]
    top_k = {**selection, "selected_by": "top_k", "largest": 0.05, "count": 7}
    text = say(selection=top_k, tickets=ticket_facts([], 0, 2200))
    assert "selects no row. The largest D is 0.0500. The smallest significant D is 0.0816." in text[0]
    assert "not significant" in text[0]
    assert "Copying the 7 rows of largest D recovers" in text[1]
    assert not any("7 tickets" in sentence for sentence in text)
    assert len(text) == 7, "the selection has said all that a warning could"
    (unreachable, *_) = say(selection={**top_k, "threshold": 1.1})
    assert "No D can be significant" in unreachable
    assert "1.1" not in unreachable


def test_no_gain_gives_no_percentages():
    for gain in ({**interval(0.1, 0.2), "shares": {}}, {**interval(0.3, 0.2), "shares": {"partial@tickets": None}}):
        text = say(gain=gain)[1]
        assert "did not clearly lower" in text
        assert "%" not in text.replace("95%", "")


def test_a_gain_is_told_without_arms_to_share_it_and_with_one():
    assert say(gain={**interval(1.7, 0.1), "shares": {}})[1].endswith("interval 1.600 to 1.800).")
    alone = say(gain={**interval(1.7, 0.1), "shares": {"partial@tickets": interval(0.9, 0.05)}})[1]
    assert alone.endswith("Training the 55 tickets recovers 90% (85% to 95%) of this gain.")


def test_a_correction_is_named():
    assert "(Bonferroni)" in say("bonferroni")[0]


def test_models_that_did_not_learn_to_stop_are_said_not_to_have():
    arms = realistic(rows=60).spanish["arms"]
    arms["partial@tickets"]["scores"]["ended"]["value"] = 0.2
    assert any(sentence.startswith("The models did not learn to stop: 29%") for sentence in say(arms=arms))


def compared(value: float, width: float, *per_seed: float) -> str:
    entry = {**control("frequency", "18", value=value, width=width), "per_seed": [{"nll": seed} for seed in per_seed]}
    language = {**comparison(seeds=len(per_seed), rows=60).spanish, "controls": [entry]}
    (sentence,) = (one for one in sentences(language, None) if "frequency@18" in one)
    return sentence


def test_a_control_is_better_worse_or_not_told_apart_by_its_interval():
    better = "Training the rows of partial@18 gave a better model than training the rows of frequency@18."
    assert compared(0.2, 0.1, 0.15, 0.2, 0.25).startswith(better)
    worse = compared(-0.2, 0.1, -0.2, -0.2)
    assert worse.startswith("Training the rows of partial@18 gave a worse model than training the rows of frequency@18")
    assert worse.endswith("Selection by the KS test is therefore not what makes rows useful here.")
    assert "cannot be told apart" in compared(0, 0.1, 0.02, 0.01, 0.03)
    assert "By seed: +0.150, +0.200." in compared(0.2, 0.1, 0.15, 0.2)
    assert "By seed" not in compared(0.2, 0.1, 0.2)


def test_nothing_is_called_better_whose_seeds_disagree():
    assert "cannot be told apart" in compared(0.2, 0.1, 0.4, 0.4, -0.1)
    assert "cannot be told apart" in compared(-0.2, 0.1, -0.4, -0.4, 0.1)


def test_several_seeds_are_told_which_one_a_sentence_is_about():
    text = sentences(comparison(rows=60).spanish, None)
    assert text[0].startswith("Recommended: partial@64")
    assert "selects 55 of 49,152 rows with training seed 0" in text[1]
    assert "Copying the tickets recovers" in text[2], "the seeds have different numbers of them"
    assert any("certified at alpha = 0.05 with training seed 0; the" in sentence for sentence in text)
    assert not any("There is one training seed" in sentence for sentence in text)


def warnings(counts: list[int], overlap: float | None = None, by_alpha: dict[float, int] | None = None) -> list[str]:
    facts = {**ticket_facts([], counts, 2000), "overlap_of_seeds": overlap}
    if by_alpha:
        facts["by_alpha"] = [{"alpha": alpha, "counts": [count]} for alpha, count in by_alpha.items()]
    return say(tickets=facts)[7:]


@pytest.mark.parametrize(
    ("counts", "overlap", "expected"),
    [
        ([0, 0], None, ["selects no row with any training seed"]),
        ([3, 9], 0.8, ["few tickets at alpha = 0.05 (3 to 9)"]),
        ([300, 90], 0.8, ["many tickets at alpha = 0.05 (90 to 300 of 2,000 active rows)"]),
        ([50, 60], 0.4, ["unstable: on average, two training seeds share 40% of their 18 rows of largest D"]),
        ([50, 60], 0.8, []),
    ],
)
def test_few_many_and_unstable_tickets_are_warned_about(counts, overlap, expected):
    found = warnings(counts, overlap)
    assert len(found) == len(expected)
    for sentence, words in zip(found, expected, strict=True):
        assert words in sentence


def test_a_count_that_is_steep_in_alpha_is_warned_about():
    (found,) = warnings([20], by_alpha={0.05: 20, 0.025: 6, 0.1: 40})
    assert "depends strongly on alpha: 6 at 0.025, 20 at 0.05, 40 at 0.1." in found


def nll(value: float, *draws: float) -> Replicates:
    return Replicates(value, np.array(draws or (value, value))[:, None])


def model(arm: str, rows: int, *validation: float, test: float = 3.0) -> Candidate:
    return Candidate(arm, rows, nll(*validation), nll(test))


UNTUNED, EMBED = model("untuned", 0, 4.0, test=5.0), model("embed", 999, 2.0)
SMALL = model("partial@18", 18, 2.3, 2.1, 2.5)  # keeps 85%, 75 to 95
MIDDLE = model("partial@64", 64, 2.1, 2.05, 2.15, test=3.2)  # keeps 95%, 92.5 to 97.5; on the test pairs 90%
LARGE = model("partial@256", 256, 2.0, 1.99, 2.01)


def test_the_smallest_set_whose_lower_bound_is_within_the_margin_is_recommended():
    found = recommend([LARGE, SMALL, MIDDLE], UNTUNED, EMBED, 0.1)
    assert (found["arm"], found["rows"]) == ("partial@64", 64)
    assert [one["arm"] for one in found["kept"]] == ["partial@18", "partial@64", "partial@256"]
    assert found["kept"][0]["value"] == pytest.approx(0.85)
    assert "Recommended: partial@64, 64 rows" in recommendation_text(found)
    assert (
        "On the test pairs, which were not used to choose it, it keeps 90% (95% interval 90% to 90%)."
        in recommendation_text(found)
    )
    assert recommend([SMALL, MIDDLE, LARGE], UNTUNED, EMBED, 0.3)["arm"] == "partial@18"


def test_a_good_mean_with_a_wide_interval_is_not_enough():
    lucky = model("partial@4", 4, 2.0, 1.0, 3.0)
    assert recommend([lucky], UNTUNED, EMBED, 0.1)["arm"] is None
    text = recommendation_text(recommend([lucky, SMALL], UNTUNED, EMBED, 0.1))
    assert "if it and all larger sets keep at least 90% of" in text
    assert "The best one, partial@4" in text


def test_a_small_set_that_passes_while_a_larger_one_fails_is_not_recommended():
    lucky = model("partial@4", 4, 2.02, 2.01, 2.03)
    assert recommend([lucky], UNTUNED, EMBED, 0.1)["arm"] == "partial@4"
    assert recommend([lucky, SMALL, MIDDLE, LARGE], UNTUNED, EMBED, 0.1)["arm"] == "partial@64"
    assert recommend([lucky, SMALL], UNTUNED, EMBED, 0.1)["arm"] is None


def test_a_test_split_without_a_gain_gives_no_share():
    found = recommend([LARGE], UNTUNED, model("embed", 999, 2.0, test=5.1), 0.1)
    assert found["kept"][0]["test"] is None
    assert "its share cannot be given" in recommendation_text(found)


def test_without_candidates_or_without_a_gain_there_is_no_recommendation():
    assert "has no arm `partial`" in recommendation_text(recommend([], UNTUNED, EMBED, 0.1))
    assert recommend([SMALL], UNTUNED, model("embed", 999, 3.9, 4.1, 3.7), 0.1) is None
    assert "did not clearly lower the validation NLL" in recommendation_text(None)


def test_an_empty_set_is_never_recommended():
    nothing = model("partial@0.001", 0, 2.0)
    assert recommend([nothing], UNTUNED, EMBED, 0.1)["arm"] is None


def test_the_tickets_alone_leave_nothing_to_recommend():
    for found in ({}, {"recommendation": None}):
        assert not any("ecommend" in sentence for sentence in say(**found))
