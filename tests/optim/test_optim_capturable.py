"""RowAdamW(capturable=True): all that changes from step to step is in tensors, and nothing asks for their values.

A CPU has no CUDA graphs: what a replay reads and writes is tested here, the replay itself in tests/gpu.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.optim import capture, updates
from kslottery_fast.optim.row_adamw import RowAdamW

V, D, ROWS = 12, 6, [7, 3, 10]


def table(dtype=torch.float32, seed=0):
    return nn.Parameter(torch.randn(V, D, generator=torch.Generator().manual_seed(seed)).to(dtype))


def groups(dtype=torch.float32):
    """Rows of one table, another table as a whole and a vector, in groups of different options."""
    return [
        {"params": [table(dtype)], "rows": ROWS, "weight_decay": 0.1},
        {"params": [table(seed=1), nn.Parameter(torch.ones(5))], "lr": 0.3, "betas": (0.5, 0.9)},
    ]


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def give_gradients(optimizer, step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params_of(optimizer):
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


def capturable(param_groups, **options):
    return RowAdamW(param_groups, nonfinite="skip", capturable=True, **options)


def assert_same_bits(optimizer, other):
    for ours, theirs in zip(params_of(optimizer), params_of(other), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in optimizer.state[ours].items():
            assert torch.equal(value, other.state[theirs][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gives_the_bits_of_the_ordinary_optimizer_under_a_schedule(dtype):
    optimizers = [capturable(groups(dtype), lr=0.1), RowAdamW(groups(dtype), lr=0.1)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 20) for each in optimizers]
    for step in range(20):
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            give_gradients(optimizer, step)
            optimizer.step()
            schedule.step()
    rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert_same_bits(*optimizers)


def test_one_op_makes_the_whole_step(monkeypatch):
    calls = []
    original = updates.row_adamw_step_
    monkeypatch.setattr(updates, "row_adamw_step_", lambda *a, **k: (calls.append(len(a[0])), original(*a, **k)))
    optimizer = capturable(groups())
    give_gradients(optimizer, 0)
    optimizer.step()
    assert calls == [3]


def test_one_parameter_follows_the_scale_of_a_grad_scaler():
    ours, plain = (optimizer([table()], lr=0.1) for optimizer in (capturable, RowAdamW))
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    for step in range(3):
        give_gradients(ours, step, scale=4.0)
        give_gradients(plain, step)
        ours.step()
        plain.step()
    assert_same_bits(ours, plain)


def test_after_the_first_step_every_tensor_stays_where_a_captured_graph_reads_it():
    optimizer = capturable(groups(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=5)
    give_gradients(optimizer, 0)
    optimizer.step()

    def places():
        states = [value.data_ptr() for param in params_of(optimizer) for value in optimizer.state[param].values()]
        return [*states, *(group["lr"].data_ptr() for group in optimizer.param_groups)]

    before, rate = places(), float(optimizer.param_groups[0]["lr"])
    give_gradients(optimizer, 1)
    optimizer.step()
    schedule.step()
    assert float(optimizer.param_groups[0]["lr"]) != rate
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert places() == before


def test_a_learning_rate_tensor_of_the_users_is_kept():
    lr = torch.tensor(0.5)
    optimizer = capturable([nn.Parameter(torch.ones(1, 2))], lr=lr)
    give_gradients(optimizer, 0)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is lr
    lr.zero_()
    before = params_of(optimizer)[0].detach().clone()
    optimizer.step()
    assert torch.equal(params_of(optimizer)[0], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_leaves_the_whole_step_out_and_is_counted(bad):
    optimizers = [capturable(groups()), RowAdamW(groups())]
    for step in range(5):
        for optimizer in optimizers:
            give_gradients(optimizer, step)
        params_of(optimizers[0])[2].grad[3] = bad if step == 2 else 1.0
        params_of(optimizers[1])[2].grad[3] = 1.0
        optimizers[0].step()
        if step != 2:
            optimizers[1].step()
    assert optimizers[0].skipped_steps == 1
    assert optimizers[0].state[params_of(optimizers[0])[0]]["step"].item() == 4
    assert_same_bits(*optimizers)


class TestGradScaler:
    """torch's protocol for fused optimizers: our step gets the scale and found_inf, and the scaler does not wait."""

    def run(self, optimizer, bad_step=None, clip=False):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
        for step in range(5):
            optimizer.zero_grad()
            give_gradients(optimizer, step)
            wanted = [param.grad for param in params_of(optimizer)]
            optimizer.zero_grad()
            loss = sum((param * grad).sum() for param, grad in zip(params_of(optimizer), wanted, strict=True))
            scaler.scale(loss * (float("inf") if step == bad_step else 1.0)).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(params_of(optimizer), 1.0)
            scaler.step(optimizer)
            scaler.update()
        return scaler

    @pytest.mark.parametrize("clip", [False, True])
    @pytest.mark.parametrize("bad_step", [None, 2])
    def test_gives_the_bits_of_the_ordinary_optimizer(self, bad_step, clip):
        optimizers = [capturable(groups()), RowAdamW(groups())]
        scales = [self.run(optimizer, bad_step, clip).get_scale() for optimizer in optimizers]
        assert scales == [512.0 if bad_step else 1024.0] * 2
        assert_same_bits(*optimizers)

    def test_its_skips_are_its_own_and_not_counted(self):
        optimizer = capturable(groups())
        self.run(optimizer, bad_step=2)
        assert optimizer.skipped_steps == 0
        assert optimizer.state[params_of(optimizer)[0]]["step"].item() == 4


