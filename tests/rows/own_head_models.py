"""Models with rows of both tables, moved far, and the same edited by hand."""

from __future__ import annotations

import copy

import torch
from tiny_models import TOKENS
from torch import nn

from kslottery_fast import attach_rows, get_rows
from kslottery_fast.rows import get_output_rows
from kslottery_fast.rows.attach import untie_output

OUTPUT_TOKENS = [40, 11, 7, 2]


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The rows of the input in use, those of the head, and their bias entries if the head has a bias."""
    own = get_output_rows(model)
    return [get_rows(model).rows, own.rows, *([] if own.row_bias is None else [own.row_bias])]


def move(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move what trains in the set in use."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters_of(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def tuned_both(model: nn.Module, output_ids: list[int] | None = OUTPUT_TOKENS) -> nn.Module:
    """Attach rows of both tables and move them far."""
    return move(attach_rows(model, TOKENS, output="own", output_ids=output_ids))


@torch.no_grad()
def edited(base: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of the base model, untied, with the rows of the attached ``model`` in its tables."""
    made = untie_output(copy.deepcopy(base))
    rows, own, head = get_rows(model), get_output_rows(model), made.get_output_embeddings()
    old = made.get_input_embeddings().weight.detach().clone()
    for module in made.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape == old.shape and torch.equal(module.weight, old):
            module.weight[rows.token_ids] = rows.rows.to(old.dtype)
    head.weight[own.token_ids] = own.rows.to(old.dtype)
    if own.row_bias is not None:
        head.bias[own.token_ids] = own.row_bias.to(old.dtype)
    return made
