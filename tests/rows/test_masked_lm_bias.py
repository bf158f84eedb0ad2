"""Masked language models tie the bias of their head to another parameter; splitting the table must not lose it."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as T
from tiny_models import TOKENS, V
from torch import nn

from kslottery_fast import attach_rows, get_rows, merge_rows, transfer_rows, untie_output
from kslottery_fast.rows import get_output_rows

SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
}
MASKED = {
    "bert": lambda: T.BertForMaskedLM(T.BertConfig(**SIZES)),
    "xlm-roberta": lambda: T.XLMRobertaForMaskedLM(T.XLMRobertaConfig(**SIZES)),
    "albert": lambda: T.AlbertForMaskedLM(T.AlbertConfig(embedding_size=8, **SIZES)),
}
IDS = torch.tensor([[7, 5, 9, 40, 11]])


def masked(name: str) -> T.PreTrainedModel:
    torch.manual_seed(0)
    model = MASKED[name]().eval()
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_(std=3.0)
    return model


def merged(model: nn.Module, output: str) -> nn.Module:
    attach_rows(model, TOKENS, output=output)
    with torch.no_grad():
        get_rows(model).rows.add_(1.0)
        if output == "own":
            get_output_rows(model).rows.sub_(1.0)
            get_output_rows(model).row_bias.add_(2.0)
    return merge_rows(model)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    "split",
    [
        untie_output,
        lambda model: merged(model, "frozen"),
        lambda model: merged(model, "own"),
        lambda model: transfer_rows(torch.ones(V, model.get_input_embeddings().weight.shape[1]), model, TOKENS),
    ],
    ids=["untie_output", "merge_rows", "merge_rows of both tables", "transfer_rows"],
)
def test_the_bias_of_the_head_survives_splitting_saving_and_loading(name, split, tmp_path):
    model = masked(name)
    bias = model.get_output_embeddings().bias.detach().clone()
    before = copy.deepcopy(model)
    split(model)
    want = logits(model)
    assert not torch.equal(want, logits(before)) or split is untie_output
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(again.eval()), want)
    kept = torch.ones(V, dtype=torch.bool)
    kept[TOKENS] = False
    assert torch.equal(again.get_output_embeddings().bias[kept], bias[kept])
