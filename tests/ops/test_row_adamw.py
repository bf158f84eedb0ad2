"""row_adamw_ is torch.optim.AdamW on some rows, and touches nothing else."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import kernels, native, reference
from kslottery_fast.ops.records import RowUpdate

HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
VOCAB, D = 40, 67
ROWS = torch.tensor([31, 2, 17, 39, 0])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(steps, k, dtype=torch.float32):
    """Gradients of very different sizes, with exact zeros as frozen or absent tokens have them."""
    for step in range(steps):
        grad = random(k, D, seed=100 + step) * 10.0 ** random(k, D, seed=200 + step).mul(2).clamp(-6, 6)
        yield torch.where(random(k, D, seed=300 + step) > 1.5, 0.0, grad).to(dtype)


def torch_adamw(parameter, grads, **hyper):
    """The yardstick: torch's single-tensor AdamW; yields the parameter and its moments after each step."""
    parameter = parameter.clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=hyper["lr"],
        betas=(hyper["beta1"], hyper["beta2"]),
        eps=hyper["eps"],
        weight_decay=hyper["weight_decay"],
        foreach=False,
    )
    for grad in grads:
        parameter.grad = grad
        optimizer.step()
        state = optimizer.state[parameter]
        yield parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


def units(values):
    """The spacing of floats (one ulp) at each value."""
    return torch.nextafter(values.abs(), torch.tensor(torch.inf, dtype=values.dtype)) - values.abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.0}, {"beta1": 0.3}, {"beta1": 0.0, "beta2": 0.0}, {"eps": 0.1}],
    ids=str,
)
def test_one_step_from_torchs_state_is_within_two_ulp_of_torch(dtype, changes):
    """Started from torch's own state at each of 20 steps: only one step's rounding is compared.

    A unit is the spacing of floats at the largest term of a moment's sum, and for the parameter the spacing
    at its old value plus four spacings at its change: what torch's fused multiply-add leaves unrounded.
    """
    hyper = {**HYPER, **changes}
    start = random(len(ROWS), D, dtype=dtype)
    previous = (start, torch.zeros_like(start), torch.zeros_like(start))
    grads = list(gradients(20, len(ROWS), dtype))
    for step, (grad, expected) in enumerate(zip(grads, torch_adamw(start, grads, **hyper), strict=True), start=1):
        param, exp_avg, exp_avg_sq = (tensor.clone() for tensor in previous)
        ops.row_adamw_(param, None, grad, exp_avg, exp_avg_sq, step=step, **hyper)
        scales = (
            units(previous[0]) + units(expected[0] - previous[0]) * 4,
            units(torch.maximum(previous[1].abs(), grad.abs())),
            units(expected[2]),
        )
        for got, want, scale in zip((param, exp_avg, exp_avg_sq), expected, scales, strict=True):
            assert ((got - want).abs() <= 2 * scale).all(), ((got - want).abs() / scale).max()
        previous = tuple(tensor.clone() for tensor in expected)


def test_equals_the_formula_in_numpy_bit_by_bit():
    """Every operation rounded by itself: what numpy's float32 does, square root included."""
    param, exp_avg, exp_avg_sq = random(len(ROWS), D), torch.zeros(len(ROWS), D), torch.zeros(len(ROWS), D)
    p, m, v = param.numpy().copy(), exp_avg.numpy().copy(), exp_avg_sq.numpy().copy()
    lr, beta1, beta2, eps, weight_decay = HYPER.values()
    f = np.float32
    for step, grad in enumerate(gradients(10, len(ROWS)), start=1):
        ops.row_adamw_(param, None, grad, exp_avg, exp_avg_sq, step=step, **HYPER)
        g = grad.numpy()
        m = m + f(1 - beta1) * (g - m)
        v = v * f(beta2) + f(1 - beta2) * g * g
        denominator = np.sqrt(v) / f(math.sqrt(1 - beta2**step)) + f(eps)
        p = p * f(1 - lr * weight_decay) + f(-lr / (1 - beta1**step)) * m / denominator
        for got, expected in ((param, p), (exp_avg, m), (exp_avg_sq, v)):
            np.testing.assert_array_equal(got.numpy(), expected)


def test_a_hundred_steps_stay_close_to_torch():
    start = random(len(ROWS), D)
    grads = list(gradients(100, len(ROWS)))
    param, exp_avg, exp_avg_sq = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, grad in enumerate(grads, start=1):
        ops.row_adamw_(param, None, grad, exp_avg, exp_avg_sq, step=step, **HYPER)
    *_, (expected, _, _) = torch_adamw(start, grads, **HYPER)
    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)


