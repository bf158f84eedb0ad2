"""Finding and checking tables and token ids, untying, and moving rows between tables."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from tiny_models import TOKENS, V, batch, logits, make, tuned
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import (
    attach_rows,
    detach_rows,
    get_rows,
    has_rows,
    merge_rows,
    untie_output,
)
from kslottery_fast.rows.tables import embedding_table, is_tied


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "is empty"),
        (torch.empty(0, dtype=torch.int64), "is empty"),
        ([3, 4, 3], "has 3 more than once"),
        ([3, -1], "has -1, outside 0..59"),
        ([3, 60, 61], r"has 60, outside 0..59 \(and 1 more\)"),
        ([1.0, 2.0], "dtype torch.float32, expected integers"),
        (torch.ones(4, dtype=torch.bool), "mask.nonzero"),
        ([[1, 2]], r"shape \[1, 2\], expected one dimension"),
        (np.array(5), r"shape \[\], expected one dimension"),
        ([[1], [2, 3]], "token_ids is not a sequence of integers: expected sequence of length 1"),
        (["house"], "token_ids has the string 'house': pass tokenizer="),
    ],
)
def test_bad_token_ids_are_refused_and_the_model_stays_as_it_was(ids, message):
    model = make("llama")
    with pytest.raises(InputError, match=message):
        attach_rows(model, ids)
    assert not has_rows(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("collection", [set, tuple, iter, torch.tensor])
def test_token_ids_may_come_in_any_collection_of_integers(collection):
    model = attach_rows(make("llama"), collection(TOKENS))
    assert sorted(get_rows(model).token_ids.tolist()) == sorted(TOKENS)


@pytest.mark.parametrize("ids", [b"text", 5, None, {"input_ids": [1]}])
def test_token_ids_of_a_wrong_type_are_a_type_error(ids):
    with pytest.raises(TypeError, match=r"token_ids is .*: expected a list of token ids, Tickets or the path of"):
        attach_rows(make("llama"), ids)


def test_a_model_without_an_input_embedding_is_refused():
    with pytest.raises(InputError, match=r"model, a Linear, has no input embedding: expected .*, found none"):
        attach_rows(nn.Linear(2, 2), [1])
    model = nn.Linear(2, 2)
    model.get_input_embeddings = lambda: nn.Linear(2, 2)
    with pytest.raises(InputError, match="found a Linear"):
        embedding_table(model)


def _raise_not_implemented():
    raise NotImplementedError


def test_a_model_that_does_not_say_where_its_embedding_is_is_refused():
    model = nn.Linear(2, 2)
    model.get_input_embeddings = _raise_not_implemented
    with pytest.raises(InputError, match="found none"):
        embedding_table(model)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: setattr(e, "max_norm", 1.0), "max_norm"),
        (lambda e: setattr(e, "scale_grad_by_freq", True), "scale_grad_by_freq"),
        (lambda e: e.to("meta"), "has no values .device meta. and no accelerate hook"),
        (
            lambda e: setattr(e, "weight", nn.Parameter(torch.zeros(V, 16).char(), requires_grad=False)),
            "quantized .torch.int8. and Embedding does not dequantize it",
        ),
        (lambda e: setattr(e.weight, "ds_id", 3), "partitioned by DeepSpeed ZeRO-3; attach the rows before"),
        (lambda e: setattr(e, "forward", lambda ids: ids), "forward has been replaced"),
    ],
)
def test_an_embedding_that_rows_do_not_fit_is_refused(spoil, message):
    embedding = nn.Embedding(V, 16)
    spoil(embedding)
    with pytest.raises(InputError, match=message):
        attach_rows(embedding, [1])
    assert type(embedding) is nn.Embedding


class _OwnForward(nn.Embedding):
    def forward(self, ids):
        return nn.functional.embedding(ids, self.weight)


def test_an_embedding_class_that_would_ignore_the_rows_is_refused():
    embedding = _OwnForward(V, 16)
    with pytest.raises(InputError, match=r"_OwnForward does not call nn.Embedding.forward"):
        attach_rows(embedding, [1])
    assert type(embedding) is _OwnForward
    assert embedding.weight.requires_grad


def test_untying_keeps_the_logits_and_separates_the_tables():
    model = make("llama")
    want = logits(model, batch(model))
    assert untie_output(model) is model
    assert not is_tied(model)
    assert model.config.tie_word_embeddings is False
    model.tie_weights()
    assert not is_tied(model)
    assert torch.equal(logits(model, batch(model)), want)
    assert untie_output(model) is model


def test_untying_with_rows_attached_is_refused():
    with pytest.raises(InputError, match="call it before attach_rows"):
        untie_output(tuned(make("llama")))


class UMT5WithFlag(transformers.UMT5ForConditionalGeneration):
    """UMT5 of the releases before 5.24, which scale the logits by the flag that ties the tables."""

    def forward(self, *arguments, **others):
        output = super().forward(*arguments, **others)
        if self.config.tie_word_embeddings:
            output.logits = output.logits * self.model_dim**-0.5
        return output


def test_a_head_scaled_by_the_tying_flag_cannot_be_untied_and_nothing_is_merged():
    config = transformers.UMT5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = UMT5WithFlag(config)
    assert is_tied(model)
    tuned(model)
    with pytest.raises(InputError, match=r"UMT5\w+ scales its logits"):
        merge_rows(model)
    assert has_rows(model)
    wrapped = tuned(peft.get_peft_model(detach_rows(model), peft.LoraConfig(r=2, target_modules=["q"])))
    with pytest.raises(InputError, match=r"UMT5\w+ scales its logits"):
        merge_rows(wrapped)
