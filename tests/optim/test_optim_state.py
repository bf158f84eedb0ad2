"""RowAdamW's state: resumed bit for bit, taken over from torch, refused where it does not fit."""

from __future__ import annotations

import io

import pytest
import torch
from optim_cases import ROWS, D, V, gradients, table
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.optim.row_adamw import RowAdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [ROWS, None])
def test_a_run_resumed_in_the_middle_is_bit_equal(dtype, rows):
    def steps(param: nn.Parameter, optimizer: RowAdamW, grads: list[torch.Tensor]) -> None:
        for grad in grads:
            param.grad = grad.to(dtype)
            optimizer.step()

    grads = gradients(40)
    straight = table(dtype)
    steps(straight, RowAdamW([{"params": [straight], "rows": rows}], weight_decay=0.1), grads)

    first = table(dtype)
    optimizer = RowAdamW([{"params": [first], "rows": rows}], weight_decay=0.1)
    steps(first, optimizer, grads[:17])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = nn.Parameter(first.detach().clone())
    resumed = RowAdamW([{"params": [second], "rows": rows}], lr=99.0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    assert resumed.state[second]["exp_avg"].dtype == torch.float32
    assert resumed.state[second]["exp_avg"] is not state["state"][0]["exp_avg"]
    steps(second, resumed, grads[17:])
    assert torch.equal(second, straight)


def test_loading_ones_own_state_changes_nothing_as_accelerate_does_it():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[param]["step"].item() == 2


def test_a_state_moved_to_another_device_loads_again_as_accelerate_does_it():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()
    rows = state["param_groups"][0]["rows"]
    state["param_groups"][0]["rows"] = rows.as_subclass(Elsewhere)
    optimizer.load_state_dict(state)
    assert type(optimizer.param_groups[0]["rows"]) is torch.Tensor
    optimizer.load_state_dict(optimizer.state_dict())


class Elsewhere(torch.Tensor):
    """Stands for a tensor on another device: only its copy on the CPU is a plain tensor."""

    def cpu(self):  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def __deepcopy__(self, memo):
        return self.clone().as_subclass(Elsewhere)


SHAPES = [(4, 5), (6,), (2, 3, 4), (1, 1, 8), ()]


def any_params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def advance(optimizer, first, last):
    for step in range(first, last):
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            param.grad = torch.full_like(param, 0.3 * (step - 3.5))
        optimizer.step()


@pytest.mark.parametrize("order", ["torch's first", "ours first"])
def test_torchs_adamw_and_ours_take_over_each_others_state_whatever_the_shape(order):
    options = {"lr": 0.01, "weight_decay": 0.1}

    def make(kind):
        params = any_params()
        return params, RowAdamW(params, **options) if kind == "ours" else torch.optim.AdamW(params, **options)

    kinds = ["torch", "ours"] if order == "torch's first" else ["ours", "torch"]
    straight, expected = make("torch")
    advance(expected, 0, 8)
    params, first = make(kinds[0])
    advance(first, 0, 4)
    for param in params:
        assert first.state[param]["exp_avg"].shape == first.state[param]["exp_avg_sq"].shape == param.shape
    others, second = make(kinds[1])
    for param, other in zip(params, others, strict=True):
        other.data.copy_(param.detach())
    second.load_state_dict(first.state_dict())
    advance(second, 4, 8)
    for ours, theirs in zip(others, straight, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_state_of_torchs_adamw_for_a_bfloat16_parameter_goes_on_with_master_rows():
    theirs, param = any_params(torch.bfloat16), nn.Parameter(any_params(torch.bfloat16)[0].detach().clone())
    first, ours = torch.optim.AdamW(theirs[:1]), RowAdamW([param])
    advance(first, 0, 2)
    ours.load_state_dict(first.state_dict())
    state = ours.state[param]
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "master"), torch.float32
    )
    advance(ours, 2, 3)


def test_a_state_of_version_0_1_is_taken_where_it_was_one_row():
    params, others = any_params(), any_params()
    first, second = RowAdamW(params), RowAdamW(others)
    advance(first, 0, 3)
    state = first.state_dict()
    for entry in state["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if entry[name].dim() != 2:
                entry[name] = entry[name].reshape(1, -1)
    second.load_state_dict(state)
    for param in others:
        assert second.state[param]["exp_avg"].shape == param.shape


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda params: torch.optim.AdamW(params, amsgrad=True), "amsgrad=True, which RowAdamW does not"),
        (lambda params: torch.optim.AdamW(params, maximize=True), "maximize=True"),
        (lambda params: torch.optim.Adam(params, weight_decay=0.1), "Adam, whose weight decay is part of the grad"),
    ],
)
def test_a_state_of_another_algorithm_is_refused(optimizer, message):
    theirs = optimizer([table()])
    ours = RowAdamW([table()])
    with pytest.raises(InputError, match=message):
        ours.load_state_dict(theirs.state_dict())
    assert "amsgrad" not in ours.param_groups[0]
    ours.load_state_dict(torch.optim.Adam([table()]).state_dict())  # without decay it is AdamW


def test_named_parameters_keep_their_names_as_in_torch():
    embedding = nn.Embedding(V, D)
    optimizer = RowAdamW(embedding.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    embedding.weight.grad = torch.ones_like(embedding.weight)
    before = embedding.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(embedding.weight, before)
    with pytest.raises(InputError, match=r"dtype torch\.int32"):
        RowAdamW([("ids", torch.ones(2, dtype=torch.int32))])


def test_a_state_of_other_rows_or_shapes_is_refused():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()
    other = RowAdamW([{"params": [table()], "rows": [1, 2, 4]}])
    with pytest.raises(InputError, match="state_dict is of other rows than this optimizer trains"):
        other.load_state_dict(state)
    with pytest.raises(InputError, match="of other rows"):
        RowAdamW([table()]).load_state_dict(state)
    assert not other.state
    narrow = RowAdamW([{"params": [nn.Parameter(torch.ones(V, 4))], "rows": ROWS}])
    with pytest.raises(InputError, match=r"exp_avg \[3, 8\], expected \[3, 4\]"):
        narrow.load_state_dict(state)


@pytest.mark.parametrize("wrong", [None, "x", 1, [1]])
def test_what_is_no_state_dict_is_named(wrong):
    with pytest.raises(TypeError, match=r"state_dict is .*expected what an optimizer's state_dict"):
        RowAdamW([table()]).load_state_dict(wrong)
    for content in ({}, {"state": None, "param_groups": []}, {"state": {}, "param_groups": 3}):
        with pytest.raises(InputError, match="state_dict has no dict 'state' and no list 'param_groups'"):
            RowAdamW([table()]).load_state_dict(content)