STEPS = [*range(1, 130), 1_000, 4_095, 65_537, 10**6, 10**7 - 1, 10**7, 2**24, 2**40]
BETAS = [0.0, 0.3, 0.5, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1 - 1e-6, 1 - 2**-30, 1 - 2**-53]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("module", [ops, reference], ids=["native", "reference"])
def test_the_power_of_each_beta_has_the_bits_of_the_exact_power_rounded_once(module, beta):
    """Seen in float64 through the change of a parameter 0 with moments 1, which is -1 / (1 - power) or its root."""
    for step in STEPS:
        for first, second in ((beta, 0.0), (0.0, beta)):
            param, grad = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
            hyper = {"lr": 1.0, "beta1": first, "beta2": second, "eps": 0.0, "weight_decay": 0.0}
            module.row_adamw_(param, None, grad, grad.clone(), grad.clone(), step=step, **hyper)
            with mpmath.workprec(400):
                power = float(mpmath.mpf(beta) ** step)
            expected = -1 / (1 - power) if first == beta else -1 / (1 / math.sqrt(1 - power))
            assert param.item() == expected, (step, first, second)


@pytest.mark.parametrize("step", [10, 1_000, 100_000, 10**7])
@pytest.mark.parametrize("beta2", [0.999, 0.9999999])
def test_late_steps_are_those_of_torch(step, beta2):
    hyper = {**HYPER, "beta2": beta2}
    start, (grad,) = random(len(ROWS), D, dtype=torch.float64), gradients(1, len(ROWS), torch.float64)
    moments = random(len(ROWS), D, seed=1, dtype=torch.float64), random(len(ROWS), D, seed=2).double().square()
    theirs = start.clone().requires_grad_()
    options = {name: hyper[name] for name in ("lr", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW([theirs], betas=(0.9, beta2), foreach=False, **options)
    state = {"step": torch.tensor(float(step - 1)), "exp_avg": moments[0].clone(), "exp_avg_sq": moments[1].clone()}
    optimizer.state[theirs] = state
    theirs.grad = grad
    optimizer.step()
    ours = start.clone()
    ops.row_adamw_(ours, None, grad, *moments, step=step, **hyper)
    assert optimizer.state[theirs]["step"] == step
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("module", [ops, reference], ids=["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_number_in_a_tensor_gives_the_bits_of_the_same_number(module, dtype):
    start, (grad,) = random(len(ROWS), D, dtype=dtype), gradients(1, len(ROWS), dtype)
    for step in (1, 2, 494, 2_258, 2_993, 100_000):  # the C library rounds some powers of 0.9999 otherwise
        for beta2 in (0.9, 0.99, 0.999, 0.9999):
            hyper = {**HYPER, "beta2": beta2}
            lr, expected = hyper.pop("lr"), [start.clone(), start * 0, start * start]
            got = [each.clone() for each in expected]
            module.row_adamw_(expected[0], None, grad, *expected[1:], step=step, lr=lr, **hyper)
            words = [torch.tensor(step - 1.0)], [torch.tensor(lr, dtype=torch.float64)]
            lists = [got[0]], [None], [grad], [got[1]], [got[2]], [torch.empty(0)], *words
            options = {name: [value] for name, value in hyper.items()} | {"whole_grads": [False]}
            module.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **options)
            assert all(map(torch.equal, got, expected)), f"step {step}, beta2 {beta2}"


@pytest.mark.parametrize("module", [ops, reference], ids=["native", "reference"])
class TestBothImplementations:
    def state(self):
        return torch.zeros(len(ROWS), D), torch.zeros(len(ROWS), D)

    def test_only_the_given_rows_change(self, module):
        table = random(VOCAB, D)
        before, compact, (grad,) = table.clone(), table[ROWS], gradients(1, len(ROWS))
        module.row_adamw_(table, ROWS, grad, *self.state(), step=1, **HYPER)
        module.row_adamw_(compact, None, grad, *self.state(), step=1, **HYPER)
        assert torch.equal(table[ROWS], compact)
        others = torch.ones(VOCAB, dtype=torch.bool)
        others[ROWS] = False
        assert torch.equal(table[others], before[others])
        assert not torch.equal(table[ROWS], before[ROWS])

    def test_rows_that_are_never_written_may_be_nan(self, module):
        table = torch.full((VOCAB, D), torch.nan)
        table[ROWS] = 1.0
        (grad,) = gradients(1, len(ROWS))
        module.row_adamw_(table, ROWS, grad, *self.state(), step=1, **HYPER)
        assert int(table.isnan().all(dim=1).sum()) == VOCAB - len(ROWS)
        assert table[ROWS].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_master_keeps_what_the_narrow_table_cannot_hold(self, module, dtype):
        table = torch.ones(VOCAB, D, dtype=dtype)
        master, exact = torch.ones(len(ROWS), D), torch.ones(len(ROWS), D)
        narrow, wide = self.state(), self.state()
        hyper = {**HYPER, "lr": 1e-5, "weight_decay": 0.0}
        for step, grad in enumerate([torch.ones(len(ROWS), D)] * 5, start=1):
            module.row_adamw_(table, ROWS, grad, *narrow, step=step, master=master, **hyper)
            module.row_adamw_(exact, None, grad, *wide, step=step, **hyper)
        assert torch.equal(master, exact)
        assert torch.equal(table[ROWS], exact.to(dtype))
        assert (master < 1).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_without_a_master_the_new_value_is_rounded_into_the_table(self, module, dtype):
        table = random(VOCAB, D, dtype=dtype)
        exact, (grad,) = table[ROWS].float(), gradients(1, len(ROWS))
        module.row_adamw_(exact, None, grad, *self.state(), step=1, **HYPER)
        module.row_adamw_(table, ROWS, grad, *self.state(), step=1, **HYPER)
        assert torch.equal(table[ROWS], exact.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_a_gradient_of_another_dtype_counts_as_its_value(self, module, dtype):
        (grad,) = gradients(1, len(ROWS))
        grad = grad.clamp(-1, 1).to(dtype)
        a, b = random(len(ROWS), D), random(len(ROWS), D)
        module.row_adamw_(a, None, grad, *self.state(), step=1, **HYPER)
        module.row_adamw_(b, None, grad.float(), *self.state(), step=1, **HYPER)
        assert torch.equal(a, b)

    def test_the_version_counters_of_what_is_written_go_up(self, module):
        table, (exp_avg, exp_avg_sq) = random(VOCAB, D, dtype=torch.bfloat16), self.state()
        master, (grad,) = torch.zeros(len(ROWS), D), gradients(1, len(ROWS))
        written = (table, exp_avg, exp_avg_sq, master)
        before = [tensor._version for tensor in (*written, grad, ROWS)]
        module.row_adamw_(table, ROWS, grad, exp_avg, exp_avg_sq, step=1, master=master, **HYPER)
        changed = [t._version > v for t, v in zip((*written, grad, ROWS), before, strict=True)]
        assert changed == [True] * 4 + [False] * 2

    def test_a_parameter_that_requires_grad_is_updated_without_being_recorded(self, module):
        parameter = torch.nn.Parameter(random(VOCAB, D))
        (grad,) = gradients(1, len(ROWS))
        module.row_adamw_(parameter, ROWS, grad, *self.state(), step=1, **HYPER)
        assert parameter.is_leaf

    def test_no_rows_is_no_work(self, module):
        table = random(VOCAB, D)
        before = table.clone()
        empty = torch.empty(0, D)
        rows = torch.empty(0, dtype=torch.int64)
        module.row_adamw_(table, rows, empty, empty.clone(), empty.clone(), step=1, **HYPER)
        assert torch.equal(table, before)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rows": torch.tensor([0, 40])}, "rows.* 40, outside the table's rows 0 to 39"),
            ({"rows": torch.tensor([0, -1])}, "rows.* -1, outside the table's rows 0 to 39"),
            ({"rows": torch.tensor([3, 3])}, "rows holds 3 twice; each row can be updated once a step"),
            ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, "rows is torch.int32 .*expected one int64"),
            ({"rows": torch.tensor([[0, 1]])}, r"rows is torch.int64 \[1, 2\]; expected one int64"),
            ({"rows": None}, rf"grad has shape \[2, {D}\]; expected \[40, {D}\]"),
            ({"rows": torch.tensor([0, 1, 2])}, rf"grad has shape \[2, {D}\]; expected \[3, {D}\]"),
            ({"table": torch.zeros(1, D).expand(VOCAB, D)}, "table is an expanded tensor"),
            ({"table": torch.zeros(VOCAB)}, "table has shape .*two dimensions"),
            ({"table": torch.zeros(VOCAB, D, dtype=torch.int32)}, "table has dtype torch.int32"),
            ({"exp_avg": torch.zeros(2, D, dtype=torch.float64)}, "exp_avg is torch.float64"),
            ({"exp_avg_sq": torch.zeros(D, 2).t()}, "exp_avg_sq is .* expected contiguous torch.float32"),
            ({"master": torch.zeros(2, D)}, "master is for tables narrower than float32"),
            ({"step": 0}, "step is 0; expected .* counted from 1"),
            ({"lr": -1.0}, "lr is -1.0; expected a finite number"),
            ({"lr": float("nan")}, "lr is nan; expected a finite number"),
            ({"eps": -1.0}, "eps is -1.0"),
            ({"weight_decay": float("inf")}, "weight_decay is inf"),
            ({"beta1": 1.0}, "beta1 is 1.0; expected 0 <= beta1 < 1"),
            ({"beta2": -0.1}, "beta2 is -0.1; expected 0 <= beta2 < 1"),
        ],
    )
    def test_bad_arguments_are_named_and_nothing_is_written(self, module, changes, message):
        arguments = {"table": torch.ones(VOCAB, D), "rows": torch.tensor([0, 1]), "grad": torch.ones(2, D)}
        arguments |= {
            "exp_avg": torch.zeros(2, D),
            "exp_avg_sq": torch.zeros(2, D),
            "step": 1,
            **HYPER,
        } | changes
        before = {name: value.clone() for name, value in arguments.items() if torch.is_tensor(value)}
        with pytest.raises(InputError, match=message):
            module.row_adamw_(**arguments)
        assert all(torch.equal(value, before[name]) for name, value in arguments.items() if torch.is_tensor(value))


@pytest.fixture(
    params=[(True, 1), (True, 2), (True, 7), (False, 1)], ids=["1 thread", "2 threads", "7 threads", "torch"]
)
def update_if_finite(request, monkeypatch):
    """update_rows_if_finite for [600, 300] tables, which several threads share: 6 chunks, 2 for 200 rows."""
    is_native, threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if not is_native:
        monkeypatch.setattr(native, "caller", lambda device=None: None)
    yield lambda table, rows, grad, m, v, step, master: kernels.update_rows_if_finite(
        RowUpdate(table, rows, grad, m, v, step=1, master=master, **HYPER), step
    )
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, torch.arange(0, 600, 3)], ids=["whole", "rows"])
class TestIfFinite:
    def arguments(self, dtype, rows):
        wide = torch.promote_types(dtype, torch.float32)
        table, k = random(600, 300, dtype=dtype), 600 if rows is None else len(rows)
        moments = random(k, 300, seed=1, dtype=wide), random(k, 300, seed=2, dtype=wide) ** 2
        chosen = table if rows is None else table[rows]
        master = chosen.float() if dtype == torch.bfloat16 else None
        return table, rows, random(k, 300, seed=3, dtype=dtype), *moments, torch.tensor(4.0), master

    def test_a_finite_gradient_gives_the_bits_of_row_adamw_and_counts(self, update_if_finite, dtype, rows):
        expected, got = self.arguments(dtype, rows), self.arguments(dtype, rows)
        *tensors, _, master = expected
        kernels.row_adamw_(*tensors, step=5, master=master, **HYPER)
        assert update_if_finite(*got)
        assert got[5].item() == 5
        for a, b in zip(got[:5] + got[6:], expected[:5] + expected[6:], strict=True):
            assert a is b or torch.equal(a, b)

    def test_one_bad_number_anywhere_and_nothing_is_written(self, update_if_finite, dtype, rows):
        got, kept = self.arguments(dtype, rows), self.arguments(dtype, rows)
        for place in ((0, 0), (99, 157), (-1, -1)):
            for bad in (float("nan"), float("inf")):
                good = got[2][place].clone()
                got[2][place] = bad
                assert not update_if_finite(*got), (place, bad)
                got[2][place] = good
                assert all(a is b or torch.equal(a, b) for a, b in zip(got, kept, strict=True)), (place, bad)


@pytest.mark.parametrize("name", ["rows", "grad", "exp_avg", "exp_avg_sq", "master"])
def test_a_tensor_on_another_device_is_refused_by_name(name):
    tensors = {"table": random(3, 4, dtype=torch.bfloat16), "rows": torch.arange(3)}
    tensors |= {each: torch.zeros(3, 4) for each in ("grad", "exp_avg", "exp_avg_sq", "master")}
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(InputError, match=f"{name} is on meta, table on cpu"):
        kernels.row_adamw_(**tensors, step=1, **HYPER)


def test_if_finite_refuses_a_count_that_is_no_float32_number():
    tensors = random(3, 4), None, random(3, 4, seed=1), torch.zeros(3, 4), torch.zeros(3, 4)
    counts = torch.zeros(1, dtype=torch.int64), torch.zeros(2), torch.zeros((), dtype=torch.float64), 3
    for step in (*counts, torch.zeros((), device="meta")):
        with pytest.raises(InputError, match=r"step is .* expected one float32 on the CPU"):
            kernels.update_rows_if_finite(RowUpdate(*tensors, step=1, **HYPER), step)
