"""The KS kernels: exact integers, scipy's places, flags, any layout, any instruction set, any number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ks_cases import CASES, DTYPES, LAYOUTS, expected, lay_out, make_pair

from kslottery_fast import ops


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_all_exact(x, y, x_view=None, y_view=None):
    """All three ops on the views against the oracle on the values."""
    want = expected(x, y)
    x, y = x if x_view is None else x_view, y if y_view is None else y_view
    for name, got, wanted in zip(want._fields, ops.ks_rows(x, y), want, strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted, err_msg=name)
    if x.shape != y.shape:
        return
    h = np.maximum(want.plus, want.minus)
    got_h, flags = ops.ks_statistics(x, y)
    np.testing.assert_array_equal(got_h.numpy(), h)
    np.testing.assert_array_equal(flags.numpy(), want.flags)
    for threshold in {-1, 0, 1, int(np.median(h)), int(h.max()), int(h.max()) + 1, x.shape[1], x.shape[1] + 1}:
        decided, flags = ops.ks_decide(x, y, threshold)
        np.testing.assert_array_equal(decided.numpy(), (h >= threshold) & (h >= 0), err_msg=f"{threshold}")
        np.testing.assert_array_equal(flags.numpy(), want.flags)
        got_h, flags = ops.ks_statistics(x, y, threshold)
        np.testing.assert_array_equal(got_h.numpy(), np.where((h < 0) | (h >= threshold), h, 0), err_msg=f"{threshold}")
        np.testing.assert_array_equal(flags.numpy(), want.flags)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 63, 64, 576, 1027, 4096])
@pytest.mark.parametrize("case", CASES)
def test_every_statistic_is_exact_on_random_and_adversarial_rows(case, d, dtype):
    x, y = make_pair(case, np.random.default_rng(d), 6, d, d, (dtype, dtype))
    assert_all_exact(x, y)


@pytest.mark.parametrize(("n", "m"), [(1, 7), (7, 1), (100, 150), (127, 576), (1000, 999), (4096, 64)])
@pytest.mark.parametrize("case", CASES)
def test_samples_of_different_sizes_are_exact(case, n, m):
    assert_all_exact(*make_pair(case, np.random.default_rng(n), 5, n, m, (torch.float32, torch.float64)))


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b], ids=str)
@pytest.mark.parametrize("case", ["normal", "quantized", "subnormal", "subnormal half", "NaN and infinity"])
def test_mixed_dtypes_compare_the_exact_values(case, dtypes):
    assert_all_exact(*make_pair(case, np.random.default_rng(0), 8, 500, 500, dtypes))


@pytest.mark.parametrize("d", [20_000, 70_001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["normal", "shifted", "nearly equal", "clusters", "two-valued"])
def test_rows_longer_than_65536_values_are_exact(case, dtype, d):
    assert_all_exact(*make_pair(case, np.random.default_rng(1), 2, d, d, (dtype, dtype)))


@pytest.mark.parametrize("n", [30, 31, 4096])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("case", ["normal", "quantized", "shifted", "both zeros", "identical", "constant"])
def test_sides_and_places_are_those_of_scipy(case, alternative, n):
    x, y = make_pair(case, np.random.default_rng(2), 5, n, 30, (torch.float64, torch.float64))
    plus, minus, plus_at, minus_at, _ = ops.ks_rows(x, y)
    unit = math.gcd(n, 30) / (n * 30)
    for r in range(5):
        want = scipy.stats.ks_2samp(x[r].numpy(), y[r].numpy(), alternative=alternative, method="asymp")
        side, at = {
            "greater": (plus[r], plus_at[r]),
            "less": (minus[r], minus_at[r]),
            "two-sided": (plus[r], plus_at[r]) if want.statistic_sign > 0 else (minus[r], minus_at[r]),
        }[alternative]
        assert round(want.statistic / unit) == side
        assert want.statistic_location == at


small_floats = hnp.arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(1, 200)),
    elements=st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, 1.5, math.inf])),
)


@settings(deadline=None, max_examples=200)
@given(small_floats)
def test_any_finite_or_infinite_row_is_exact(pair):
    assert_all_exact(torch.from_numpy(pair[:1].copy()), torch.from_numpy(pair[1:].copy()))


@settings(deadline=None, max_examples=100)
@given(small_floats, st.randoms(use_true_random=False))
def test_h_is_symmetric_and_does_not_depend_on_order_or_on_monotone_maps(pair, random):
    x, y = torch.from_numpy(pair[:1].copy()), torch.from_numpy(pair[1:].copy())
    h, _ = ops.ks_statistics(x, y)
    order = list(range(x.shape[1]))
    random.shuffle(order)
    assert torch.equal(ops.ks_statistics(y, x)[0], h)
    assert torch.equal(ops.ks_statistics(x[:, order], y)[0], h)
    assert torch.equal(ops.ks_statistics(-x, -y)[0], h)
    assert torch.equal(ops.ks_statistics(x.double() * 3, y.double() * 3)[0], h)


def test_both_zeros_are_equal_and_subnormals_are_not():
    zeros, subnormal = torch.tensor([[0.0, -0.0]]), torch.tensor([[1e-45, -1e-45]])
    assert ops.ks_statistics(zeros, zeros.flip(1))[0].item() == 0
    assert ops.ks_statistics(-zeros, zeros)[0].item() == 0
    assert ops.ks_statistics(zeros, subnormal)[0].item() == 1
    assert ops.ks_statistics(subnormal, 2 * subnormal)[0].item() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flush_to_zero_mode_of_the_caller_changes_nothing(dtype):
    x, y = make_pair("subnormal", np.random.default_rng(3), 4, 300, 300, (torch.float32, torch.float64))
    x, y = x.to(dtype), y[:, :300]
    want = expected(x, y)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        plus, minus, *_ = ops.ks_rows(x, y)
        h, _ = ops.ks_statistics(x, y)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(plus.numpy(), want.plus)
    np.testing.assert_array_equal(minus.numpy(), want.minus)
    np.testing.assert_array_equal(h.numpy(), np.maximum(want.plus, want.minus))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [5, 64, 1000])
def test_nan_and_inf_are_flagged_wherever_they_stand_even_in_identical_rows(d, dtype):
    for value, flag in ((math.nan, 1), (-math.nan, 1), (math.inf, 2), (-math.inf, 2)):
        for position in (0, d // 2, d - 1):
            table = torch.linspace(-1, 1, d).repeat(3, 1).to(dtype)
            other = table.clone()
            table[1, position] = value
            for x, y in ((table, table.clone()), (table, other), (other, table)):
                assert ops.ks_statistics(x, y)[1].tolist() == [0, flag, 0]
                assert ops.ks_decide(x, y, 1)[1].tolist() == [0, flag, 0]
                assert ops.ks_rows(x, y)[4].tolist() == [0, flag, 0]


def test_a_row_with_nan_gives_minus_one_and_is_never_decided():
    x = torch.tensor([[1.0, math.nan], [1.0, 2.0]])
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    plus, minus, plus_at, minus_at, flags = ops.ks_rows(x, y)
    assert (plus.tolist(), minus.tolist()) == ([-1, 2], [-1, 0])
    assert math.isnan(plus_at[0])
    assert math.isnan(minus_at[0])
    assert flags.tolist() == [1, 0]
    assert ops.ks_statistics(x, y)[0].tolist() == [-1, 2]
    assert ops.ks_decide(x, y, -5)[0].tolist() == [False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same(layout, dtype):
    x, y = make_pair("shifted", np.random.default_rng(4), 37, 130, 130, (dtype, dtype))
    assert_all_exact(x, y, lay_out(x, layout), y)
    assert_all_exact(x, y, x, lay_out(y, layout))
    assert_all_exact(x, y, lay_out(x, layout), lay_out(y, layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_strides_are_followed(dtype):
    # torch has no negative strides: hand the op's native function the matrix as the bindings take it.
    x, y = make_pair("shifted", np.random.default_rng(5), 20, 100, 100, (dtype, dtype))
    code = ops.schemas.DTYPE_CODES[dtype]
    last = x.data_ptr() + (x.numel() - 1) * x.element_size()
    h, flags = torch.empty(20, dtype=torch.int64), torch.empty(20, dtype=torch.uint8)
    ops.native.module().ks_statistics(
        (last, 20, 100, -100, -1, code), (y.data_ptr(), 20, 100, 100, 1, code), 0, h.data_ptr(), flags.data_ptr(), 1
    )
    assert torch.equal(h, ops.ks_statistics(x.flip(0, 1), y)[0])


def test_one_row_expanded_over_more_than_2_to_the_31_elements_is_read_in_place():
    x = torch.randn(1, 4096)
    y = x + 0.1 * torch.randn(1, 4096)
    rows = 2**31 // 4096 + 3
    first = torch.zeros(1, 4096).expand(rows, 4096)  # identical rows cost the least
    assert ops.ks_decide(first, first, 1)[0].sum() == 0
    storage = torch.empty(2**31 + 8192, dtype=torch.float16)  # untouched pages cost no memory
    far = torch.as_strided(storage, (2, 4096), (2**31, 1))
    far[0], far[1] = x[0], y[0]
    h, _ = ops.ks_statistics(far, torch.stack([x[0], x[0]]).half())
    assert h[0] == 0
    assert h[1] == ops.ks_statistics(y.half(), x.half())[0][0] > 0


def test_threads_do_not_change_a_bit():
    x, y = make_pair("shifted", np.random.default_rng(6), 3000, 256, 256, (torch.float32, torch.float32))
    x[7, 3], y[2999, 0] = math.nan, math.inf
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append((*ops.ks_rows(x, y), *ops.ks_statistics(x, y), *ops.ks_decide(x, y, 20)))
    for result in results[1:]:
        assert all(torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("op", [ops.ks_statistics, lambda x, y: ops.ks_decide(x, y, 1), ops.ks_rows])
def test_no_rows_give_no_results(op):
    assert [len(out) for out in op(torch.empty(0, 5), torch.empty(0, 5))] in ([0] * 2, [0] * 5)


def test_the_native_core_checks_shapes_itself():
    native = ops.native.module()
    out = torch.empty(4, dtype=torch.int64).data_ptr()
    with pytest.raises(ValueError, match=r"the tables have shapes \[2, 3\] and \[2, 4\]; expected one shape"):
        native.ks_statistics((0, 2, 3, 3, 1, 1), (0, 2, 4, 4, 1, 1), 0, out, out, 1)
    with pytest.raises(ValueError, match="x has 2 rows and y has 3; expected as many"):
        native.ks_rows((0, 2, 3, 3, 1, 1), (0, 3, 3, 3, 1, 1), out, out, 0, 0, out, 1)
    with pytest.raises(ValueError, match="a row of x has 0 values and a row of y 0; expected at least one in each"):
        native.ks_statistics((0, 2, 0, 0, 1, 1), (0, 2, 0, 0, 1, 1), 0, out, out, 1)
    with pytest.raises(ValueError, match="their least common multiple does not fit 64 bits"):
        native.ks_rows((0, 1, 2**40, 0, 0, 1), (0, 1, 2**40 - 1, 0, 0, 1), out, out, 0, 0, out, 1)
    with pytest.raises(ValueError, match="unknown dtype code 7"):
        native.ks_rows((out, 1, 2, 2, 1, 7), (out, 1, 2, 2, 1, 1), out, out, 0, 0, out, 1)
