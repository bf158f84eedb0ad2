"""One tokenization for training and generation: a stable seam, and clear refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5ForConditionalGeneration

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, check_fits, collate, encode, encode_prompt, pad, pad_id


@pytest.fixture
def with_template(tiny_tokenizer):
    """Factory: the tokenizer with a template of special tokens around a text, e.g. "<|im_start|> $A"."""

    def make(template):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        return tokenizer

    return make


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_example_is_prompt_then_target_then_end_and_only_the_latter_two_are_supervised(tiny_tokenizer):
    prompt, target = ids(tiny_tokenizer, "English: The house\nSpanish:"), ids(tiny_tokenizer, " La casa")
    encoded = encode(tiny_tokenizer, Example("English: The house\nSpanish:", " La casa"))
    assert encoded["input_ids"] == [*prompt, *target, 2]
    assert encoded["labels"] == [-100] * len(prompt) + [*target, 2]
    assert tiny_tokenizer.decode(encoded["input_ids"][:-1]) == "English: The house\nSpanish: La casa"


def test_the_prompt_has_the_same_tokens_with_and_without_a_target(tiny_tokenizer):
    """Where the tokenizer would merge across the seam, the joined text has other tokens."""
    prompt, target = "English to Span", "ish"
    encoded = encode(tiny_tokenizer, Example(prompt, target))["input_ids"]
    alone = encode_prompt(tiny_tokenizer, prompt)
    assert encoded[: len(alone)] == alone
    assert ids(tiny_tokenizer, prompt + target)[: len(alone)] != alone


def test_the_prompt_gets_the_special_tokens_of_the_tokenizer_and_the_target_none(with_template):
    tokenizer = with_template("<|im_start|> $A")
    encoded = encode(tokenizer, Example("Spanish:", " La casa"))["input_ids"]
    assert encoded == [1, *ids(tokenizer, "Spanish:"), *ids(tokenizer, " La casa"), 2]


def test_a_tokenizer_that_ends_every_prompt_is_refused(with_template):
    with pytest.raises(InputError, match="end-of-text token after every prompt: load it with add_eos_token=False"):
        encode(with_template("$A <|im_end|>"), Example("Spanish:", " La casa"))


def test_a_prompt_may_itself_end_in_the_end_token(tiny_tokenizer):
    assert encode_prompt(tiny_tokenizer, "Hola<|im_end|>")[-1] == 2


@pytest.mark.parametrize("target", ["", " ", "\n"])
def test_an_empty_target_is_refused(tiny_tokenizer, target):
    with pytest.raises(InputError, match="the target of the prompt 'a:' is empty: leave such examples out"):
        encode(tiny_tokenizer, Example("a:", target))


def test_a_prompt_without_tokens_is_refused_unless_the_tokenizer_adds_one(tiny_tokenizer, with_template):
    with pytest.raises(InputError, match="prompt '' has no tokens"):
        encode(tiny_tokenizer, Example("", " La casa"))
    assert encode(with_template("<|im_start|> $A"), Example("", " La"))["input_ids"][0] == 1


def test_a_tokenizer_without_an_end_token_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"tokenizer has no end-of-text token: set tokenizer\.eos_token"):
        encode(tokenizer, Example("a:", " b"))


def test_padding_that_equals_the_end_token_is_neither_attended_nor_supervised(tiny_tokenizer):
    features = [
        encode(tiny_tokenizer, Example("a:", " La casa es grande")),
        encode(tiny_tokenizer, Example("a:", " b")),
    ]
    batch = collate(features, pad_id(tiny_tokenizer))
    length = len(features[1]["input_ids"])
    assert batch["input_ids"][1, length - 1 :].unique().tolist() == [2]  # the end and the padding look alike
    assert batch["attention_mask"].sum(1).tolist() == [len(feature["input_ids"]) for feature in features]
    assert batch["labels"][1, length - 1] == 2
    assert (batch["labels"][1, length:] == -100).all()
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="features is empty: give at least one Mapping with input_ids and labels"):
        collate([], 0)


def test_padding_on_the_left():
    assert pad([[1], [2, 3]], 9, left=True).tolist() == [[9, 1], [2, 3]]


def test_without_a_padding_token_the_end_token_pads(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == 2


def test_sequences_beyond_the_positions_of_the_model_are_refused(tiny_llama):
    model = tiny_llama(max_position_embeddings=16)
    check_fits(model, [[1] * 10], 6)
    with pytest.raises(
        InputError, match=r"a sequence needs 17 tokens \(7 to generate\), and the model has 16 positions"
    ):
        check_fits(model, [[1] * 3, [1] * 10], 7)


def test_the_tokenizer_of_another_model_is_refused(tiny_llama):
    with pytest.raises(
        InputError, match="token id 320 is outside the model's 320 embedding rows: use its own tokenizer"
    ):
        check_fits(tiny_llama(), [[1, 320]])


def test_an_encoder_decoder_model_is_refused():
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        check_fits(T5ForConditionalGeneration(config), [[1]])
