"""The sentences follow from the numbers, including unwelcome results."""

from __future__ import annotations

from typing import Any

import pytest
from report_samples import certificate, compared, comparison, interval, realistic, ticket_facts

from kslottery_fast.lab.report.advice import sentences
from kslottery_fast.lab.report.selector_text import selector_sentences


def say(correction: str | None = None, **changes: Any) -> list[str]:
    """The sentences about a plain run with some parts changed."""
    language = realistic(rows=60).spanish
    return sentences({**language, "tickets": ticket_facts([], 55, 2200), **changes}, correction)


def test_a_plain_run_answers_first_and_then_says_each_reason_once():
    text = say()
    assert len(text) == 8
    assert text[0] == "On the validation pairs, 55 trained rows are enough for 95% of Embed Tuning's gain."
    assert text[1].startswith("partial@tickets keeps 95% (95% interval 93% to 97%) of Embed Tuning's gain")
    assert text[2].startswith(
        "With 55 trained rows, KS (+0.065 nats per token of test NLL, 95% interval +0.025 to +0.105) and random rows "
        "(+1.726, +1.686 to +1.766) are worse than frequency."
    )
    assert "Coverage of the training tokens is 13% for KS, 57% for frequency and 2% for random rows." in text[2]
    assert text[2].endswith("A count of the tokens chooses better rows here than the KS test does.")
    assert text[3].startswith("There is one training seed")
    assert text[4].startswith("At alpha = 0.05 the KS test selects 55 of 49,152 rows (D of at least 0.0816).")
    assert "from 3.558 to 1.781, a gain of 1.777 nats (95% interval 1.727 to 1.827)." in text[5]
    assert (
        "Copying the 55 tickets recovers 78% (74% to 82%) of this gain; training them recovers 95% (92% to 98%)."
        in text[5]
    )
    assert "29% of the untuned outputs end by themselves, compared with 99% after Partial Tuning" in text[6]
    assert "Raw BLEU goes from 0.16 to 9.11. On the first line" in text[6]
    assert text[7].startswith(
        "49.5% of 1,100 positions are certified at alpha = 0.05; the certificate is wrong at 38 of these 544 (7.0%)."
    )
    assert "the 55 rows that alpha selects predicts another token there" in text[7]
    assert "Copying the 55 tickets gives the same prediction as Embed Tuning at 78.0% of all positions" in text[7]


def test_a_certificate_of_no_position_has_no_share_of_wrong_ones():
    found = certificate()
    for level in found["levels"]:
        level |= {"certified": 0.0, "violations": 0}
    assert say(certificates={"0": found})[7].startswith("0.0% of 1,100 positions are certified at alpha = 0.05. Wrong")


def test_rows_that_are_not_significant_are_never_called_tickets():
    selection = realistic(rows=60).spanish["selection"]
    top_k = {**selection, "selected_by": "top_k", "largest": 0.05, "count": 7}
    text = say(selection=top_k, tickets=ticket_facts([], 0, 2200))
    assert "selects no row. The largest D is 0.0500. The smallest significant D is 0.0816." in text[4]
    assert "not significant" in text[4]
    assert "Copying the 7 rows of largest D recovers" in text[5]
    assert not any("7 tickets" in sentence for sentence in text)
    assert len(text) == 8, "the selection has said all that a warning could"
    unreachable = say(selection={**top_k, "threshold": 1.1})[4]
    assert "No D can be significant" in unreachable
    assert "1.1" not in unreachable


def test_no_gain_gives_no_percentages():
    for gain in ({**interval(0.1, 0.2), "shares": {}}, {**interval(0.3, 0.2), "shares": {"partial@tickets": None}}):
        text = say(gain=gain)[5]
        assert "did not clearly lower" in text
        assert "%" not in text.replace("95%", "")


def test_a_gain_is_told_without_arms_to_share_it_and_with_one():
    assert say(gain={**interval(1.7, 0.1), "shares": {}})[5].endswith("interval 1.600 to 1.800).")
    alone = say(gain={**interval(1.7, 0.1), "shares": {"partial@tickets": interval(0.9, 0.05)}})[5]
    assert alone.endswith("Training the 55 tickets recovers 90% (85% to 95%) of this gain.")


def test_a_correction_is_named():
    assert "(Bonferroni)" in say("bonferroni")[4]


def test_models_that_did_not_learn_to_stop_are_said_not_to_have():
    arms = realistic(rows=60).spanish["arms"]
    arms["partial@tickets"]["scores"]["ended"]["value"] = 0.2
    assert any(sentence.startswith("The models did not learn to stop: 29%") for sentence in say(arms=arms))


def test_without_a_gain_on_validation_no_number_of_rows_is_advised_and_no_reason_is_given():
    text = say(recommendation=None)
    assert text[0] == (
        "On the validation pairs, Embed Tuning did not clearly lower the NLL, so it cannot be said how many rows are "
        "enough for its gain. Train longer or try another learning rate."
    )
    assert text[1].startswith("With 55 trained rows")


