"""What RowAdamW leaves out or refuses: NaN and Inf, missing gradients, bad options and groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optim_cases import ROWS, D, V, gradients, table
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.optim.row_adamw import RowAdamW


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_with_nan_raises_before_anything_is_written(bad):
    first, second = nn.Parameter(torch.ones(2, 3)), table()
    optimizer = RowAdamW([{"params": [first]}, {"params": [second], "rows": ROWS}])
    before = [first.detach().clone(), second.detach().clone()]
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    second.grad[3, 5] = bad
    message = r"\[30, 8\] holds NaN or Inf in 1 rows \(first: token 3\); nothing was updated"
    with pytest.raises(InputError, match=message):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    assert not optimizer.state


def test_a_gradient_with_nan_can_be_skipped_and_the_run_goes_on_as_if_it_had_not_been():
    param, other = table(), table()
    skipping = RowAdamW([{"params": [param], "rows": ROWS}], nonfinite="skip")
    plain = RowAdamW([{"params": [other], "rows": ROWS}])
    for step, grad in enumerate(gradients(6)):
        param.grad = torch.full_like(grad, float("nan")) if step == 3 else grad
        skipping.step()
        if step != 3:
            other.grad = grad
            plain.step()
    assert skipping.skipped_steps == 1
    assert torch.equal(param, other)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_first_step_with_nan_leaves_no_state_behind(nonfinite):
    """Master rows taken then would win over weights that are loaded afterwards."""
    param = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    optimizer = RowAdamW([param], lr=0.5, nonfinite=nonfinite)
    param.grad = torch.full_like(param, float("nan"))
    if nonfinite == "skip":
        optimizer.step()
    else:
        with pytest.raises(InputError, match="nothing was updated"):
            optimizer.step()
    assert not optimizer.state
    assert not optimizer.state[param]  # a look makes an empty state
    if nonfinite == "skip":
        optimizer.step()
    optimizer.param_groups[0]["lr"], good = float("nan"), optimizer.param_groups[0]["lr"]
    param.grad.fill_(1.0)
    with pytest.raises(InputError, match="lr is nan"):
        optimizer.step()
    assert not optimizer.state
    optimizer.param_groups[0]["lr"] = good
    param.data.fill_(64.0)
    param.grad.fill_(1.0)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full((3, 4), 63.5, dtype=torch.bfloat16))
    assert not optimizer.state[param]["master"].requires_grad


def test_several_parameters_are_all_left_alone_by_a_step_that_is_skipped_or_refused():
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    optimizer = RowAdamW([{"params": [param]} for param in params], nonfinite="skip")
    for param in params:
        param.grad = torch.ones_like(param)
    params[1].grad[1, 2] = float("nan")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    params[1].grad[1, 2] = 1.0
    optimizer.param_groups[1]["lr"] = float("nan")
    with pytest.raises(InputError, match="lr is nan"):
        optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(param, torch.ones(2, 3)) for param in params)


def test_a_step_is_a_change_that_autograd_notices():
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = RowAdamW([param])
    param.grad = torch.ones_like(param)
    loss = (param * param.detach().clone().requires_grad_()).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    versions = {name: tensor._version for name, tensor in optimizer.state[param].items()}
    optimizer.step()
    assert all(tensor._version > versions[name] for name, tensor in optimizer.state[param].items())


def test_a_state_of_another_shape_never_reaches_the_kernel():
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = RowAdamW([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    for name, wrong in (("exp_avg", torch.zeros(1, 3)), ("exp_avg_sq", torch.zeros(2, 3).double()), ("step", 7)):
        right, optimizer.state[param][name] = optimizer.state[param][name], wrong
        with pytest.raises(InputError, match=f"{name} is .*expected"):
            optimizer.step()
        optimizer.state[param][name] = right
    optimizer.step()


def test_a_finite_gradient_whose_sum_overflows_is_not_taken_for_a_diverged_one():
    param = nn.Parameter(torch.ones(2, 3, dtype=torch.float16))
    param.grad = torch.full((2, 3), 60_000.0, dtype=torch.float16)
    assert param.grad.sum().isinf()
    RowAdamW([param], lr=0.1).step()
    assert torch.equal(param.detach(), torch.full((2, 3), 0.9, dtype=torch.float16))


def test_a_grad_scaler_leaves_out_steps_with_inf():
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = RowAdamW([param])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((param * torch.tensor(float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, torch.ones(2, 3))
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(param.sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(param.detach(), torch.full((2, 3), 0.99))


def test_none_gradients_and_empty_groups_are_left_alone():
    param, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = RowAdamW([{"params": []}, {"params": [param, unused]}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = RowAdamW([param])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert optimizer.step(closure).item() < 4.0


def test_numbers_of_numpy_are_numbers():
    optimizer = RowAdamW([table()], lr=np.float32(0.5), eps=np.float64(1e-8), weight_decay=np.int64(0))
    optimizer.param_groups[0]["params"][0].grad = torch.ones(V, D)
    optimizer.step()


def test_the_learning_rate_is_read_at_every_step():
    param = nn.Parameter(torch.ones(1, 2))
    optimizer = RowAdamW([param], lr=torch.tensor(0.5))
    param.grad = torch.ones_like(param)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((1, 2), 0.5))
    optimizer.param_groups[0]["lr"] = 0.0
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0, expected"),
        ({"lr": float("nan")}, "lr is nan, expected"),
        ({"eps": -1e-8}, "eps is -1e-08, expected"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected two numbers"),
        ({"betas": (0.9,)}, "expected two numbers"),
        ({"lr": "fast"}, "lr is 'fast': expected a number or a scalar tensor"),
        ({"eps": None}, "eps is None: expected a number$"),
        ({"weight_decay": [0.1]}, r"weight_decay is the list \[0.1\]: expected a number"),
        ({"betas": 0.9}, "betas is 0.9: expected two numbers"),
        ({"betas": ("a", "b")}, "betas is 'a': expected a number"),
        ({"capturable": "yes"}, "capturable is 'yes': expected True or False"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore': expected 'raise' or 'skip'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((InputError, TypeError), match=message):
        RowAdamW([table()], **options)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (nn.Linear(2, 2), r"params is a Linear: expected parameters or groups; pass its .parameters\(\)"),
        (table(), r"params is a Parameter: expected a list of parameters, such as \[model.rows\]"),
        ("weight", "params is 'weight': expected a list"),
        (None, "params is None: expected"),
        ([], "params is empty: expected at least one"),
        ([3, 5], "params holds 3: expected parameters"),
        ([{"rows": [1]}], "param_group has no 'params'"),
        ([{"params": "weight"}], "params is 'weight'"),
    ],
)
def test_what_are_no_parameters_is_named(params, message):
    with pytest.raises((InputError, TypeError), match=message):
        RowAdamW(params)
    with pytest.raises(TypeError, match="param_group is None: expected a dict"):
        RowAdamW([table()]).add_param_group(None)
    with pytest.raises(TypeError, match="closure is 3: expected a function"):
        RowAdamW([table()]).step(3)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"rows": [1, 1]}, "rows has 1 more than once"),
        ({"rows": [V]}, "rows has 30, outside 0..29"),
        ({"rows": []}, "rows is empty"),
        ({"rows": [1], "params": [nn.Parameter(torch.ones(V))]}, r"'rows' needs a table \[V, d\]"),
        ({"params": [nn.Parameter(torch.ones(2), requires_grad=False).to(torch.int32)]}, "of dtype torch.int32"),
        ({"params": [nn.Parameter(torch.ones(2, 3, 4).permute(2, 0, 1))]}, "that is not contiguous"),
        ({"lr": -1.0}, "lr is -1.0"),
        (
            {"weight_decy": 0.1},
            "param_group has 'weight_decy', which is no option of RowAdamW; did you mean 'weight_decay'",
        ),
        ({"row": [1]}, "param_group has 'row', which is no option of RowAdamW; did you mean 'rows'"),
        (
            {"stride": 3},
            "'stride', which is no option of RowAdamW; expected some of params.*keys of your own can be",
        ),
        ({3: 4}, "param_group has 3, which is no option"),
        ({"nonfinite": "skip"}, "param_group has 'nonfinite', which is for the whole optimizer; pass it to RowAdamW"),
        ({"capturable": True}, "param_group has 'capturable', which is for the whole optimizer; pass it to RowAdamW"),
        ({"amsgrad": True}, "param_group has amsgrad=True, which RowAdamW does not support"),
        ({"maximize": True}, "param_group has maximize=True, which RowAdamW does not support"),
    ],
)
def test_bad_groups_are_refused_and_not_added(group, message):
    optimizer = RowAdamW([table()])
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": [table()], **group})
    assert len(optimizer.param_groups) == 1


def test_what_torch_writes_into_groups_is_taken_and_keys_of_ones_own_can_be_added_later():
    theirs = torch.optim.AdamW([("table", table())], fused=False, foreach=True)
    torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.1, total_steps=5)
    optimizer = RowAdamW([{**theirs.param_groups[0], "name": "rows"}])
    assert optimizer.param_groups[0]["initial_lr"] == theirs.param_groups[0]["initial_lr"] != 1e-2
    optimizer.param_groups[0]["layer"] = 3
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["layer"] == 3
