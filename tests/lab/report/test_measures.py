"""Scores of outputs written by hand: replicates, decomposition, mean over languages."""

import pytest
import sacrebleu

from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.generation import GeneratedText
from kslottery_fast.evaluation.intervals import Interval, clopper_pearson
from kslottery_fast.lab.report.measures import (
    METRICS,
    RANGES,
    decomposition,
    differences,
    mean_over,
    replicates,
    score_intervals,
)

REFERENCES = [" la casa es grande y roja", " el perro mira el mar", " guardar el archivo nuevo"]
GOOD = ["la casa es grande y roja", "el perro mira el mar", "guardar el archivo nuevo"]
RUNNING_ON = [text + "\nEnglish: the sea\nSpanish: el mar\n" for text in GOOD]
BAD = ["a house", "the dog looks at el mar", "save"]


def evaluation(texts: list[str], nll: float = 1.0) -> Evaluation:
    nothing = Interval(0.0, 0.0, 0.0)
    return Evaluation(
        *(nothing for _ in range(7)),
        outputs=[GeneratedText(text, not text.endswith("\n"), len(text)) for text in texts],
        sentence_nll=[nll * tokens for tokens in (5, 6, 4)],
        sentence_tokens=[5, 6, 4],
        signatures={},
    )


def scores(*texts: list[str], **options) -> dict:
    evaluations = [evaluation(one, nll) for nll, one in enumerate(texts, 1)]
    return replicates(evaluations, REFERENCES, bleu_tokenizer="13a", n_bootstrap=50, seed=0, **options)


def test_scores_are_means_over_seeds_of_sacrebleus():
    found = scores(GOOD, BAD)
    assert set(found) == set(METRICS)
    references = [[reference.strip() for reference in REFERENCES]]
    expected = [sacrebleu.corpus_bleu(texts, references).score for texts in (GOOD, BAD)]
    assert found["bleu_raw"].value == pytest.approx(sum(expected) / 2)
    chrf = [sacrebleu.corpus_chrf(texts, references, word_order=2).score for texts in (GOOD, BAD)]
    assert found["chrf_first_line"].value == pytest.approx(sum(chrf) / 2)
    assert found["nll"].value == pytest.approx(1.5)
    assert found["ended"].value == 1
    assert found["mean_chars"].value == pytest.approx(sum(map(len, GOOD + BAD)) / 6)


def test_a_model_that_only_learned_to_stop_gains_by_stopping_alone():
    parts = decomposition(scores(GOOD), scores(RUNNING_ON))
    assert parts["gain"].value > 30
    assert parts["quality"].value == 0
    assert parts["stopping"].value == pytest.approx(parts["gain"].value)
    assert (parts["stopping"].draws > 0).all()


def test_a_model_that_only_translates_better_gains_by_quality_alone():
    parts = decomposition(scores(GOOD), scores(BAD))
    assert parts["quality"].value == pytest.approx(parts["gain"].value)
    assert parts["stopping"].value == pytest.approx(0)


def test_a_model_that_translates_well_and_then_runs_on_gains_by_quality_and_loses_by_stopping():
    parts = decomposition(scores(RUNNING_ON), scores(BAD))
    assert parts["quality"].value == pytest.approx(100 - scores(BAD)["bleu_first_line"].value)
    assert parts["stopping"].value < -20


def test_the_decomposition_adds_up_in_every_replicate():
    parts = decomposition(scores(BAD, GOOD), scores(RUNNING_ON))
    assert (parts["quality"] + parts["stopping"]).draws == pytest.approx(parts["gain"].draws)


def test_an_arm_does_not_differ_from_itself():
    found = differences(scores(BAD), scores(BAD))
    assert all(one == {"value": 0.0, "low": 0.0, "high": 0.0} for one in found.values())


def test_the_mean_over_languages_is_a_mean_replicate_by_replicate():
    first, second = scores(GOOD, metrics=("nll", "bleu_raw")), scores(BAD, metrics=("nll", "bleu_raw"))
    found = mean_over([first, second])
    assert found["bleu_raw"].value == pytest.approx((first["bleu_raw"].value + second["bleu_raw"].value) / 2)
    assert found["nll"].draws == pytest.approx((first["nll"].draws + second["nll"].draws) / 2)


def test_intervals_of_few_seeds_end_where_the_score_must():
    found = score_intervals(scores(GOOD, BAD), 3)
    for metric in METRICS:
        least, most = RANGES[metric]
        assert least <= found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"] <= most
    assert (found["bleu_raw"]["low"], found["bleu_raw"]["high"]) == (0, 100)  # t(1): beyond both without the range
    against = differences(scores(GOOD, BAD), scores(BAD, BAD))["bleu_raw"]
    assert (against["low"], against["high"]) == (-100, 100)


def test_the_interval_of_a_share_that_no_resample_can_leave_is_clopper_and_pearsons():
    """All outputs end with every seed: the bootstrap says 1 to 1, three sentences say 0.29 to 1."""
    expected = clopper_pearson(3, 3)
    for found in (scores(GOOD), scores(GOOD, BAD)):
        assert found["ended"].interval().low == 1
        assert score_intervals(found, 3)["ended"] == expected.to_dict()
    mixed = score_intervals(scores(GOOD, RUNNING_ON), 3)["ended"]
    assert mixed == {"value": 0.5, "low": 0.0, "high": 1.0}  # t(1): wider than both neighbouring counts'
    one = scores([GOOD[0], RUNNING_ON[1], RUNNING_ON[2]])
    assert score_intervals(one, 3)["ended"]["high"] == max(clopper_pearson(1, 3).high, one["ended"].interval().high)
