"""What the first screen says follows from the numbers, whatever they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from report_samples import compared, comparison, interval, realistic, recommendation

from kslottery_fast.lab.report.verdict import on_test, on_test_over, verdict, verdict_over


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return realistic(rows=60).spanish


def changed(language: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(language), **changes}


def without(language: dict[str, Any], *names: str) -> dict[str, Any]:
    """The language without some arms, as a run without them would describe it."""
    arms = {spec: arm for spec, arm in language["arms"].items() if spec.partition("@")[0] not in names}
    shares = {spec: share for spec, share in language["gain"]["shares"].items() if spec in arms}
    nothing = {**language["recommendation"], "arm": None, "take": None, "kept": []}
    return changed(
        language, arms=arms, gain={**language["gain"], "shares": shares}, selectors=[], recommendation=nothing
    )


def test_the_verdict_is_the_answer_from_validation(plain):
    assert verdict(plain) == "On the validation pairs, 55 trained rows are enough for 95% of Embed Tuning's gain."
    summary = comparison("ca", rows=60).summary
    assert verdict_over(summary) == summary["verdict"]
    assert summary["verdict"] == (
        "In the mean over 2 languages, on the validation pairs, 18 trained rows are enough for 80% of Embed Tuning's "
        "gain and 64 for 95%. Take partial@64, which trains the 64 rows of largest D."
    )
    assert realistic(rows=60).summary["verdict"] == verdict(plain)


def test_the_verdict_says_where_the_test_pairs_differ(plain):
    told = recommendation("frequency@64")
    told["as_good"] = [{"arm": "partial@64", "rows": 64}]
    worse = [compared("64", 64, ks=2.1, frequency=2.0), compared("18", 18, ks=1.0, frequency=2.0)]
    language = changed(plain, recommendation=told, selectors=worse)
    ending = "KS may do as well at 64 rows (it does worse on the test pairs)."
    assert verdict(language).endswith(ending)
    assert verdict_over({"languages": {"es": language}, "recommendation": told, "selectors": []}).endswith(ending)
    equal = changed(language, selectors=[compared("64", 64, ks=2.0, frequency=2.0)])
    assert verdict(equal).endswith("KS may do as well at 64 rows.")
    several = {"languages": {"es": equal, "ca": equal}, "recommendation": told, "selectors": worse}
    assert verdict_over(several).endswith(ending), "that of the mean over languages"


def test_the_test_pairs_are_told_by_share_interval_and_the_other_selectors(plain):
    assert on_test(plain) == (
        "On the test pairs, training the 55 rows of largest D recovers 95% (92% to 98%) of Embed Tuning's gain. At "
        "this size, the rows of the 55 most frequent tokens do better and 55 random rows do worse."
    )


def test_a_tie_is_no_difference_and_other_sizes_and_options_are_not_mentioned(plain):
    group = compared("tickets", 55, ks=1.863, frequency=1.873, l2=1.853)
    text = on_test(changed(plain, selectors=[group]))
    assert text.endswith(
        ". At this size, the rows of the 55 most frequent tokens and the 55 rows of largest L2 shift show no clear "
        "difference."
    )
    others = [
        compared("18", 18, ks=1.0, frequency=2.0),
        compared("tickets", 55, ks=1.0, frequency=2.0, options=":lr=1"),
    ]
    others.append(compared("tickets", 55, copied=True, ks=1.0, frequency=2.0))
    assert on_test(changed(plain, selectors=others)).endswith("of Embed Tuning's gain.")


def test_a_selector_other_than_ks_is_compared_with_frequency_and_ks(plain):
    language = changed(plain, recommendation=recommendation("contribution@64"))
    language["arms"]["contribution@64"] = {**language["arms"]["partial@tickets"], "rows": [64]}
    language["selectors"] = [compared("64", 64, ks=2.1, frequency=2.0, contribution=1.9)]
    assert on_test(language) == (
        "On the test pairs, training the 64 rows that account for most of the loss's fall recovers 94% (92% to 96%) of "
        "Embed Tuning's gain. At this size, the 64 rows of largest D and the rows of the 64 most frequent tokens do "
        "worse."
    )


def test_no_clear_gain_gives_no_share(plain):
    text = on_test(changed(plain, gain={**interval(0.1, 0.2), "shares": {"partial@tickets": None}}))
    assert text == (
        "Embed Tuning did not clearly lower the test NLL (gain 0.100 nats per token, 95% interval -0.100 to 0.300), so "
        "no share of its gain can be given."
    )


def test_without_significant_rows_the_first_words_say_so(plain):
    selection = {**plain["selection"], "selected_by": "top_k", "count": 55}
    text = on_test(changed(plain, selection=selection, selectors=[]))
    assert text.startswith(
        "No row is significant at alpha = 0.05. On the test pairs, training the 55 rows of largest D recovers 95%"
    )
    assert "ticket" not in text


def test_a_run_that_copied_only_is_told_by_what_copying_recovers(plain):
    assert on_test(without(plain, "partial")).startswith(
        "On the test pairs, copying the 55 rows of largest D recovers 78% (74% to 82%)"
    )


def test_embed_tuning_alone_is_told_by_its_gain(plain):
    assert on_test(without(plain, "partial", "transfer")) == (
        "Embed Tuning lowers the test NLL by 1.777 nats per token, 95% interval 1.727 to 1.827. No arm here trains or "
        "copies chosen rows."
    )


def test_an_arm_whose_alpha_selects_no_row_is_passed_over(plain):
    language = changed(plain)
    language["arms"]["partial@tickets"]["rows"] = [0]
    assert on_test(language).startswith("On the test pairs, copying the 55 rows")


def test_seeds_with_different_numbers_of_tickets_are_told_by_their_mean():
    language = comparison(rows=60).spanish
    language["recommendation"] = None
    assert on_test(language).startswith(
        "On the test pairs, training the rows of largest D (about 50) recovers 95% (92% to 98%) of Embed Tuning's gain."
    )


def test_one_language_speaks_for_the_experiment(plain):
    assert on_test_over(realistic(rows=60).summary) == on_test(plain)


def named(language: dict[str, Any], name: str, share: float | None = 0.8, **changes: Any) -> dict[str, Any]:
    gain = {**interval(1.0 if share else 0.1, 0.2), "shares": {}}
    told = recommendation("partial@tickets")
    told["kept"][0]["test"] = share and interval(share, 0.05)
    return changed(language, name=name, gain=gain, recommendation=told, **changes)


def over(*languages: dict[str, Any], selectors: list[dict[str, Any]] | None = None) -> str:
    shown = {"languages": {one["name"]: one for one in languages}, "recommendation": recommendation("partial@tickets")}
    return on_test_over({**shown, "selectors": selectors or []})


def test_several_languages_are_listed_and_their_selectors_counted(plain):
    better, worse = ([compared("tickets", 55, ks=2.0, frequency=value)] for value in (1.0, 3.0))
    languages = [
        named(plain, "Spanish", 0.86, selectors=better),
        named(plain, "Catalan", 0.8, selectors=worse),
        named(plain, "German", None, selectors=worse),
    ]
    assert over(*languages, selectors=worse) == (
        "Of Embed Tuning's gain on the test pairs, partial@tickets recovers 86% (81% to 91%) in Spanish and 80% (75% "
        "to 85%) in Catalan. The rows of the 55 most frequent tokens do better in Spanish and do worse in Catalan. In "
        "the mean over languages, the rows of the 55 most frequent tokens do worse. Embed Tuning did not clearly "
        "lower the test NLL in German."
    )
    languages[1]["selectors"] = better
    assert "do better in Spanish and Catalan." in over(*languages), "German has no gain of which to have a share"
    assert "do better in all languages." in over(*(named(plain, name, selectors=better) for name in "ab"))


SHARES = {"a": 0.5, "b": 0.9, "c": 0.6, "d": 0.7, "e": 0.8}


def test_many_languages_are_told_by_their_extremes(plain):
    assert over(*(named(plain, name, share, selectors=[]) for name, share in SHARES.items())) == (
        "Of Embed Tuning's gain on the test pairs, partial@tickets recovers between 50% (45% to 55%) in a and 90% (85% "
        "to 95%) in b (5 languages)."
    )
    assert over(*(named(plain, name, None) for name in "abcdef")) == (
        "Embed Tuning did not clearly lower the test NLL in any language."
    )


def test_several_languages_without_chosen_rows_say_so(plain):
    bare = without(plain, "partial", "transfer")
    assert over(*({**bare, "name": name} for name in ("Spanish", "Catalan"))) == (
        "No arm here trains or copies chosen rows."
    )
