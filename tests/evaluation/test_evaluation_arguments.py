"""Wrong arguments are refused by name before any work; these are the cases that need a word of their own."""

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.certify import certificate_from, certify, next_token_predictions
from kslottery_fast.evaluation.comparison import decomposition, seed_differences
from kslottery_fast.evaluation.effects import position_effects, switched, wearing
from kslottery_fast.evaluation.encoding import Example, check_fits, collate, pad
from kslottery_fast.evaluation.evaluate import evaluate, nll
from kslottery_fast.evaluation.generation import generate
from kslottery_fast.evaluation.intervals import bootstrap_interval, clopper_pearson
from kslottery_fast.evaluation.pairs import Pair, check_no_leak, clean_pairs
from kslottery_fast.evaluation.replicates import Replicates, replicates_over_seeds
from kslottery_fast.evaluation.scores import bleu_metric, corpus_score

EXAMPLES = [Example("a:", " b")]


@pytest.fixture(scope="module")
def model():
    return torch.nn.Linear(2, 2)  # whatever asks it for more than its type would fail


@pytest.fixture
def batches():
    return [collate([{"input_ids": [5, 6], "labels": [-100, 6]}], 0)]


@pytest.mark.parametrize("function", [evaluate, nll, generate])
def test_model_and_tokenizer_are_asked_for_by_name(function, model, tiny_tokenizer):
    with pytest.raises(TypeError, match="model is 'm': expected a model; load it first"):
        function("m", tiny_tokenizer, EXAMPLES)
    with pytest.raises(TypeError, match="tokenizer is None: expected a tokenizer"):
        function(model, None, EXAMPLES)


def test_a_single_text_is_not_taken_for_a_list_of_characters(model, tiny_tokenizer):
    with pytest.raises(TypeError, match="prompts is 'Hola': expected a list of str"):
        generate(model, tiny_tokenizer, "Hola")
    with pytest.raises(TypeError, match="references is 'Hola': expected a list of str"):
        corpus_score(bleu_metric(), ["Hola"], "Hola")
    with pytest.raises(TypeError, match="examples is an Example: expected a list of Example"):
        nll(model, tiny_tokenizer, EXAMPLES[0])


def test_what_can_be_read_only_once_is_refused(model, tiny_tokenizer, batches):
    with pytest.raises(TypeError, match="examples is a generator: expected a list of Example"):
        evaluate(model, tiny_tokenizer, (example for example in EXAMPLES))
    with pytest.raises(TypeError, match="batches is a generator: expected a list of batches"):
        certify(model, (batch for batch in batches), alphas=[0.05])


def test_a_batch_is_not_a_list_of_batches_and_must_hold_tensors(model, tiny_tokenizer, batches):
    with pytest.raises(TypeError, match="batches is a BatchEncoding: expected a list of batches"):
        certify(model, tiny_tokenizer("x"), alphas=[0.05])
    with pytest.raises(TypeError, match=r"batches\[0\] is the list \['x'\]: expected a list of batches"):
        next_token_predictions(model, [["x"]])
    with pytest.raises(InputError, match=r"batches\[0\] has no 'labels'"):
        next_token_predictions(model, [{"input_ids": torch.tensor([[1]])}])
    with pytest.raises(TypeError, match=r"batches\[0\]\['labels'\] is the list \[1\]: expected a tensor"):
        next_token_predictions(model, [batches[0] | {"labels": [1]}])


def test_alphas_are_a_list_of_numbers(model, batches):
    for alphas in (5, 0.05, None, "0.05", ["0.05"], [True]):
        with pytest.raises(TypeError, match=r"alphas is .*: expected a list of numbers strictly between 0 and 1"):
            certify(model, batches, alphas=alphas)


