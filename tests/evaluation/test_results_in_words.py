"""What a terminal shows of a result: one line as its repr, a few lines as its summary, and never all outputs."""

import pytest
import torch

from kslottery_fast.evaluation.certify import Predictions, certificate_from
from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.generation import GeneratedText
from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.evaluation.likelihood import TargetNll

EVALUATION = Evaluation(
    nll=Interval(1.7161, 1.6523, 1.7812),
    bleu_raw=Interval(14.05, 12.0, 16.0),
    bleu_first_line=Interval(17.81, 15.2, 20.44),
    chrf_raw=Interval(30.0, 29.0, 31.0),
    chrf_first_line=Interval(40.0, 39.0, 41.0),
    ended=Interval(0.97, 0.9512, 0.9831),
    mean_chars=Interval(35.2, 33.0, 37.0),
    outputs=[GeneratedText("la casa " * 50, True, 100)] * 1300,
    sentence_nll=[3.0] * 1300,
    sentence_tokens=[2] * 1300,
    signatures={"bleu": "nrefs:1"},
)


def test_an_evaluation_is_shown_on_one_line_and_summed_up_in_a_table():
    assert repr(EVALUATION) == (
        "Evaluation(1,300 sentences, nll=1.716 (1.652 to 1.781), bleu_first_line=17.8 (15.2 to 20.4), ended=97.0%)"
    )
    heading, *rows = EVALUATION.summary().splitlines()
    assert heading == "1,300 sentences, value (95% interval)"
    assert len(rows) == 7
    assert rows[0] == "NLL per target token    1.716 (1.652 to 1.781)"
    assert rows[5] == "Ended by the model      97.0% (95.1% to 98.3%)"


def test_an_nll_shows_sentences_and_tokens_by_their_number():
    found = TargetNll(Interval(2.0, 1.5, 2.5), [6.0] * 1000, [3] * 1000)
    assert repr(found) == "TargetNll(2.000 (1.500 to 2.500) nats per token, 1,000 sentences, 3,000 tokens)"
    assert found == tuple(found)  # still the tuple that it was


@pytest.fixture
def predictions():
    """Predictions of the tuned model, and of one that differs at the first of two certified positions."""
    margin, sentence = torch.tensor([0.9, 0.8, 0.0, 0.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    tuned, transfer = (
        Predictions(torch.tensor(predicted), margin, torch.tensor([5, 6, 7, 9]), sentence)
        for predicted in ([5, 6, 7, 8], [4, 6, 7, 8])
    )
    return tuned, transfer


def test_a_certificate_says_what_is_certified_and_how_often_that_was_wrong(predictions):
    certificate = certificate_from(*predictions, dimension=576, alphas=[0.05, 0.5], n_bootstrap=5)
    level = "alpha 0.05: 50.0% of the positions certified, wrong at 1 of 2 (50.0%)"
    assert repr(certificate) == f"Certificate(4 positions of 2 sentences; {level}; 1 more alpha)"
    lines = certificate.summary().splitlines()
    assert lines[0] == "4 positions of 2 sentences, d = 576. The embed-tuned model predicts 75.0% of them correctly."
    assert lines[1:3] == [level, level.replace("0.05", "0.5")]
    assert lines[3].startswith("The transfer model agrees at 75.0% (")
    assert lines[4].startswith("Guarantee (95% confidence): agreement at ")
    assert certificate.levels[0].violation_rate == 0.5
    assert repr(certificate.levels[0]) == "CertificateLevel(alpha=0.05, 50.0% certified, wrong at 1 of 2 (50.0%))"
    assert repr(certificate.agreement).startswith("Agreement(at 75.0% (50.0% to ")
    assert repr(predictions[0]) == "Predictions(4 positions of 2 sentences, 75.0% correct, mean margin 0.425)"


def test_a_certificate_that_was_not_checked_or_certifies_nothing_claims_no_rate(predictions):
    tuned, transfer = predictions
    unchecked = certificate_from(tuned, dimension=576, alphas=[0.05])
    assert unchecked.levels[0].violation_rate is None
    assert "50.0% of the positions certified, not checked" in repr(unchecked)
    assert unchecked.summary().endswith("Not checked: the transfer model was not run.")
    nothing = certificate_from(tuned, transfer, dimension=2, alphas=[0.05], n_bootstrap=5).levels[0]
    assert nothing.violation_rate is None
    assert nothing.summary() == "alpha 0.05: 0.0% of the positions certified, wrong at 0 of 0"
