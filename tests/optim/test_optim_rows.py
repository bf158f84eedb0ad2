"""``param_groups[i]["rows"]`` says which rows train, also after it has changed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from optim_cases import D, V, gradients, table
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.optim.row_adamw import RowAdamW


def moved_by(optimizer, param):
    """The rows that one step moves."""
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    optimizer.step()
    return (param.detach() != before).any(dim=1).nonzero().flatten().tolist()


def set_anew(optimizer, param):
    optimizer.param_groups[0]["rows"] = torch.tensor([5])


def set_to_a_list(optimizer, param):
    optimizer.param_groups[0]["rows"] = [5]


def written_into(optimizer, param):
    optimizer.param_groups[0]["rows"][0] = 5


def cleared_and_added(optimizer, param):
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": [param], "rows": [5]})


@pytest.mark.parametrize("change", [set_anew, set_to_a_list, written_into, cleared_and_added])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 2])
def test_only_the_rows_that_the_group_names_now_are_moved(change, dtype, steps):
    param = table(dtype)
    optimizer = RowAdamW([{"params": [param], "rows": [3]}], lr=0.5)
    for _ in range(steps):
        assert moved_by(optimizer, param) == [3]
    change(optimizer, param)
    assert moved_by(optimizer, param) == [5]
    assert optimizer.state[param]["exp_avg"].shape == (1, D)
    assert optimizer.state_dict()["param_groups"][0]["rows"].tolist() == [5]


def test_masking_follows_the_rows_too():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": [3]}])
    for rows in ([3], [5, 6]):
        optimizer.param_groups[0]["rows"] = rows
        param.grad = torch.ones_like(param)
        optimizer.mask_gradients()
        assert param.grad.any(dim=1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("between", [None, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_row_that_stays_keeps_its_moments_and_a_new_one_begins_as_in_a_dense_adamw(capturable, between):
    """The oracle trains the whole table. Its gradient is zero wherever a row did not train yet."""
    full, dense = table(), nn.Parameter(table().detach().clone())
    ours = RowAdamW([{"params": [full], "rows": [3, 7]}], nonfinite="skip", capturable=capturable)
    theirs = torch.optim.AdamW([dense], lr=1e-2, weight_decay=0.0, foreach=False)
    for step, grad in enumerate(gradients(12)):
        if step == 6:
            ours.param_groups[0]["rows"] = torch.tensor([20, 7, 11])
            if between is not None:
                ours = between(ours)
                full = ours.param_groups[0]["params"][0]
        full.grad = grad
        dense.grad = torch.zeros_like(grad)
        rows = [3, 7] if step < 6 else [20, 7, 11]
        dense.grad[rows] = grad[rows]
        ours.step()
        theirs.step()
    torch.testing.assert_close(full[[7, 20, 11]], dense[[7, 20, 11]], rtol=1e-5, atol=1e-5)
    assert ours.state[full]["step"].item() == 12


def test_a_whole_table_may_be_restricted_to_rows_and_the_reverse():
    param = table()
    optimizer = RowAdamW([param])
    assert moved_by(optimizer, param) == list(range(V))
    whole = optimizer.state[param]["exp_avg"].clone()
    optimizer.param_groups[0]["rows"] = [9, 2]
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], whole[[9, 2]])
    assert moved_by(optimizer, param) == [2, 9]
    optimizer.param_groups[0]["rows"] = None
    assert moved_by(optimizer, param) == list(range(V))
    assert optimizer.state[param]["exp_avg"].shape == (V, D)


def test_a_state_loads_and_goes_on_after_the_rows_have_changed():
    param, other = table(), table()
    first = RowAdamW([{"params": [param], "rows": [3]}])
    second = RowAdamW([{"params": [other], "rows": [1]}])
    moved_by(first, param)
    first.param_groups[0]["rows"] = [5, 3]
    moved_by(second, other)
    second.param_groups[0]["rows"] = [5, 3]
    other.data.copy_(param.detach())
    second.load_state_dict(first.state_dict())
    second.load_state_dict(second.state_dict())  # as accelerate's prepare does it
    assert moved_by(first, param) == moved_by(second, other) == [3, 5]
    assert torch.equal(param, other)
    second.param_groups[0]["rows"] = torch.tensor([8])
    assert moved_by(second, other) == [8]


def test_rows_that_do_not_fit_are_refused_before_anything_is_written():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": [3]}])
    moved_by(optimizer, param)
    before = param.detach().clone()
    for rows, message in (([V], "rows has 30, outside"), ([1, 1], "rows has 1 more than once"), ([], "rows is empty")):
        optimizer.param_groups[0]["rows"] = rows
        with pytest.raises(InputError, match=message):
            optimizer.step()
    assert torch.equal(param, before)
    optimizer.param_groups[0]["rows"] = [3]
    assert moved_by(optimizer, param) == [3]
    optimizer.add_param_group({"params": [table(), nn.Parameter(torch.ones(6, D))], "rows": [1]})
    optimizer.param_groups[1]["rows"] = [7]  # fits the first of the two
    with pytest.raises(InputError, match=r"rows has 7, outside 0\.\.5"):
        optimizer.state_dict()
