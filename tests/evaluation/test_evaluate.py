"""NLL against the definition, scores on scripted outputs, JSON and refusals."""

from __future__ import annotations

import json
import math

import pytest
import sacrebleu
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.evaluation.evaluate import SCORES, Evaluation, evaluate, first_line, nll, one_line
from kslottery_fast.evaluation.intervals import Interval

EXAMPLES = [
    Example("English: The house is big\nSpanish:", " La casa es grande"),
    Example("English: Save\nSpanish:", " Guardar el archivo"),
    Example("English: Delete\nSpanish:", " Eliminar todas las entradas del sitio"),
    Example("a:", " b"),
]


@pytest.fixture
def scripted(scripted_llama, tiny_tokenizer):
    """After "x": " 1+2=3", the end. After "y": "4*5-6", then a new line of "q" for ever."""

    def ids(text):
        return tiny_tokenizer(text)["input_ids"]

    x, y, q = ids("x 1+2=3"), ids("y4*5-6\nq"), ids("q")
    assert len(set(x + y)) == len(x + y), "a token cannot have two successors"
    return scripted_llama(dict(zip(x, [*x[1:], 2], strict=True)) | dict(zip(y, [*y[1:], *q], strict=True)))


SCRIPTED_EXAMPLES = [Example("y", "4*5-6"), Example("x", " 1+2=3")]


def naive_nll(model, tokenizer, example):
    """One sentence, no padding, all logits, float64: the definition."""
    encoded = encode(tokenizer, example)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0].double()
    logp = logits.log_softmax(-1)
    return [-float(logp[t - 1, label]) for t, label in enumerate(encoded["labels"]) if label != -100]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("tied", [False, True])
def test_nll_is_the_sum_over_all_target_tokens_and_the_end_over_their_number(
    tiny_llama, tiny_tokenizer, batch_size, tied
):
    model = tiny_llama(tied)
    wanted = [naive_nll(model, tiny_tokenizer, example) for example in EXAMPLES]
    result = nll(model, tiny_tokenizer, EXAMPLES, batch_size=batch_size)
    assert result.sentence_tokens == [len(tokens) for tokens in wanted]
    assert result.sentence_nll == pytest.approx([sum(tokens) for tokens in wanted], rel=1e-4)
    assert result.interval.value == pytest.approx(sum(map(sum, wanted)) / sum(map(len, wanted)), rel=1e-4)
    assert result.interval.low < result.interval.value < result.interval.high


def test_nll_of_a_uniform_model_is_log_v_without_width(scripted_llama, tiny_tokenizer):
    result = nll(scripted_llama({}), tiny_tokenizer, EXAMPLES)
    assert result.interval.value == pytest.approx(math.log(320), rel=1e-6)
    assert result.interval.high - result.interval.low < 1e-6


def test_nll_of_a_bfloat16_model_is_close_to_that_of_float32(tiny_llama, tiny_tokenizer):
    model = tiny_llama(initializer_range=0.1)
    wanted = nll(model, tiny_tokenizer, EXAMPLES).interval.value
    assert nll(model.bfloat16(), tiny_tokenizer, EXAMPLES).interval.value == pytest.approx(wanted, rel=0.02)


