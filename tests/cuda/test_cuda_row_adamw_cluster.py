"""KSL_CUDA_ADAMW=cluster, executed on the CPU: one launch, with the bits of the default's several launches."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from adamw_cases import DTYPES, HYPER, ROWS, WIDTHS, arguments, as_step, assert_same_bits, copied, update_on_the_cpu

from kslottery_fast import RowAdamW
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import native

LARGEST = 8  # blocks of a cluster of the shim's first device
TILE = 512 * 4  # elements of float32
MOST = LARGEST * 4 * TILE


@pytest.fixture(autouse=True)
def fresh_warnings():
    """Each test hears what a process is told once."""
    native.warn_of_launches.cache_clear()


@pytest.fixture
def chosen(monkeypatch):
    """Chooses the cluster, or the default."""

    def choose(name):
        if name is None:
            monkeypatch.delenv("KSL_CUDA_ADAMW", raising=False)
        else:
            monkeypatch.setenv("KSL_CUDA_ADAMW", name)

    choose("cluster")
    return choose


def state_of(parts, step=2.0):
    """Step numbers, learning rates and control of a step of these tables."""
    steps = [torch.tensor(step + i) for i in range(len(parts))]
    rates = [torch.tensor(0.5**i, dtype=torch.float64 if i % 2 else torch.float32) for i in range(len(parts))]
    return steps, rates, torch.zeros(3, dtype=torch.int32)


def make_step(kernels, parts, state, *, lazy=None, skip_nonfinite=True, **flags):
    steps, rates, control = state
    lists, hyper = as_step(parts, steps, rates)
    kernels.row_adamw_step_(*lists, control, **hyper, lazy=lazy, skip_nonfinite=skip_nonfinite, **flags)


def assert_one_launch_has_the_bits_of_several(kernels, shim, chosen, parts, **options):
    """Make a step both ways; return the blocks of the cluster."""
    copies, state, same_state = [copied(part) for part in parts], state_of(parts), state_of(parts)
    chosen(None)
    make_step(kernels, copies, same_state, **options)
    chosen("cluster")
    before = shim.launches_executed(), shim.blocks_executed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_step(kernels, parts, state, **options)
    assert shim.launches_executed() == before[0] + 1
    for part, copy in zip(parts, copies, strict=True):
        assert_same_bits(part, copy)
    assert state[0] == same_state[0]
    assert torch.equal(state[2], same_state[2])
    return shim.blocks_executed() - before[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", WIDTHS)
def test_a_table_of_any_width_and_dtype(cuda, shim, chosen, d, dtype):
    assert_one_launch_has_the_bits_of_several(cuda, shim, chosen, [arguments(d, dtype)])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_many_tables_of_all_dtypes_with_threads_in_any_order(seeded, shim, chosen, count, lazy):
    parts = [
        arguments(5 + 37 * (i % 7), DTYPES[i % 4], rows=None if i % 3 == 0 else ROWS, master=i % 4 > 1)
        for i in range(count)
    ]
    for part in parts:
        part["grad"][1] = 0.0
    options = {"lazy": [i % 2 == 0 for i in range(count)] if lazy else None}
    assert_one_launch_has_the_bits_of_several(seeded, shim, chosen, parts, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_have_up_to_four_tiles_each_and_every_tile_is_updated_once(cuda, shim, chosen, dtype):
    for elements, blocks in [(1, 1), (TILE, 1), (TILE + 4, 2), (4 * TILE + 4, 8), (MOST - 4, 8), (MOST, 8)]:
        part = arguments(elements, dtype, rows=torch.tensor([3]))
        assert assert_one_launch_has_the_bits_of_several(cuda, shim, chosen, [part]) == blocks


def test_the_bits_are_the_cpus(seeded, shim, chosen):
    parts = [arguments(1100), arguments(600, torch.float16, rows=None), arguments(3, torch.bfloat16, master=True)]
    expected, (_, _, control) = [copied(part) for part in parts], state_of(parts)
    steps, rates = [torch.tensor(2.0) for _ in parts], [torch.tensor(0.01, dtype=torch.float64) for _ in parts]
    before = shim.launches_executed()
    make_step(seeded, parts, (steps, rates, control))
    assert shim.launches_executed() == before + 1
    for part, reference in zip(parts, expected, strict=True):
        update_on_the_cpu(reference, step=3)
        assert_same_bits(part, reference)
    assert [step.item() for step in steps] == [3.0] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [(0, 0, 0), (0, 0, 4 * TILE), (1, 2, 2), (2, 6, 599)])
def test_a_bad_gradient_anywhere_leaves_out_the_whole_step_which_is_counted(seeded, shim, chosen, bad, where):
    parts = [
        arguments(4 * TILE + 1, rows=torch.tensor([3])),
        arguments(3, torch.bfloat16, master=True),
        arguments(600, torch.float16, rows=None),
    ]
    table, *place = where
    parts[table]["grad"][tuple(place)] = bad
    before, state = [copied(part) for part in parts], state_of(parts)
    make_step(seeded, parts, state)
    for part, old in zip(parts, before, strict=True):
        assert_same_bits(part, old)
    assert [step.item() for step in state[0]] == [2.0, 3.0, 4.0]
    assert state[2].tolist() == [0, 0, 1]
    parts[table]["grad"][tuple(place)] = 1.0
    assert_one_launch_has_the_bits_of_several(seeded, shim, chosen, parts)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_what_gradscaler_hands_over_is_followed(seeded, shim, chosen, found_inf):
    parts = [arguments(140), arguments(7, torch.float64), arguments(33, torch.bfloat16, master=True)]
    for part in parts:
        part["grad"][1] = 0.0
    flags = {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(found_inf)}
    for lazy, skip_nonfinite in [([True] * 3, False), (None, True)]:
        options = {"lazy": lazy, "skip_nonfinite": skip_nonfinite, **flags}
        before = copied(parts[0])
        assert_one_launch_has_the_bits_of_several(seeded, shim, chosen, parts, **options)
        assert torch.equal(before["table"], parts[0]["table"]) is bool(found_inf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_the_gradient_of_a_whole_table(cuda, shim, chosen, dtype):
    got = []
    for name in (None, "cluster"):
        chosen(name)
        part = arguments(140, dtype)
        whole = torch.full_like(part["table"], math.nan).index_copy_(0, ROWS, part["grad"])
        lists, hyper = as_step([part], [torch.tensor(2.0)], [torch.tensor(0.01)])
        lists[2][0] = whole
        hyper["whole_grads"] = [True]
        cuda.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper, skip_nonfinite=True)
        got.append(part)
    assert_same_bits(*got)
    assert got[0]["table"].isfinite().all()


def test_an_update_without_a_control_is_one_launch_if_it_is_lazy(cuda, shim, chosen):
    got = arguments(140)
    got["grad"][1] = 0.0
    expected = copied(got)
    before = shim.launches_executed()
    cuda.row_adamw_(**got, step=3, **HYPER, lazy=True)
    assert shim.launches_executed() == before + 1
    update_on_the_cpu(expected, step=3, lazy=True)
    assert_same_bits(got, expected)


def test_what_is_one_launch_anyway_stays_as_it_is(cuda, shim, chosen):
    before = shim.blocks_executed()
    cuda.row_adamw_(**arguments(1100), step=3, **HYPER)  # 7 tiles of 512, by 4 blocks
    assert shim.blocks_executed() == before + 4


def test_the_steps_of_a_capturable_optimizer_are_the_same(seeded, shim, chosen, monkeypatch):
    monkeypatch.setattr("kslottery_fast.optim.updates.row_adamw_step_", seeded.row_adamw_step_)
    ends = []
    for name in (None, "cluster"):
        chosen(name)
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((5, 36), (40, 7), (9,))]
        groups = [{"params": params[:1], "rows": [4, 1]}, {"params": params[1:], "lazy": True}]
        optimizer = RowAdamW(groups, nonfinite="skip", capturable=True)
        for number in range(4):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            if number == 2:
                params[1].grad[0, 0] = math.inf
            before = shim.launches_executed()
            optimizer.step()
            assert shim.launches_executed() == before + (1 if name else 3)
        assert optimizer.skipped_steps == 1
        ends.append([param.detach() for param in params])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (lambda: [arguments(5) for _ in range(17)], "a step has more than 16 tables"),
        (
            lambda: [arguments(MOST + 4, rows=torch.tensor([3]))],
            r"a step has more than 32 times 512 packs \(of 16 bytes, or of one element where rows do not divide into "
            r"such\), which is too much for one cluster",
        ),
    ],
    ids=["tables", "elements"],
)
def test_a_step_that_no_cluster_takes_is_made_by_launches_and_says_so_once(cuda, shim, chosen, parts, reason):
    parts = parts()
    copies, state, same_state = [copied(part) for part in parts], state_of(parts), state_of(parts)
    with pytest.warns(RuntimeWarning, match=f"KSL_CUDA_ADAMW is 'cluster', but {reason}. Steps of this kind take"):
        make_step(cuda, parts, state)
    chosen("launches")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_step(cuda, copies, same_state)
        chosen("cluster")
        for part, copy in zip(parts, copies, strict=True):
            assert_same_bits(part, copy)
        make_step(cuda, parts, state)


def test_a_device_without_clusters_runs_launches_and_says_so(shim, chosen, monkeypatch):
    from kslottery_fast.ops import kernels

    monkeypatch.setattr(native, "caller", lambda device: native.Caller(shim, 1, 0))
    part = arguments(140)
    expected, (steps, rates, control) = copied(part), state_of([part])
    reason = r"device 1 has no clusters of thread blocks, or the kernels were not compiled for 9.0 \(KSL_CUDA_ARCH\w+\)"
    with pytest.warns(RuntimeWarning, match=f"but {reason}. Steps of this kind"):
        make_step(kernels, [part], (steps, rates, control))
    update_on_the_cpu(expected, step=3, lr=1.0)
    assert_same_bits(part, expected)


def test_an_unknown_name_is_refused_before_anything_is_written(cuda, chosen):
    chosen("clusters")
    got = arguments(8)
    before = copied(got)
    with pytest.raises(InputError, match="KSL_CUDA_ADAMW is 'clusters'; expected launches or cluster, or leave it"):
        cuda.row_adamw_(**got, step=3, **HYPER)
    assert_same_bits(got, before)


@pytest.mark.parametrize("bad", [-1, 2**40])
def test_a_row_outside_the_table_ends_the_kernel_before_anything_is_written(cuda, chosen, bad):
    part = arguments(140) | {"rows": torch.tensor([5, bad, 3])}
    before = copied(part)
    with pytest.raises(RuntimeError, match="device-side assert: a row id is outside the table"):
        make_step(cuda, [part], state_of([part]))
    assert_same_bits(part, before)