@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("begun", [False, True])
def test_a_state_resumes_bit_for_bit_between_capturable_and_not(kinds, begun):
    def make(kind):
        return capturable(groups(torch.bfloat16)) if kind else RowAdamW(groups(torch.bfloat16))

    def steps(optimizer, numbers):
        for step in numbers:
            give_gradients(optimizer, step)
            optimizer.step()

    straight, first, second = make(kinds[1]), make(kinds[0]), make(kinds[1])
    steps(straight, range(6))
    steps(first, range(3))
    if begun:
        steps(second, range(10, 12))
    with torch.no_grad():
        for param, source in zip(params_of(second), params_of(first), strict=True):
            param.copy_(source)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(group["capturable"] == kinds[1] for group in second.param_groups)
    steps(second, range(3, 6))
    assert_same_bits(second, straight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_go_on_as_the_original(duplicate):
    optimizer = capturable(groups())
    give_gradients(optimizer, 0)
    optimizer.step()
    other = duplicate(optimizer)
    for each in (optimizer, other):
        give_gradients(each, 1)
        each.step()
    assert_same_bits(optimizer, other)


def test_an_error_instead_of_a_graph_that_would_wait_or_start_over(monkeypatch):
    ordinary, optimizer = RowAdamW(groups()), capturable(groups())
    give_gradients(ordinary, 0)
    give_gradients(optimizer, 0)
    monkeypatch.setattr(capture, "capturing", lambda: True)
    with pytest.raises(InputError, match="waits for the device in every step; build it with capturable=True"):
        ordinary.step()
    with pytest.raises(InputError, match="make one step before capturing a CUDA graph"):
        optimizer.step()
    monkeypatch.setattr(capture, "capturing", lambda: False)
    optimizer.step()
    monkeypatch.setattr(capture, "capturing", lambda: True)
    optimizer.step()


def test_options_that_cannot_be_together_are_refused():
    with pytest.raises(InputError, match="cannot raise at a NaN gradient; pass nonfinite='skip'"):
        RowAdamW([table()], capturable=True)
    optimizer = capturable([table()], lr=torch.tensor(0.1))
    with pytest.raises(InputError, match=r"lr is a tensor on cpu, but the parameters are on meta: use lr.to\('meta'\)"):
        optimizer._lr(optimizer.param_groups[0], torch.device("meta"))
    here, there = table(), nn.Parameter(torch.empty(2, 2, device="meta"))
    here.grad, there.grad = torch.ones_like(here), torch.ones_like(there)
    with pytest.raises(InputError, match="capturable=True needs all parameters on one device"):
        capturable([here, there]).step()