def test_settings_are_refused_before_a_model_is_run(model, batches, tiny_tokenizer):
    for settings, message in (
        ({"confidence": 95}, "confidence is 95: expected"),
        ({"confidence": "high"}, "confidence is 'high': expected"),
        ({"seed": -1}, "seed is -1: expected at least 0"),
        ({"seed": "x"}, "seed is 'x': expected an integer"),
        ({"transfer_model": "other"}, "transfer_model is 'other': expected a model"),
    ):
        with pytest.raises((InputError, TypeError), match=message):
            certify(model, batches, alphas=[0.05], **settings)
    with pytest.raises(TypeError, match="progress is 5: expected a function of"):
        generate(model, tiny_tokenizer, ["a"], progress=5)


def test_certificate_from_wants_predictions():
    with pytest.raises(TypeError, match="predictions is None: expected a Predictions"):
        certificate_from(None, dimension=5, alphas=[0.05])


def test_an_example_is_made_of_two_texts():
    with pytest.raises(TypeError, match="target is None: expected a str"):
        Example("a:", None)


def test_sequences_of_anything_but_ids_are_refused(model):
    for ids in (5, ["ab"], [], [[]]):
        with pytest.raises(TypeError, match=r"ids is .*: expected one or more lists of token ids"):
            check_fits(model, ids)
    with pytest.raises(TypeError, match=r"rows is .*: expected one or more lists of integers"):
        pad([["x"]], 0)
    with pytest.raises(InputError, match=r"features\[0\] has the keys \['input_ids'\]: expected input_ids and labels"):
        collate([{"input_ids": [1]}], 0)


def test_rows_must_fit_the_token_ids_and_the_model(tiny_llama, tiny_tokenizer):
    llama = tiny_llama()
    with (
        pytest.raises(InputError, match=r"rows has the shape \[1, 32\]: expected \[2, 32\]"),
        wearing(llama, [5, 7], torch.zeros(1, 32)),
    ):
        pass
    with pytest.raises(TypeError, match="rows is None: expected a tensor"), wearing(llama, [5], None):
        pass
    empty = torch.empty(0, dtype=torch.int64)
    with pytest.raises(InputError, match="token_ids is empty: give at least one token id"):
        position_effects(llama, tiny_tokenizer, EXAMPLES, ["a"], empty, torch.zeros(0, 32))
    with pytest.raises(TypeError, match="on is None: expected a bool tensor"), switched(llama, None):
        pass


def test_numbers_that_are_none_are_refused_by_name():
    with pytest.raises(TypeError, match=r"successes is 0\.5: expected an integer"):
        clopper_pearson(0.5, 2)
    with pytest.raises(InputError, match="statistics is None: expected numbers"):
        bootstrap_interval(None, sum)
    with pytest.raises(InputError, match=r"statistics is the list \[\['a', 'b'\]\]: expected numbers"):
        bootstrap_interval([["a", "b"]], sum)
    with pytest.raises(TypeError, match="score is None: expected a function of the sums"):
        bootstrap_interval([[1.0]], None)
    with pytest.raises(TypeError, match="tables is None: expected one"):
        replicates_over_seeds(None, sum)


def test_scores_that_cannot_be_compared_are_refused():
    one = {"bleu_raw": Replicates(1.0, torch.ones(1, 1).numpy())}
    with pytest.raises(InputError, match="model has no score 'bleu_first_line': make it with score_replicates"):
        decomposition(one, one)
    with pytest.raises(TypeError, match="untuned is None: expected a mapping of str to Replicates"):
        decomposition(one | {"bleu_first_line": one["bleu_raw"]}, None)
    with pytest.raises(InputError, match="first has 3 seeds and second has 2: expected the same number, or one"):
        seed_differences([{"nll": 1.0}] * 3, [{"nll": 1.0}] * 2)
    with pytest.raises(TypeError, match="unsupported operand"):
        one["bleu_raw"] - 1


def test_pairs_are_pairs():
    with pytest.raises(TypeError, match=r"pairs\[1\] is the tuple \('a', 'b'\): expected a Pair\(source, target\)"):
        clean_pairs([Pair("a", "b"), ("a", "b")])
    with pytest.raises(TypeError, match=r"splits\[0\] is a Pair: expected a list of Pair"):
        check_no_leak([Pair("a", "b")])
