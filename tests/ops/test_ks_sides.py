"""ks_rows beyond one pair of float rows: one side alone, integers, shared samples, and rows cut over threads."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from ks_cases import CASES, DTYPES, expected, make_pair
from scipy import stats

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import native, reference


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_equal(got, want):
    for name, a, b in zip(("plus", "minus", "plus_at", "minus_at", "flags"), got, want, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy() if isinstance(b, torch.Tensor) else b, err_msg=name)


def of_sides(x, y, sides):
    outputs = tuple(torch.from_numpy(field) for field in expected(x, y))
    reference.show_sides(x, y, sides, outputs)
    return outputs


@pytest.mark.parametrize("sides", ["plus", "minus", "larger"])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (7, 500), (576, 576), (2000, 1500), (9000, 5001)])
@pytest.mark.parametrize("case", ["normal", "quantized", "moved far", "NaN and infinity"])
def test_one_side_is_that_of_both(case, n, m, sides):
    for dtype in (torch.float64, torch.float32):
        x, y = make_pair(case, np.random.default_rng(n), 4, n, m, (dtype, dtype))
        assert_equal(ops.ks_rows(x, y, sides), of_sides(x, y, sides))


@pytest.mark.parametrize("sides", ["both", "larger"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_pure_torch_kernel_shows_the_same_sides(dtype, sides):
    x, y = make_pair("quantized", np.random.default_rng(1), 30, 24, 36, (dtype, dtype))
    assert_equal(reference.ks_rows(x, y, sides), ops.ks_rows(x, y, sides))


def test_of_equal_sides_the_one_that_scipy_reports_is_shown():
    x, y = torch.tensor([[0.0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    plus, minus, plus_at, minus_at, _ = ops.ks_rows(x, y, "larger")
    assert (plus.tolist(), minus.tolist()) == ([1, 0], [0, 0])
    assert plus_at.tolist() == [0.0, 1.0]
    assert minus_at.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64], ids=str)
@pytest.mark.parametrize(("n", "m"), [(5, 8), (700, 700), (3000, 1000)])
def test_integers_are_exact_over_their_whole_range(n, m, dtype):
    rng, limits = np.random.default_rng(n), torch.iinfo(dtype)
    low, high = limits.min, limits.max
    for spread in (3, 2**40, 2**63 - 1):
        start = high - spread if spread < 2**62 else 0
        samples = [rng.integers(start, high, (3, size), dtype=np.dtype(str(dtype)[6:])) for size in (n, m)]
        for sample in samples:
            sample[:, 0], sample[:, -1] = low, high
        x, y = map(torch.from_numpy, samples)
        plus, minus, plus_at, minus_at, flags = ops.ks_rows(x, y)
        assert plus_at.dtype == dtype
        assert not flags.any()
        for row in range(3):
            a, b = np.sort(samples[0][row]), np.sort(samples[1][row])
            both = np.concatenate([a, b])
            i, j = (np.searchsorted(sample, both, side="right") for sample in (a, b))
            exact = i * (m // np.gcd(n, m)) - j * (n // np.gcd(n, m))
            assert (int(plus[row]), int(minus[row])) == (exact.max(), -exact.min())
            assert int(plus_at.numpy()[row]) == int(both[(i / n - j / m).argmax()])
            assert int(minus_at.numpy()[row]) == int(both[(i / n - j / m).argmin()])
        assert_equal(reference.ks_rows(x, y), (plus, minus, plus_at, minus_at, flags))
        assert_equal(reference.ks_rows(x, y, "larger"), ops.ks_rows(x, y, "larger"))


@pytest.mark.parametrize("other", [1, 20, 3000, 9000])
@pytest.mark.parametrize("case", [*list(CASES)[::4], "NaN and infinity"])
def test_a_shared_sample_gives_what_its_copies_give(case, other):
    x, y = make_pair(case, np.random.default_rng(2), 6, 5000, other, (torch.float64, torch.float64))
    x = x[:1].expand_as(x)
    for sides in ("both", "larger"):
        assert_equal(ops.ks_rows(x, y, sides), ops.ks_rows(x.clone(), y, sides))
        assert_equal(ops.ks_rows(y, x, sides), ops.ks_rows(y, x.clone(), sides))


def test_a_shared_sample_of_subnormals_does_not_depend_on_the_mode_of_the_caller():
    x, y = make_pair("subnormal", np.random.default_rng(3), 3, 300, 400, (torch.float32, torch.float32))
    x = x[:1].expand_as(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        got = ops.ks_rows(x, y)
    finally:
        torch.set_flush_denormal(False)
    assert_equal(got, expected(x, y))


def test_a_shared_sample_with_nan_flags_every_row():
    x, y = torch.tensor([[1.0, float("nan")]]).expand(3, 2), torch.randn(3, 5)
    assert ops.ks_rows(x, y)[4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("case", ["normal", "shifted", "two-valued", "NaN and infinity", "identical"])
def test_a_long_row_cut_over_threads_is_exact(case):
    n, m = 2**19 + 77, 2**19 + (77 if case == "identical" else 1000)
    x, y = make_pair(case, np.random.default_rng(3), 1, n, m, (torch.float32, torch.float32))
    want = expected(x, y)
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        assert_equal(ops.ks_rows(x, y), want)


@pytest.mark.parametrize("case", ["normal", "quantized", "huge range", "clusters"])
@pytest.mark.parametrize(("n", "m"), [(2**18, 2**18 - 1), (2**18, 2**18), (2**20, 3000), (2**21 - 9, 2**21 + 9)])
def test_rows_with_more_buckets_are_exact(case, n, m):
    x, y = make_pair(case, np.random.default_rng(n), 1, n, m, (torch.float64, torch.float64))
    want = expected(x, y)
    assert_equal(ops.ks_rows(x, y), want)
    if m < 2**20:  # the others are too long for many rows
        both = torch.cat([y, -y])
        assert_equal(ops.ks_rows(x.expand(2, n), both), ops.ks_rows(x.repeat(2, 1), both))


def test_a_shared_sample_that_is_sorted_already_gives_the_same():
    x, y = make_pair("normal", np.random.default_rng(6), 5, 3000, 40, (torch.float64, torch.float64))
    shared = x[:1].expand_as(x)
    assert_equal(ops.ks_rows(shared.sort().values[:1].expand_as(x), y), ops.ks_rows(shared, y))


def test_a_row_that_is_too_long_to_keep_its_locations_is_exact():
    size = 2**21 + 5
    x = torch.arange(size, dtype=torch.float32)[None]
    y = x / 2
    torch.set_num_threads(1)
    plus, minus, plus_at, minus_at, _ = ops.ks_rows(x, y)
    assert (int(plus), float(plus_at)) == (0, 0.0)
    assert (int(minus), float(minus_at)) == (size // 2, size // 2)


def test_a_device_without_a_kernel_for_one_side_computes_both(monkeypatch):
    x, y = make_pair("quantized", np.random.default_rng(4), 20, 24, 36, (torch.float32, torch.float32))
    want = ops.ks_rows(x, y, "larger")
    real = native.caller()
    both = native.module().ks_rows

    def without_workspace(*arguments):
        *of_the_rows, _, _, threads = arguments
        both(*of_the_rows, threads)

    device = types.SimpleNamespace(ks_rows=without_workspace, ks_rows_workspace=lambda *_: (0, 0))
    monkeypatch.setattr(native, "caller", lambda _device: native.Caller(device, 1))
    assert real.offers("ks_sides")
    assert_equal(ops.ks_rows(x, y, "larger"), want)
    assert ops.ks_rows(x.long(), y.long())[2].dtype == torch.int64


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_equal_sides_of_samples_of_two_types_are_told_apart_as_by_scipy(narrow):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4_000, 7, generator=generator).to(narrow), torch.randn(4_000, 7, generator=generator)
    plus, minus, *_ = ops.ks_rows(x, y)
    assert int((plus == minus).sum()) > 50
    outputs = ops.ks_rows(x, y, "larger")
    assert_equal(reference.ks_rows(x, y, "larger"), outputs)
    assert_equal(reference.ks_rows(y, x, "larger"), ops.ks_rows(y, x, "larger"))
    for row in (plus == minus).nonzero()[:20, 0].tolist():
        sign = stats.ks_2samp(x[row].double().numpy(), y[row].double().numpy(), method="asymp").statistic_sign
        assert (sign > 0) == bool(outputs[0][row] > 0)


def test_unknown_sides_and_unlike_integers_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"sides is 'upper'; expected one of 'both', 'plus', 'minus', 'larger'"):
        ops.ks_rows(x, x, "upper")
    with pytest.raises(InputError, match=r"x has dtype torch.int64"):
        ops.ks_rows(x.long(), x)
    with pytest.raises(InputError, match=r"y has dtype torch.int64"):
        ops.ks_rows(x, x.long())


def test_the_reference_takes_columns_without_a_warning_of_torch(recwarn):
    x, y = torch.randn(40, 3).T, torch.randn(50, 3).T
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert_equal(reference.ks_rows(x, y), ops.ks_rows(x.contiguous(), y.contiguous()))
    finally:
        torch.set_warn_always(before)
    assert not recwarn.list
