"""A forward that computes from the weight of the head, as TRL gives it to a model, and the rows of the head."""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from kslottery_fast import attach_rows, get_rows, merge_rows
from kslottery_fast.integrations.fused_head import read_rows_in_fused_head
from kslottery_fast.rows.switch import passes_head_by


def _forward(self, *args, fused_lm_head=False, **kwargs):
    """What the fused forward of TRL does with the head, in one line."""
    return self.get_output_embeddings().weight if fused_lm_head else type(self).forward(self, *args, **kwargs)


@pytest.fixture
def model(tiny_llama) -> nn.Module:
    made = attach_rows(tiny_llama(tied=True), [5, 9], output="tied")
    vars(made)["forward"] = types.MethodType(_forward, made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_rows_in_fused_head(made, tell=False)
    with torch.no_grad():
        get_rows(made).rows.add_(1.0)
    return made


def test_a_copy_of_the_model_reads_its_own_rows(model):
    copied = copy.deepcopy(model)
    with torch.no_grad():
        get_rows(copied).rows.zero_()
    assert (copied.forward(fused_lm_head=True)[[5, 9]] == 0).all()
    assert torch.equal(model.forward(fused_lm_head=True)[[5, 9]], get_rows(model).rows)


def test_the_forward_works_after_a_merge(model):
    rows = get_rows(model).rows.detach().clone()
    merge_rows(model)
    assert torch.equal(model.forward(fused_lm_head=True)[[5, 9]], rows)


def test_the_cost_is_told_unless_the_loss_calls_the_head(tiny_llama):
    made = attach_rows(tiny_llama(tied=True), [5, 9], output="tied")
    vars(made)["forward"] = types.MethodType(_forward, made)
    with pytest.warns(RuntimeWarning, match="a copy of the head's table in every step"):
        read_rows_in_fused_head(made)


def test_a_forward_is_known_under_the_autocast_of_accelerate(model):
    def autocast(method):  # as Accelerator.prepare_model does it
        inner = types.MethodType(torch.autocast("cpu")(method.__func__), model)
        return types.MethodType(convert_outputs_to_fp32(inner.__func__), model)

    plain = types.MethodType(_forward, model)
    assert passes_head_by(plain)
    assert passes_head_by(autocast(plain))
    assert not passes_head_by(model.forward)  # it reads the rows
    assert not passes_head_by(autocast(model.forward))
    assert not passes_head_by(autocast(types.MethodType(type(model).forward, model)))
