"""How far one gradient carries a number under Adam: the formula against optimizers, and what follows for rows."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.stage1_optimizers import PlainAdam
from kslottery_fast import InputError, RowAdamW, ks_statistics
from kslottery_fast.optim import adam_excursion, adam_excursion_limit

GRADS = [1e-7, 1e-4, 3e-2, 5.0]
OPTIMIZERS = {
    "RowAdamW": RowAdamW,
    "torch": lambda params, **options: torch.optim.AdamW(params, weight_decay=0.0, **options),
}


def simulated(optimizer, dtype, *, steps, start_step, rates=None, **options) -> np.ndarray:
    """How far the optimizer moves numbers that get the gradients GRADS at one step, and zero at all others."""
    param = nn.Parameter(torch.zeros(1, len(GRADS), dtype=dtype))
    made = OPTIMIZERS[optimizer]([param], lr=1.0, **options)
    for step in range(1, start_step + steps):
        param.grad = torch.tensor([GRADS], dtype=dtype) * (step == start_step)
        if rates is not None and step >= start_step:
            made.param_groups[0]["lr"] = rates[step - start_step]
        made.step()
    return -param.detach().double().numpy()[0]


@pytest.mark.parametrize(
    ("optimizer", "dtype", "rel"), [("RowAdamW", torch.float32, 1e-5), ("torch", torch.float64, 1e-11)]
)
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.95, 0.5), (0.0, 0.9)])
def test_the_formula_is_what_an_optimizer_does(optimizer, dtype, rel, eps, betas):
    for steps, start_step in ((1, 1), (40, 1), (25, 30)):
        found = adam_excursion(GRADS, steps, betas=betas, eps=eps, start_step=start_step)
        moved = simulated(optimizer, dtype, steps=steps, start_step=start_step, betas=betas, eps=eps)
        assert found == pytest.approx(moved, rel=rel)


@pytest.mark.parametrize("start_step", [1, 30])
def test_a_lazy_update_is_the_first_of_the_sum_alone(start_step):
    moved = simulated("RowAdamW", torch.float32, steps=25, start_step=start_step, lazy=True)
    assert adam_excursion(GRADS, 1, start_step=start_step) == pytest.approx(moved, rel=1e-5)


def test_a_schedule_weighs_every_update_by_its_own_learning_rate():
    rates = np.linspace(1e-2, 0, 20, endpoint=False)
    moved = simulated("torch", torch.float64, steps=20, start_step=3, rates=rates)
    assert adam_excursion(GRADS, 20, lr=rates, start_step=3) == pytest.approx(moved, rel=1e-11)
    assert adam_excursion(GRADS, 20, lr=2.0) == pytest.approx(2 * adam_excursion(GRADS, 20), rel=1e-12)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.81), (0.9, 0.5), (0.0, 0.0)])
def test_the_closed_form_is_the_sum_late_in_a_training_without_eps(betas):
    steps = 1 if betas[1] == 0 else 60
    late = adam_excursion(-0.3, steps, betas=betas, eps=0.0, start_step=None)
    assert adam_excursion_limit(betas, steps) == pytest.approx(float(late), rel=1e-12)
    assert adam_excursion(-0.3, steps, betas=betas, eps=0.0, start_step=10**6) == pytest.approx(late, rel=1e-12)


def test_the_limit_is_that_of_many_steps_and_infinite_where_momentum_outlives_the_denominator():
    assert adam_excursion_limit() == pytest.approx(adam_excursion_limit(steps=10_000), rel=1e-12)
    assert adam_excursion_limit() == pytest.approx(31.77, abs=0.005)
    assert adam_excursion_limit((0.9, 0.81)) == math.inf
    assert adam_excursion_limit((0.5, 0.0)) == math.inf
    assert adam_excursion_limit((0.0, 0.0)) == 1


def test_a_small_gradient_against_eps_moves_in_proportion_to_its_size():
    found = adam_excursion([1e-9, 2e-9], 50, eps=1e-2, start_step=None)
    assert found == pytest.approx([1e-7 * (1 - 0.9**50), 2e-7 * (1 - 0.9**50)], rel=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 1e-4, 1e-3])
@pytest.mark.parametrize("step", [75, 150])
def test_between_the_two_memories_the_distance_grows_with_the_root_of_the_step(step, eps):
    grad = np.array([1e-4, 5e-4, 1e-2])
    wanted = grad * step**0.5 / (grad + eps * step**0.5)
    assert adam_excursion(grad, 150, eps=eps, start_step=step) == pytest.approx(wanted, rel=0.05)


def test_no_gradient_is_no_path_and_the_shape_is_kept():
    assert adam_excursion(np.zeros((2, 3)), 5, eps=0.0).tolist() == [[0.0] * 3] * 2
    assert adam_excursion(torch.ones(2), 1).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grad": [float("nan")]}, "grad holds NaN or infinity"),
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"start_step": 0}, "start_step is 0: expected at least 1"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected two numbers in \[0, 1\)"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"lr": [1.0, 1.0]}, r"lr has the shape \[2\]: expected a number, or one for each of 3 steps"),
        ({"lr": -1.0}, "lr holds -1.0: expected numbers of at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        adam_excursion(**{"grad": 1.0, "steps": 3, **arguments})


@pytest.mark.parametrize("value", [None, "abc", ["a"], [[1.0], [1.0, 2.0]]])
@pytest.mark.parametrize("name", ["grad", "lr"])
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"{name} is .*: expected a number or an array of numbers"):
        adam_excursion(**{"grad": 1.0, "steps": 3, name: value})


ROWS, D, STEPS, TOP = 400, 64, 150, 18
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def occurrences_of_the_largest_d(make: Make, seed: int) -> tuple[float, float]:
    """Train rows that occur by Zipf's law. The share of the rows of largest D in all occurrences, and their median.

    Every row has an optimum at a distance. In an update in which it occurs, its gradient is the pull to it, plus noise,
    times the share of the batch that it fills.
    """
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(ROWS, D, generator=generator) * 0.1
    goal = before + torch.randn(ROWS, D, generator=generator) * 0.1
    expected = 8 / torch.arange(1, ROWS + 1)
    table, seen = nn.Parameter(before.clone()), torch.zeros(ROWS)
    optimizer = make([table])
    first = optimizer.param_groups[0]["lr"]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = first * (1 - step / STEPS)
        occurs = torch.poisson(expected, generator=generator)[:, None]
        noise = torch.randn(ROWS, D, generator=generator) * 0.1
        table.grad = 1e-3 * (occurs * (table.detach() - goal) + occurs.sqrt() * noise)
        optimizer.step()
        seen += occurs[:, 0]
    largest = ks_statistics(before, table.detach()).argsort(descending=True, stable=True)[:TOP]
    return float(seen[largest].sum() / seen.sum()), float(seen[largest].median())


STAGE1: dict[str, Make] = {
    "adam": partial(RowAdamW, lr=1e-2),
    "eps": partial(RowAdamW, lr=1e-2, eps=1e-4),
    "row": partial(PlainAdam, lr=1e-2, second_moment="row"),
    "lazy": partial(RowAdamW, lr=1e-2, lazy=True),
    "sgd": partial(torch.optim.SGD, lr=3.0, momentum=0.9),
}


@pytest.fixture(scope="module")
def largest() -> dict[str, np.ndarray]:
    """What the largest D occur under each optimizer: their share of all occurrences, and their median."""
    return {
        name: np.mean([occurrences_of_the_largest_d(make, seed) for seed in range(2)], axis=0)
        for name, make in STAGE1.items()
    }


@pytest.mark.parametrize(("name", "share", "median"), [("eps", 1.5, 2.0), ("lazy", 1.3, 1.5), ("sgd", 2.0, 3.0)])
def test_a_larger_eps_lazy_updates_or_plain_gradients_make_the_largest_d_those_of_frequent_rows(
    largest, name, share, median
):
    assert largest[name][0] > share * largest["adam"][0]
    assert largest[name][1] > median * largest["adam"][1]


def test_one_second_moment_for_a_row_leaves_the_largest_d_to_rare_rows(largest):
    assert largest["row"] == pytest.approx(largest["adam"], rel=0.35)
    assert largest["row"][0] < largest["lazy"][0] < largest["eps"][0] < largest["sgd"][0]


@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_one_second_moment_for_a_row_carries_it_as_far_as_its_mean_square_says(eps):
    """So the root mean square of the excursion of a row does not depend on how its gradient is spread."""
    grad = torch.tensor([1e-5, -3e-4, 0.0, 2e-2], dtype=torch.float64)
    size = float(grad.square().mean().sqrt())
    row = nn.Parameter(torch.zeros(1, 4, dtype=torch.float64))
    optimizer = PlainAdam([row], lr=1.0, eps=eps, second_moment="row")
    for step in range(1, 60):
        row.grad = grad[None] * (step == 20)
        optimizer.step()
    distance = float(adam_excursion(size, 40, eps=eps, start_step=20))
    assert (-row.detach()[0]).tolist() == pytest.approx((distance * grad / size).tolist(), rel=1e-9)
