"""Rows of the output head's own: against dense tables whose other rows get no gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make
from torch import nn

from kslottery_fast import RowAdamW, attach_rows, get_rows, untie_output
from kslottery_fast.rows import get_output_rows

OUTPUT_TOKENS = [40, 11, 7, 2]


class DenseRows:
    """Both tables and the bias of an untied model as torch.optim trains them, with every other row held still."""

    def __init__(self, model: nn.Module, input_ids: list[int], output_ids: list[int]) -> None:
        self.model = untie_output(copy.deepcopy(model)).requires_grad_(False)
        head = self.model.get_output_embeddings()
        self.trained = [(self.model.get_input_embeddings().weight, input_ids), (head.weight, output_ids)]
        if getattr(head, "bias", None) is not None:
            self.trained.append((head.bias, output_ids))
        for parameter, _ in self.trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW([parameter for parameter, _ in self.trained], lr=0.05, weight_decay=0.0)

    def step(self, inputs: dict[str, torch.Tensor]) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, inputs).backward()
        for parameter, ids in self.trained:
            kept = torch.zeros(len(parameter), dtype=torch.bool)
            kept[ids] = True
            parameter.grad[~kept] = 0
        self.optimizer.step()

    def rows(self) -> list[torch.Tensor]:
        return [parameter.detach()[ids] for parameter, ids in self.trained]


def loss_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The cross entropy of the next tokens, so that the gradient of every logit counts."""
    found = model(**inputs).logits
    targets = inputs.get("decoder_input_ids", inputs["input_ids"])
    return nn.functional.cross_entropy(found[:, :-1].reshape(-1, found.shape[-1]), targets[:, 1:].reshape(-1))


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    own = get_output_rows(model)
    return [get_rows(model).rows, own.rows, *([] if own.row_bias is None else [own.row_bias])]


@pytest.mark.parametrize("output_ids", [None, OUTPUT_TOKENS])
@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama", False), ("phi", True), ("phi", False)])
@pytest.mark.parametrize("optimizer", [RowAdamW, torch.optim.AdamW])
def test_rows_of_both_tables_train_as_dense_tables_do(name, tied, output_ids, optimizer):
    model = make(name, tied=tied).double()
    dense = DenseRows(model, TOKENS, output_ids or TOKENS)
    before = logits(model, batch(model))
    attach_rows(model, TOKENS, output="own", output_ids=output_ids)
    # The k columns come from a product of their own, which may add in another order.
    torch.testing.assert_close(logits(model, batch(model)), before, rtol=1e-12, atol=1e-12)
    assert [p for p in model.parameters() if p.requires_grad] == parameters_of(model)
    trained = optimizer(parameters_of(model), lr=0.05, weight_decay=0.0)
    for step in range(5):
        inputs = batch(model, seed=step)
        dense.step(inputs)
        trained.zero_grad()
        loss_of(model, inputs).backward()
        trained.step()
    for ours, theirs in zip(parameters_of(model), dense.rows(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=1e-9)
    assert (
        parameters_of(model)[1].detach() - model.get_output_embeddings().weight[output_ids or TOKENS]
    ).abs().max() > 0.1
    torch.testing.assert_close(logits(model, batch(model)), logits(dense.model, batch(model)), rtol=1e-9, atol=1e-9)
    assert logits(model, batch(model)).shape[-1] == V
