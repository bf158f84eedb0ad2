"""The verdict follows from the numbers, whatever they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from report_samples import comparison, control, interval, realistic, recommendation

from kslottery_fast.lab.report import advice
from kslottery_fast.lab.report.verdict import verdict, verdict_over


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return realistic(rows=60).spanish


def changed(language: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(language), **changes}


def without(language: dict[str, Any], *names: str) -> dict[str, Any]:
    """The language without some arms, as a run without them would describe it."""
    arms = {spec: arm for spec, arm in language["arms"].items() if spec.partition("@")[0] not in names}
    shares = {spec: share for spec, share in language["gain"]["shares"].items() if spec in arms}
    controls = [one for one in language["controls"] if one["control"] in arms and one["own"] in arms]
    kept = {**language["recommendation"], "arm": None, "kept": []}
    return changed(
        language, arms=arms, gain={**language["gain"], "shares": shares}, controls=controls, recommendation=kept
    )


def test_a_plain_run_is_told_by_share_interval_and_controls(plain):
    controls = [control("frequency", "tickets"), control("random", "tickets", value=1.2)]
    assert verdict(changed(plain, controls=controls)) == (
        "Training 55 of 49,152 rows recovers 95% (92% to 98%) of Embed Tuning's gain. The 55 most frequent tokens do "
        "better and 55 random rows do worse."
    )


@pytest.fixture
def by_contribution() -> dict[str, Any]:
    """A run whose method is selection by contribution, with 55 rows, beside Partial Tuning of as many."""
    language = realistic(rows=60).spanish
    arms, shares = language["arms"], language["gain"]["shares"]
    method = {"contribution@55": arms["frequency@tickets"], "transfer-contribution@55": arms["transfer@tickets"]}
    controls = [{**control("partial", "55", value=0.065), "own": "contribution@55"}]
    return changed(
        language,
        select_by="contribution",
        arms={**arms, **method, "partial@55": arms["partial@tickets"]},
        gain={
            **language["gain"],
            "shares": {
                "transfer-contribution@55": shares["transfer@tickets"],
                "contribution@55": shares["partial@tickets"],
            },
        },
        recommendation=recommendation("contribution@55"),
        controls=controls,
    )


def test_another_selector_is_told_by_its_own_arms_and_the_ks_test_is_a_control(by_contribution):
    assert verdict(by_contribution) == (
        "Training 55 of 49,152 rows recovers 95% (92% to 98%) of Embed Tuning's gain. The 55 rows of largest D "
        "do worse."
    )
    several = [by_contribution, {**copy.deepcopy(by_contribution), "name": "Catalan"}]
    assert verdict_over(several) == (
        "Of Embed Tuning's gain, training 55 rows of largest contribution recovers 95% (92% to 98%) in Spanish and 95% "
        "(92% to 98%) in Catalan. Equally many rows of largest D do worse in all languages."
    )
    text = " ".join(advice.sentences(by_contribution, None))
    assert (
        "Copying the rows of contribution@55 recovers 78% (74% to 82%) of this gain; training them recovers 95%" in text
    )
    assert "Training the rows of contribution@55 gave a better model than training the rows of partial@55." in text
    by_contribution["controls"][0]["difference"]["nll"] = interval(-0.065, 0.04)
    by_contribution["controls"][0]["per_seed"] = [{"nll": -0.065}]
    text = " ".join(advice.sentences(by_contribution, None))
    assert "Selection by contribution is therefore not what makes rows useful here." in text


def test_a_tie_is_no_difference(plain):
    controls = [control("frequency", "tickets", value=0.01), control("l2", "tickets", value=0.01)]
    assert verdict(changed(plain, controls=controls)).endswith(
        ". The 55 most frequent tokens and the 55 rows of largest L2 shift show no clear difference."
    )


def test_controls_of_another_size_are_not_mentioned(plain):
    assert verdict(changed(plain, controls=[control("frequency", "18")])).endswith("of Embed Tuning's gain.")


def test_no_clear_gain_gives_no_share(plain):
    text = verdict(changed(plain, gain={**interval(0.1, 0.2), "shares": {"partial@tickets": None}}))
    assert text == (
        "Embed Tuning did not clearly lower the test NLL (gain 0.100 nats per token, 95% interval -0.100 to 0.300), so "
        "no share of its gain can be given."
    )


def test_without_significant_rows_the_first_words_say_so(plain):
    selection = {**plain["selection"], "selected_by": "top_k", "count": 55}
    text = verdict(changed(plain, selection=selection, controls=[]))
    assert text.startswith("No row is significant at alpha = 0.05. Training the 55 rows of largest D recovers 95%")
    assert "ticket" not in text


def test_a_run_that_copied_only_is_told_by_what_copying_recovers(plain):
    assert verdict(without(plain, "partial")).startswith("Copying 55 of 49,152 rows recovers 78% (74% to 82%)")


def test_embed_tuning_alone_is_told_by_its_gain(plain):
    assert verdict(without(plain, "partial", "transfer")) == (
        "Embed Tuning lowers the test NLL by 1.777 nats per token, 95% interval 1.727 to 1.827. No arm here trains or "
        "copies tickets."
    )


def test_an_arm_whose_alpha_selects_no_row_is_passed_over(plain):
    language = changed(plain)
    language["arms"]["partial@tickets"]["rows"] = [0]
    assert verdict(language).startswith("Copying 55 of")


def test_a_comparison_is_told_by_the_recommended_set_on_the_test_pairs():
    language = comparison(rows=60).spanish
    language["controls"] = [control("frequency", "64", 3, value=0.5)]
    assert verdict(language) == (
        "Training 64 of 49,152 rows recovers 94% (92% to 96%) of Embed Tuning's gain. The 64 most frequent tokens do "
        "worse."
    )


def test_seeds_with_different_numbers_of_tickets_are_told_by_their_range():
    language = comparison(rows=60).spanish
    language["recommendation"] = None
    language["controls"] = [control("frequency", "tickets", 3)]
    assert verdict(language) == (
        "Training 6 to 90 of 49,152 rows recovers 95% (92% to 98%) of Embed Tuning's gain. Equally many of the most "
        "frequent tokens do better."
    )


def named(language: dict[str, Any], name: str, share: float | None = 0.8, **changes: Any) -> dict[str, Any]:
    gain = {**interval(0.1, 0.2), "shares": {}}
    if share is not None:
        gain = {**interval(1.0, 0.1), "shares": {"partial@tickets": interval(share, 0.05)}}
    return changed(language, name=name, gain=gain, **changes)


def test_one_language_has_the_verdict_of_the_experiment(plain):
    assert verdict_over([plain]) == verdict(plain)


def test_several_languages_are_listed_and_their_controls_counted(plain):
    better, worse = ([control("frequency", "tickets", value=value)] for value in (-1.0, 1.0))
    languages = [
        named(plain, "Spanish", 0.86, controls=better),
        named(plain, "Catalan", 0.8, controls=worse),
        named(plain, "German", None, controls=worse),
    ]
    assert verdict_over(languages) == (
        "Of Embed Tuning's gain, training the tickets recovers 86% (81% to 91%) in Spanish and 80% (75% to 85%) in "
        "Catalan. Equally many of the most frequent tokens do better in Spanish and do worse in Catalan. Embed Tuning "
        "did not clearly lower the test NLL in German."
    )
    assert "do better in all languages." in verdict_over([named(plain, name, controls=better) for name in "ab"])


SHARES = {"a": 0.5, "b": 0.9, "c": 0.6, "d": 0.7, "e": 0.8}


def test_many_languages_are_told_by_their_extremes(plain):
    languages = [named(plain, name, share, controls=[]) for name, share in SHARES.items()]
    assert verdict_over(languages) == (
        "Of Embed Tuning's gain, training the tickets recovers between 50% (45% to 55%) in a and 90% (85% to 95%) in b "
        "(5 languages)."
    )
    kept = recommendation("partial@tickets")
    assert verdict_over([named(plain, name, None, recommendation=kept) for name in "abcdef"]) == (
        "Embed Tuning did not clearly lower the test NLL in all languages."
    )


def test_several_languages_without_tickets_say_so(plain):
    bare = without(plain, "partial", "transfer")
    assert verdict_over([{**bare, "name": name} for name in ("Spanish", "Catalan")]) == (
        "No arm here trains or copies tickets."
    )


def test_one_recommended_size_is_named_for_all_languages():
    languages = list(comparison("ca", rows=60).summary["languages"].values())
    assert verdict_over(languages) == (
        "Of Embed Tuning's gain, training 64 rows of largest D recovers 94% (92% to 96%) in Spanish and 94% (92% to "
        "96%) in Catalan."
    )