def test_selectors_of_every_trained_size_are_told_by_what_they_did():
    group = compared("64", 64, frequency=2.0, contribution=1.9, l2=2.03, ks=2.1)
    copies = compared("18", 18, copied=True, frequency=2.2, ks=2.6)
    arms = {spec: {"coverage": [0.5]} for model in group["models"] for spec in model["arms"]}
    (text,) = selector_sentences([copies, group], arms)
    assert text.startswith(
        "With 64 trained rows, contribution (-0.100 nats per token of test NLL, 95% interval -0.140 to -0.060) is "
        "better than frequency. KS (+0.100, +0.060 to +0.140) is worse than frequency. No difference from frequency is "
        "shown for L2 shift (+0.030, -0.010 to +0.070). Coverage"
    )
    assert selector_sentences([copies], {"transfer@18": ONE, "transfer-frequency@18": ONE})[0].startswith(
        "With 18 copied rows, KS (+0.400"
    )
    del copies["models"][0]["arms"][0]  # no matter: its coverage is not asked for a second group
    assert len(selector_sentences([group, copies | {"copied": False}], arms)) == 2
    assert text.endswith(COUNTING)
    tie = compared("200", 200, frequency=2.0, ks=2.01)
    assert COUNTING not in " ".join(selector_sentences([group, tie], arms))


ONE = {"coverage": [0.5]}
COUNTING = "A count of the tokens chooses better rows here than the KS test does."


def test_the_rows_of_another_selector_are_not_called_tickets():
    language = realistic(rows=60).spanish
    shares = {f"{arm}frequency@tickets": interval(0.9, 0.05) for arm in ("transfer-", "")}
    arms = {spec: {**language["arms"]["frequency@tickets"], "rows": [55]} for spec in shares}
    text = say(select_by="frequency", gain={**interval(1.7, 0.1), "shares": shares}, arms={**language["arms"], **arms})
    (gain,) = (one for one in text if one.startswith("Embed Tuning lowers"))
    assert gain.endswith(
        "Copying the rows of the 55 most frequent tokens recovers 90% (85% to 95%) of this gain; training them "
        "recovers 90% (85% to 95%)."
    )


def test_without_frequency_the_selectors_are_told_against_ks_and_without_both_not_at_all():
    arms = {"partial@64": ONE, "l2@64": ONE, "contribution@64": ONE}
    (text,) = selector_sentences(
        [compared("64", 64.5, ks=2.0, l2=1.9, options=":lr=0.1")],
        dict.fromkeys(("partial@64:lr=0.1", "l2@64:lr=0.1"), ONE),
    )
    assert text.startswith("With about 64 trained rows (lr=0.1), L2 shift (-0.100 nats")
    assert "better than KS." in text
    assert selector_sentences([compared("64", 64, l2=1.9, contribution=1.8)], arms) == []


def test_several_random_draws_are_told_as_their_mean():
    group = compared("64", 64, frequency=2.0, random=3.0)
    group["models"][1] |= {"arms": ["random@64", "random@64:draw=1"], "range": [2.9, 3.1]}
    arms = dict.fromkeys(("frequency@64", "random@64", "random@64:draw=1"), ONE)
    assert (
        "random rows (+1.000 nats per token of test NLL, 95% interval +0.960 to +1.040, mean of 2 draws) are worse"
        in selector_sentences([group], arms)[0]
    )


def test_several_seeds_are_told_which_one_a_sentence_is_about():
    text = sentences(comparison(rows=60).spanish, None)
    assert text[0].endswith("Take partial@64, which trains the 64 rows of largest D.")
    assert text[1].startswith(
        "partial@64 is the smallest set that, like all larger sets of its kind, keeps at least 90%"
    )
    assert any("selects 55 of 49,152 rows with training seed 0" in sentence for sentence in text)
    assert any("Copying the tickets recovers" in sentence for sentence in text), (
        "the seeds have different numbers of them"
    )
    assert any("certified at alpha = 0.05 with training seed 0; the" in sentence for sentence in text)
    assert not any("There is one training seed" in sentence for sentence in text)


def test_trainings_of_different_lengths_are_said_to_be_so():
    language = comparison(rows=60).spanish
    text = sentences(language, None, (150, 1300))
    (told,) = set(text) - set(sentences(language, None, (150, 150)))
    assert told.startswith("Partial Tuning and its controls trained for 1,300 updates, and Embed Tuning for 150. ")
    assert sentences(language, None) == sentences(language, None, (150, 150))


def warnings(counts: list[int], overlap: float | None = None, by_alpha: dict[float, int] | None = None) -> list[str]:
    facts = {**ticket_facts([], counts, 2000), "overlap_of_seeds": overlap}
    if by_alpha:
        facts["by_alpha"] = [{"alpha": alpha, "counts": [count]} for alpha, count in by_alpha.items()]
    return say(tickets=facts)[8:]


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
