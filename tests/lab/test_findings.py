"""The sentences on a run say what its numbers say, the unwelcome ones included."""

import copy

import pytest
from kslottery_fast.lab.report.findings import findings, nll_difference

TOKENS = [4, 6, 10]


def evaluation(per_token: float) -> dict:
    return {"sentence_nll": [per_token * n for n in TOKENS], "sentence_tokens": TOKENS}


NLL = {
    "untuned": 3.0,
    "embed_tuning": 1.0,
    "partial_transfer": 2.0,
    "partial_tuning": 1.5,
    "frequency_tuning": 1.5,
    "random_tuning": 2.5,
}
INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.9}
SUMMARY = {
    "settings": {"correction": None},
    "models": {
        name: {"nll": value, "ended": 0.3 if name == "untuned" else 0.9, "bleu_raw": 1.0, "bleu_first_line": 2.0}
        for name, value in NLL.items()
    },
    "tickets": {
        "count": 7,
        "alpha": 0.05,
        "selected_by": "alpha",
        "threshold": 0.08,
        "largest": 0.2,
        "vocab_size": 1000,
        "active_rows": 300,
    },
    "certificate": {
        "positions": 200,
        "levels": [{"alpha": 0.05, "certified": 0.5, "violations": 3, "transferred": 7}],
        "agreement": {"positions": INTERVAL},
    },
}


def sentences(changes=(), **nll) -> list[str]:
    summary = copy.deepcopy(SUMMARY)
    for part, values in changes:
        summary[part].update(values)
    return findings(summary, {name: evaluation(x) for name, x in (NLL | nll).items()}, n_bootstrap=50, seed=0)


def test_a_plain_run():
    text = sentences()
    assert text[0].startswith("At alpha = 0.05 the KS test selects 7 of 1,000 rows (D of at least 0.0800)")
    assert "from 3.000 to 1.000 (gain 2.000 nats per token, 95 % interval 2.000 to 2.000)" in text[1]
    assert "Copying the 7 tickets recovers 50% (50% to 50%) of the gain, training them 75% (75% to 75%)." in text[1]
    assert text[2].startswith("Training the most frequent tokens and training the 7 tickets cannot be told apart")
    assert text[3].startswith("Training the 7 tickets gave a better model than training random corpus rows")
    assert "+1.000 nats per token, 95 % interval +1.000 to +1.000; one training seed" in text[3]
    assert "30% of the untuned outputs end by themselves, 90% after" in text[4]
    assert "predicts another token at 3 of the certified ones" in text[5]


def test_a_control_that_beats_the_tickets_is_named():
    text = sentences(frequency_tuning=1.2)
    assert text[2].startswith("Training the most frequent tokens gave a better model than training the 7 tickets")


def test_rows_that_are_not_significant_are_never_called_tickets():
    top_k = {"selected_by": "top_k", "largest": 0.05}
    text = sentences([("tickets", top_k)])
    assert "selects no row: the largest D is 0.0500, 0.0800 is needed" in text[0]
    assert "not significant" in text[0]
    assert not any("7 tickets" in sentence for sentence in text)


def test_an_alpha_out_of_reach_is_not_given_a_threshold_above_one():
    text = sentences([("tickets", {"selected_by": "top_k", "threshold": 1.1})])
    assert "no D could be significant" in text[0]
    assert "1.1" not in text[0]


def test_no_gain_gives_no_percentages():
    text = sentences(embed_tuning=3.1)
    assert "did not clearly lower" in text[1]
    assert "%" not in text[1].replace("95 %", "")


def test_shares_of_the_gain_come_with_the_interval_of_paired_resamples():
    """The transfer gains all in the first sentence and nothing in the second, Embed Tuning 1 nat per token in both."""
    tokens = [5, 5]
    nll = {"untuned": [15.0, 15.0], "embed_tuning": [10.0, 10.0], "partial_transfer": [10.0, 15.0]}
    evaluations = {
        name: {"sentence_nll": nll.get(name, [10.0, 10.0]), "sentence_tokens": tokens} for name in SUMMARY["models"]
    }
    text = findings(SUMMARY, evaluations, n_bootstrap=200, seed=0)[1]
    assert "recovers 50% (0% to 100%) of the gain, training them 100% (100% to 100%)" in text


def test_a_correction_is_named():
    assert "(Bonferroni)" in sentences([("settings", {"correction": "bonferroni"})])[0]


def test_the_difference_is_per_token_over_all_sentences():
    first = {"sentence_nll": [2.0, 9.0], "sentence_tokens": [1, 3]}
    second = {"sentence_nll": [1.0, 6.0], "sentence_tokens": [1, 3]}
    difference = nll_difference(first, second, n_bootstrap=200, seed=0).interval()
    assert difference.value == pytest.approx((11 - 7) / 4)
    # Each sentence alone gives 1 nat per token: no resample can differ.
    assert difference.low == difference.high == pytest.approx(1.0)