def test_a_model_that_diverged_is_refused(tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(InputError, match="the model gives NaN or infinite log-probabilities: its training diverged"):
        nll(model, tiny_tokenizer, EXAMPLES)


def test_raw_scores_pay_for_not_stopping_and_first_line_scores_do_not(scripted, tiny_tokenizer):
    result = evaluate(scripted, tiny_tokenizer, SCRIPTED_EXAMPLES, max_new_tokens=20, n_bootstrap=200)
    assert [output.text for output in result.outputs] == ["4*5-6\n" + "q" * 14, " 1+2=3"]
    raw = ["4*5-6 " + "q" * 14, "1+2=3"]
    references = ["4*5-6", "1+2=3"]
    assert result.bleu_raw.value == sacrebleu.corpus_bleu(raw, [references]).score < 95
    assert result.bleu_first_line.value == pytest.approx(100)
    assert result.chrf_raw.value == sacrebleu.corpus_chrf(raw, [references], word_order=2).score < 95
    assert result.chrf_first_line.value == pytest.approx(100)
    assert result.ended.value == 0.5
    assert result.ended.low == pytest.approx(1 - math.sqrt(1 - 0.025), rel=1e-6)  # one of two, closed form
    assert result.mean_chars.value == (20 + 5) / 2
    assert result.mean_chars.low == 5
    assert result.mean_chars.high == 20
    assert result.nll.value == pytest.approx(math.sqrt(320) / 13, rel=1e-3)  # all of it from the end after "y"
    assert result.sentence_tokens == [6, 7]


def test_every_interval_holds_its_value_and_repeats_with_the_seed(tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    first = evaluate(model, tiny_tokenizer, EXAMPLES, max_new_tokens=6, n_bootstrap=50, seed=1)
    assert first == evaluate(model, tiny_tokenizer, EXAMPLES, max_new_tokens=6, n_bootstrap=50, seed=1, batch_size=32)
    other = evaluate(model, tiny_tokenizer, EXAMPLES, max_new_tokens=6, n_bootstrap=50, seed=2)
    assert other.nll.value == first.nll.value
    assert other.nll != first.nll
    for name in SCORES:
        interval = getattr(first, name)
        assert interval.low <= interval.value <= interval.high


def test_one_sentence_gives_intervals_without_width_but_for_the_exact_one(scripted, tiny_tokenizer):
    result = evaluate(scripted, tiny_tokenizer, SCRIPTED_EXAMPLES[1:], max_new_tokens=20)
    for name in set(SCORES) - {"ended"}:
        interval = getattr(result, name)
        assert interval.low == interval.value == interval.high
    assert result.ended == Interval(1.0, pytest.approx(0.025), 1.0)


def test_signatures_name_version_tokenizer_and_bootstrap(scripted, tiny_tokenizer):
    result = evaluate(
        scripted,
        tiny_tokenizer,
        SCRIPTED_EXAMPLES,
        max_new_tokens=3,
        n_bootstrap=7,
        seed=5,
        bleu_tokenizer="intl",
    )
    assert f"version:{sacrebleu.__version__}" in result.signatures["bleu"]
    assert "tok:intl" in result.signatures["bleu"]
    assert "nw:2" in result.signatures["chrf"]
    assert result.signatures["bootstrap"] == "percentile|level:0.95|over:sentences|resamples:7|seed:5"


def test_an_evaluation_survives_json(scripted, tiny_tokenizer):
    result = evaluate(scripted, tiny_tokenizer, SCRIPTED_EXAMPLES, max_new_tokens=5, n_bootstrap=20)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)) == result
    assert list(result.scores()) == list(SCORES)
    assert result.scores()["ended"] == result.to_dict()["ended"] == result.ended.to_dict()


def test_a_damaged_evaluation_is_refused(scripted, tiny_tokenizer):
    good = evaluate(scripted, tiny_tokenizer, SCRIPTED_EXAMPLES, max_new_tokens=2, n_bootstrap=2).to_dict()
    for bad, message in [
        ({**good, "extra": 1}, "data is not an evaluation: expected the fields bleu_first_line, bleu_raw"),
        ({}, "data is not an evaluation: expected the fields"),
        ([], "data is not an evaluation: expected the fields"),
        ({**good, "nll": 3.0}, "data is not an interval: it needs the numbers"),
        ({**good, "outputs": [{"text": "a"}]}, "data is not an evaluation: .*missing"),
        ({**good, "sentence_tokens": [1]}, "outputs, sentence_nll and sentence_tokens differ in length"),
    ]:
        with pytest.raises(InputError, match=message):
            Evaluation.from_dict(bad)  # type: ignore[arg-type]


def test_the_model_is_left_in_its_modes(scripted, tiny_tokenizer):
    scripted.train()
    scripted.lm_head.eval()
    modes = [module.training for module in scripted.modules()]
    evaluate(scripted, tiny_tokenizer, SCRIPTED_EXAMPLES, max_new_tokens=2, n_bootstrap=2)
    assert [module.training for module in scripted.modules()] == modes


def test_progress_counts_every_sentence_twice(scripted, tiny_tokenizer):
    seen = []
    evaluate(
        scripted,
        tiny_tokenizer,
        SCRIPTED_EXAMPLES,
        max_new_tokens=2,
        batch_size=1,
        n_bootstrap=2,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_examples_must_be_there_and_be_examples(tiny_llama, tiny_tokenizer):
    for function in (nll, evaluate):
        with pytest.raises(InputError, match="examples is empty: give at least one Example"):
            function(tiny_llama(), tiny_tokenizer, [])
        with pytest.raises(TypeError, match=r"examples\[0\] is the tuple .*: expected an Example"):
            function(tiny_llama(), tiny_tokenizer, [("a:", " b")])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"n_bootstrap": 0}, "n_bootstrap is 0: expected at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
        ({"bleu_tokenizer": "13b"}, "bleu_tokenizer is '13b': expected '13a', 'intl'"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tiny_tokenizer, setting, message):
    model = torch.nn.Module()  # would fail at once
    with pytest.raises(InputError, match=message):
        evaluate(model, tiny_tokenizer, EXAMPLES, **setting)


def test_first_line_and_one_line():
    assert first_line("\n\n  Hola  mundo \nEnglish: Bye") == "Hola mundo"
    assert first_line(" \n ") == ""
    assert one_line(" Hola\n\n mundo\t!") == "Hola mundo !"
