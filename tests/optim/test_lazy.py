"""RowAdamW(lazy=True) is torch.optim.SparseAdam: a row without a gradient rests."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from optim_cases import ROWS, D, V, gradients, table
from torch import nn

from kslottery_fast import RowAdamW
from kslottery_fast.base.errors import InputError


def sparse_gradients(steps: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Gradients of some rows each: every row pauses for several steps and comes back."""
    grads = [grad.to(dtype) for grad in gradients(steps)]
    for step, grad in enumerate(grads):
        unread = [row for row in range(V) if (row * 7 + step * 3) % 11 > 4]
        grad[unread] = 0
        grad[0, 1:] = 0  # zeros inside a row that is read
        grad[0, 0] = 1.0
    return grads


def run(optimizer: torch.optim.Optimizer, param: nn.Parameter, grads: list[torch.Tensor]) -> None:
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_torchs_sparse_adam(dtype, rtol):
    """SparseAdam adds eps before the bias correction, so that only a negligible eps makes the two comparable."""
    grads = sparse_gradients(40, dtype)
    ours, theirs = table(dtype), table(dtype)
    run(RowAdamW([ours], lr=0.1, eps=1e-30, lazy=True), ours, grads)
    sparse = torch.optim.SparseAdam([theirs], lr=0.1, eps=1e-30)
    for grad in grads:
        read = grad.any(dim=1).nonzero()[:, 0]
        theirs.grad = torch.sparse_coo_tensor(read[None], grad[read], grad.shape, check_invariants=True)
        sparse.step()
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
    dense = table(dtype)
    run(RowAdamW([dense], lr=0.1, eps=1e-30), dense, grads)
    assert (dense - ours).abs().max() > 0.1  # the gradients can tell the two apart


def test_where_every_row_is_read_it_is_adamw_bit_for_bit():
    grads = [grad + 1e-9 for grad in gradients(20)]
    for options in ({}, {"weight_decay": 0.1}, {"nonfinite": "skip", "capturable": True}):
        lazy, plain = table(), table()
        run(RowAdamW([lazy], lazy=True, **options), lazy, grads)
        run(RowAdamW([plain], **options), plain, grads)
        assert torch.equal(lazy, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip", "capturable": True}], ids=["plain", "capturable"])
def test_a_row_without_a_gradient_rests(dtype, options):
    param = table(dtype)
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}], lr=0.1, weight_decay=0.5, lazy=True, **options)
    grad = torch.ones(V, D, dtype=dtype)
    run(optimizer, param, [grad])
    state = optimizer.state[param]
    kept = {name: value.clone() for name, value in state.items() if name != "step"}
    before = param.detach().clone()
    grad[ROWS[1]] = 0
    run(optimizer, param, [grad, grad])
    assert torch.equal(param[ROWS[1]], before[ROWS[1]])
    assert not torch.equal(param[ROWS[0]], before[ROWS[0]])
    for name, value in kept.items():
        assert torch.equal(state[name][1], value[1]), name
        assert not torch.equal(state[name][0], value[0]), name
    assert float(state["step"]) == 3


def test_bias_correction_counts_all_steps():
    """A row that is first read at step 3 has the moments of one gradient, corrected as those of three."""
    param = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    grads = [torch.tensor([[1.0], [0.0]], dtype=torch.float64)] * 2 + [torch.ones(2, 1, dtype=torch.float64)]
    run(RowAdamW([param], lr=1.0, eps=0.0, lazy=True), param, grads)
    expected = (0.1 / (1 - 0.9**3)) / math.sqrt(0.001 / (1 - 0.999**3))
    assert param[1].item() == pytest.approx(-expected, rel=1e-12)


def test_each_group_has_its_own():
    grads = sparse_gradients(9, torch.float32)
    lazy, plain = table(), table()
    optimizer = RowAdamW([{"params": [lazy], "lazy": True}, {"params": [plain]}], lr=0.1)
    for grad in grads:
        lazy.grad, plain.grad = grad.clone(), grad.clone()
        optimizer.step()
    alone, adam = table(), table()
    run(RowAdamW([alone], lr=0.1, lazy=True), alone, grads)
    run(RowAdamW([adam], lr=0.1), adam, grads)
    assert torch.equal(lazy, alone)
    assert torch.equal(plain, adam)
    assert not torch.equal(lazy, plain)


def test_a_resumed_run_continues_bit_for_bit():
    grads = sparse_gradients(20, torch.float32)
    straight, first = table(), table()
    run(RowAdamW([straight], lazy=True), straight, grads)
    optimizer = RowAdamW([first], lazy=True)
    run(optimizer, first, grads[:11])
    second = nn.Parameter(first.detach().clone())
    resumed = RowAdamW([second])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(resumed, second, grads[11:])
    assert torch.equal(second, straight)


def test_a_state_of_torchs_adamw_is_not_lazy():
    param, theirs = table(), table()
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    run(adamw, theirs, gradients(3))
    optimizer = RowAdamW([param], lazy=True)
    optimizer.load_state_dict(adamw.state_dict())
    assert optimizer.param_groups[0]["lazy"] is False
    run(optimizer, param, gradients(1))


def test_a_parameter_of_one_dimension_is_one_row():
    param = nn.Parameter(torch.ones(3))
    optimizer = RowAdamW([param], lr=0.1, lazy=True)
    run(optimizer, param, [torch.tensor([0.0, 2.0, 0.0])])
    before = param.detach().clone()
    run(optimizer, param, [torch.zeros(3)])
    assert torch.equal(param, before)
    run(optimizer, param, [torch.tensor([1.0, 0.0, 0.0])])
    assert param[1] != before[1]  # read again, so its momentum moves it


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_in_a_row_that_is_otherwise_zero_is_found(bad):
    param, grad = table(), torch.zeros(V, D)
    grad[4, 5] = bad
    param.grad = grad
    with pytest.raises(InputError, match="gradient"):
        RowAdamW([param], lazy=True).step()


@pytest.mark.parametrize("bad", [1, 0, "yes", None, np.bool_(True)])
def test_another_lazy_is_refused(bad):
    with pytest.raises(TypeError, match=r"lazy is .*: expected True or False"):
        RowAdamW([table()], lazy=bad)


def test_a_dtensor_whose_rows_are_cut_is_refused():
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for value, place, refused in [
            (torch.ones(4, 2), Shard(1), True),
            (torch.ones(4), Shard(0), True),
            (torch.ones(4, 2), Shard(0), False),
            (torch.ones(4), Replicate(), False),
        ]:
            param = nn.Parameter(distribute_tensor(value, mesh, [place]))
            param.grad = distribute_tensor(torch.ones_like(value), mesh, [place])
            optimizer = RowAdamW([param], lazy=True)
            before = param.full_tensor().clone()
            if refused:
                with pytest.raises(InputError, match=r"lazy=True .* DTensor of shape .* whose rows are cut"):
                    optimizer.step()
                assert torch.equal(param.full_tensor(), before)
                assert not optimizer.state
            else:
                optimizer.step()
                assert not torch.equal(param.full_tensor(), before)
    finally:
        torch.distributed.destroy_process_group()
