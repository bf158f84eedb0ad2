"""The CUDA KS kernels, executed on the CPU by the shim: the integers, places and flags of the oracle, whatever the row.

What a kernel does depends on the dtype and on d: float32 rows of up to 1,024, 2,048, 4,096 and 8,192 values are held by
64, 128, 256 and 512 threads (twice as many 16-bit values, half as many doubles). Longer ones, and those that are no
whole number of aligned vectors of 16 bytes, are streamed.
"""

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
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import decision

VECTORS = 4  # of 16 bytes, that a thread holds of each row


def assert_all_exact(cuda, x, y, x_view=None, y_view=None):
    """All three ops on the views against the oracle on the values."""
    want = expected(x, y)
    x, y = x if x_view is None else x_view, y if y_view is None else y_view
    for name, got, wanted in zip(want._fields, cuda.ks_rows(x, y), want, strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted, err_msg=name)
    if x.shape == y.shape:
        h = np.maximum(want.plus, want.minus)
        assert_bucketed_exact(cuda, x, y, want, {0, 1, int(np.median(h)), int(h.max()), int(h.max()) + 1})


def assert_bucketed_exact(cuda, x, y, want, thresholds=()):
    """ks_statistics, and ks_decide at these thresholds."""
    h = np.maximum(want.plus, want.minus)
    got, flags = cuda.ks_statistics(x, y)
    np.testing.assert_array_equal(got.numpy(), h)
    np.testing.assert_array_equal(flags.numpy(), want.flags)
    for threshold in thresholds:
        decided, flags = cuda.ks_decide(x, y, threshold)
        np.testing.assert_array_equal(decided.numpy(), (h >= threshold) & (h >= 0), err_msg=f"{threshold}")
        np.testing.assert_array_equal(flags.numpy(), want.flags)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [2, 577, 640, 2504])
@pytest.mark.parametrize("case", CASES)
def test_every_statistic_is_exact_on_random_and_adversarial_rows(cuda, case, d, dtype):
    assert_all_exact(cuda, *make_pair(case, np.random.default_rng(d), 3, d, d, (dtype, dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [64, 128, 256, 512])
def test_rows_around_the_limits_of_vectors_warps_and_blocks_are_exact(cuda, shim, threads, dtype):
    lanes = 16 // dtype.itemsize
    full = threads * VECTORS * lanes
    for d in (full // 2 + lanes, full - lanes, full - 1, full, full + 1, full + lanes):
        x, y = make_pair("shifted", np.random.default_rng(d), 2, d, d, (dtype, dtype))
        y[0] = x[0]
        y[0, -1] += 3  # the last value alone
        before = shim.blocks_executed()
        assert_bucketed_exact(cuda, x, y, expected(x, y))
        assert shim.blocks_executed() == before + len(x)  # a block a row


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [64, 128, 256, 512])
def test_no_thread_waits_for_a_bank_when_the_counts_are_scanned(cuda, shim, threads, dtype):
    d = threads * VECTORS * 16 // dtype.itemsize
    x, y = make_pair("shifted", np.random.default_rng(d), 1, d, d, (dtype, dtype))
    shim.bank_conflicts()
    cuda.ks_statistics(x, y)
    ((site, (served, more)),) = shim.bank_conflicts().items()
    assert site.startswith("ks_counts.cuh:")
    assert served >= threads // 8
    assert more == 0


VARIANTS = ["interval", "fast"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_gives_the_same_integers(cuda, monkeypatch, case, variant, dtype):
    monkeypatch.setenv("KSL_CUDA_VARIANT", variant)
    x, y = make_pair(case, np.random.default_rng(6), 2, 640, 640, (dtype, dtype))
    want = expected(x, y)
    assert_bucketed_exact(cuda, x, y, want, {1, int(np.maximum(want.plus, want.minus).max())})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [64, 128, 256, 512])
def test_every_variant_is_exact_in_blocks_of_every_size(cuda, monkeypatch, threads, variant, dtype):
    monkeypatch.setenv("KSL_CUDA_VARIANT", variant)
    d = threads * VECTORS * 16 // dtype.itemsize
    x, y = make_pair("shifted", np.random.default_rng(d), 2, d, d, (dtype, dtype))
    x[1], y[1] = x[1] * 1e-3, y[1] * -1e-3
    assert_bucketed_exact(cuda, x, y, expected(x, y))


@pytest.mark.parametrize("magnitude", [0x0000, 0x0001, 0x0400, 0x3C80, 0x4000, 0x7F00, 0x7F7F])
def test_two_bfloat16_at_once_come_into_the_buckets_of_each(shim, magnitude):
    # Results do not show this: if many values come into one bucket, another map is fitted.
    assert shim.probe("two buckets", magnitude) == [0] * 32


def test_an_unknown_variant_is_refused(cuda, monkeypatch):
    monkeypatch.setenv("KSL_CUDA_VARIANT", "faster")
    with pytest.raises(InputError, match="KSL_CUDA_VARIANT is 'faster'; expected plain, interval or fast"):
        cuda.ks_statistics(torch.zeros(1, 8), torch.ones(1, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["shifted", "clusters", "two-valued", "NaN and infinity", "one far outlier"])
def test_rows_that_registers_do_not_hold_are_exact(cuda, case, dtype):
    x, y = make_pair(case, np.random.default_rng(1), 1, 17_000, 17_000, (dtype, dtype))
    assert_bucketed_exact(cuda, x, y, expected(x, y), {400})


@pytest.mark.parametrize("case", ["shifted", "constant"])
def test_more_than_65535_values_in_one_bucket_are_counted(cuda, case):
    x, y = make_pair(case, np.random.default_rng(1), 1, 70_001, 70_001, (torch.float32, torch.float32))
    x[0, :69_000], y[0, :68_000] = 0.5, 0.5
    want = expected(x, y)
    np.testing.assert_array_equal(cuda.ks_statistics(x, y)[0].numpy(), np.maximum(want.plus, want.minus))


@pytest.mark.parametrize(("n", "m"), [(1, 7), (7, 1), (100, 150), (127, 576), (1000, 999), (64, 4096)])
@pytest.mark.parametrize("case", CASES)
def test_samples_of_different_sizes_are_exact(cuda, case, n, m):
    assert_all_exact(cuda, *make_pair(case, np.random.default_rng(n), 3, n, m, (torch.float32, torch.float64)))


def test_samples_that_shared_memory_does_not_hold_are_sorted_elsewhere(cuda):
    x, y = make_pair("quantized", np.random.default_rng(8), 9, 33_000, 20, (torch.float32, torch.float32))
    assert_all_exact(cuda, x, y)


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b], ids=str)
@pytest.mark.parametrize("case", ["shifted", "subnormal", "subnormal double", "subnormal half", "NaN and infinity"])
def test_mixed_dtypes_compare_the_exact_values(cuda, case, dtypes):
    assert_all_exact(cuda, *make_pair(case, np.random.default_rng(0), 3, 500, 500, dtypes))


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("case", ["normal", "quantized", "both zeros", "identical", "constant"])
def test_sides_and_places_are_those_of_scipy(cuda, case, alternative):
    x, y = make_pair(case, np.random.default_rng(2), 4, 31, 30, (torch.float64, torch.float64))
    plus, minus, plus_at, minus_at, _ = cuda.ks_rows(x, y)
    for r in range(4):
        want = scipy.stats.ks_2samp(x[r].numpy(), y[r].numpy(), alternative=alternative, method="asymp")
        side, at = {
            "greater": (plus[r], plus_at[r]),
            "less": (minus[r], minus_at[r]),
            "two-sided": (plus[r], plus_at[r]) if want.statistic_sign > 0 else (minus[r], minus_at[r]),
        }[alternative]
        assert round(want.statistic * 31 * 30) == side
        assert want.statistic_location == at


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["shifted", "quantized", "clusters", "NaN and infinity", "identical"])
def test_every_threshold_cuts_where_it_should(cuda, case, dtype):
    x, y = make_pair(case, np.random.default_rng(9), 3, 40, 40, (dtype, dtype))
    want = expected(x, y)
    h = np.maximum(want.plus, want.minus)
    for threshold in (-(2**62), *range(-1, 43), 2**62):
        decided, flags = cuda.ks_decide(x, y, threshold)
        np.testing.assert_array_equal(decided.numpy(), (h >= threshold) & (h >= 0), err_msg=f"{threshold}")
        np.testing.assert_array_equal(flags.numpy(), want.flags)
        got, flags = cuda.ks_statistics(x, y, threshold)
        np.testing.assert_array_equal(got.numpy(), np.where((h >= threshold) | (h < 0), h, 0), err_msg=f"{threshold}")
        np.testing.assert_array_equal(flags.numpy(), want.flags)


small_floats = hnp.arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(1, 200)),
    elements=st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, 1.5, math.inf])),
)


@settings(deadline=None, max_examples=60)
@given(pair=small_floats)
def test_any_finite_or_infinite_row_is_exact(shim, pair):
    x, y = torch.from_numpy(pair[:1].copy()), torch.from_numpy(pair[1:].copy())
    want = expected(x, y)
    h, flags = torch.empty(1, dtype=torch.int64), torch.empty(1, dtype=torch.uint8)
    matrices = ops.kernels._matrix(x), ops.kernels._matrix(y)
    shim.ks_statistics(*matrices, 0, h.data_ptr(), flags.data_ptr(), 0, 0)
    assert (h.item(), flags.item()) == (max(want.plus[0], want.minus[0]), want.flags[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same(cuda, layout, dtype):
    x, y = make_pair("shifted", np.random.default_rng(4), 5, 130, 130, (dtype, dtype))
    assert_all_exact(cuda, x, y, lay_out(x, layout), y)
    assert_all_exact(cuda, x, y, x, lay_out(y, layout))
    assert_all_exact(cuda, x, y, lay_out(x, layout), lay_out(y, layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 5])
def test_rows_that_are_not_aligned_to_vectors_are_read_whole(cuda, offset, dtype):
    x, y = make_pair("shifted", np.random.default_rng(offset), 3, 256, 256, (dtype, dtype))
    shifted = torch.zeros(x.numel() + offset, dtype=dtype)[offset:].view(x.shape).copy_(x)
    assert_all_exact(cuda, x, y, shifted, y)


def test_negative_and_zero_strides_are_followed(shim, cuda):
    x, y = make_pair("shifted", np.random.default_rng(5), 6, 100, 100, (torch.float32, torch.float32))
    last = x.data_ptr() + (x.numel() - 1) * x.element_size()
    h, flags = torch.empty(6, dtype=torch.int64), torch.empty(6, dtype=torch.uint8)
    outputs = h.data_ptr(), flags.data_ptr(), 0, 0
    shim.ks_statistics((last, 6, 100, -100, -1, 1), ops.kernels._matrix(y), 0, *outputs)
    assert torch.equal(h, ops.ks_statistics(x.flip(0, 1), y)[0])
    one = x[:1].expand(6, 100)
    assert torch.equal(cuda.ks_statistics(one, y)[0], ops.ks_statistics(one, y)[0])
    constant = x[:, :1].expand(6, 100)
    assert torch.equal(cuda.ks_statistics(constant, y)[0], ops.ks_statistics(constant, y)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [5, 64, 1000])
def test_nan_and_inf_are_flagged_wherever_they_stand_even_in_identical_rows(cuda, d, dtype):
    for value, flag in ((math.nan, 1), (-math.nan, 1), (math.inf, 2), (-math.inf, 2)):
        for position in (0, d // 2, d - 1):
            table = torch.linspace(-1, 1, d).repeat(3, 1).to(dtype)
            other = table.clone()
            table[1, position] = value
            for x, y in ((table, table.clone()), (table, other), (other, table)):
                assert cuda.ks_statistics(x, y)[1].tolist() == [0, flag, 0]
                assert cuda.ks_decide(x, y, 1)[1].tolist() == [0, flag, 0]
                assert cuda.ks_rows(x, y)[4].tolist() == [0, flag, 0]


def test_the_largest_finite_values_are_not_taken_for_infinity(cuda):
    for dtype in DTYPES:
        x = torch.full((1, 40), torch.finfo(dtype).max, dtype=dtype)
        y = x.clone()
        y[0, :3] = -x[0, :3]
        h, flags = cuda.ks_statistics(x, y)
        assert (h.tolist(), flags.tolist()) == ([3], [0])
        assert cuda.ks_statistics(x, x.clone())[1].tolist() == [0]


@pytest.mark.parametrize("case", CASES)
def test_no_order_of_the_threads_changes_anything(cuda, shim, case):
    x, y = make_pair(case, np.random.default_rng(7), 2, 1500, 1500, (torch.float32, torch.float32))
    want = expected(x, y)
    for seed in (1, 2):
        shim.set_seed(seed)
        np.testing.assert_array_equal(cuda.ks_statistics(x, y)[0].numpy(), np.maximum(want.plus, want.minus))
        np.testing.assert_array_equal(cuda.ks_rows(x, y)[2].numpy(), want.plus_at)


def sort_on(shim, device, n, rows=1, missing=None):
    """ks_rows on a device of the shim's, by way of the module itself. All but `missing` bytes of the workspace exist.

    Bytes behind the workspace must stay as they are.
    """
    x, y = make_pair("quantized", np.random.default_rng(n), rows, n, n, (torch.float32, torch.float32))
    outputs = [torch.empty(rows, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float64, torch.float64)]
    flags = torch.empty(rows, dtype=torch.uint8)
    matrices = ops.kernels._matrix(x), ops.kernels._matrix(y)
    least, best = shim.ks_rows_workspace(*matrices, device, 0)
    size = best if missing is None else least - missing
    memory = torch.full((size + 4096,), 0xA5, dtype=torch.uint8)
    pointers = [output.data_ptr() for output in (*outputs, flags, memory)]
    shim.ks_rows(*matrices, *pointers, size, device, 0)
    assert (memory[size:] == 0xA5).all()
    for got, want in zip((*outputs, flags), expected(x, y), strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.fixture
def fresh_process(shim):
    """No device has a context, and device 0 is current."""
    shim.end_contexts()
    yield
    shim.end_contexts()


@pytest.mark.usefixtures("fresh_process")
def test_a_kernel_on_one_device_makes_no_context_on_the_device_that_was_current(shim):
    sort_on(shim, 1, 33_000)
    assert shim.contexts() == {1}


@pytest.mark.usefixtures("fresh_process")
def test_the_device_that_was_current_is_current_again_if_it_has_a_context(shim):
    sort_on(shim, 0, 100)
    sort_on(shim, 1, 100)
    assert (shim.contexts(), shim.current_device()) == ({0, 1}, 0)


def test_the_least_workspace_is_enough_and_less_is_refused(shim):
    sort_on(shim, 0, 20_000, rows=3, missing=0)
    with pytest.raises(ValueError, match=r"ks_rows has a workspace of \d+ bytes for rows of 20000 and 20000 val"):
        sort_on(shim, 0, 20_000, missing=1)


def test_rows_that_shared_memory_holds_need_no_workspace(shim):
    matrix = (0, 5, 8_192, 8_192, 1, 1)
    assert shim.ks_rows_workspace(matrix, matrix, 0, 0) == (0, 0)
    assert shim.ks_rows_workspace((0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 1, 1), 0, 0) == (0, 0)


def test_without_memory_for_many_rows_ks_rows_takes_one_at_a_time(cuda, monkeypatch):
    x, y = make_pair("quantized", np.random.default_rng(3), 3, 20_000, 30_000, (torch.float32, torch.float32))
    sizes, room = [], 0

    def device_bytes(size, like):
        sizes.append(size)
        if size > room:
            raise torch.OutOfMemoryError
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(ops.kernels, "_device_bytes", device_bytes)
    with pytest.raises(MemoryError, match=r"rows of 20,000 and 30,000 values take [\d,]+ bytes of device memory"):
        cuda.ks_rows(x, y)
    best, least = sizes
    assert least < best
    room = least
    for got, want in zip(cuda.ks_rows(x, y), expected(x, y), strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m"), [(40_000, 3), (4096 * 8, 4096 * 4 + 1)])
@pytest.mark.parametrize("case", ["quantized", "NaN and infinity", "both zeros", "constant"])
def test_long_rows_give_scipys_sides_and_places(cuda, case, n, m, dtype):
    assert_all_exact(cuda, *make_pair(case, np.random.default_rng(m), 4, n, m, (dtype, dtype)))


def test_shared_memory_is_allowed_once_for_all_and_what_the_kernel_has_already_is_left_out(shim):
    # Another thread may launch the same kernel with less: what is allowed must not depend on the rows.
    for n in (8_192, 16_384, 9_000):
        sort_on(shim, 0, n)
    assert shim.granted_shared() == {227 * 1024 - 1024}


def test_a_device_older_than_the_kernels_is_named(shim):
    assert [shim.unavailable(), shim.unavailable(0), shim.unavailable(1)] == ["", "", ""]
    shim.take_kernels_from(1)
    try:
        assert shim.unavailable(0) == ""
        assert "device 1 of compute capability 7.5 cannot run the kernels: " in shim.unavailable(1)
    finally:
        shim.take_kernels_from(-1)


def test_no_rows_give_no_launch(cuda, shim):
    before = shim.blocks_executed()
    for op in (cuda.ks_rows, cuda.ks_statistics, lambda x, y: cuda.ks_decide(x, y, 1)):
        assert all(len(out) == 0 for out in op(torch.empty(0, 5), torch.empty(0, 5)))
    assert shim.blocks_executed() == before


@pytest.mark.parametrize("rows", [1, 31, 32, 257, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rows_that_reach_a_threshold_are_found_in_one_launch(cuda, shim, rows, seed):
    shim.set_seed(seed)
    h = torch.from_numpy(np.random.default_rng(rows).integers(-1, 9, rows))
    flags = torch.zeros(rows, dtype=torch.uint8)
    for threshold, flag in ((0, 0), (5, 2), (9, 4), (3, 1)):
        flags[rows // 2] = flag
        ids, counts, flagged = cuda.reached_rows(h, flags, threshold, 3)
        order = ids.argsort()
        assert torch.equal(ids[order], torch.nonzero(h >= threshold)[:, 0])
        assert torch.equal(counts, h[ids])
        assert flagged is (flag in (1, 2))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("few", [4096, 3])
def test_the_rows_of_a_selection_are_the_same_by_a_kernel(monkeypatch, few):
    x, y = make_pair("shifted", np.random.default_rng(1), 40, 64, 64, (torch.float32, torch.float32))
    tables = decision.TablesInMemory(x, y, ("before", "after"))
    want = tables.reached(3)
    assert len(want[0]) > 3
    monkeypatch.setattr(decision, "_FEW_ROWS", few)
    monkeypatch.setenv("KSL_CUDA_COMPACTION", "kernel")
    for got, wanted in zip(tables.reached(3), want, strict=True):
        assert torch.equal(got, wanted)
    monkeypatch.setenv("KSL_CUDA_COMPACTION", "pinned")
    with pytest.raises(InputError, match="KSL_CUDA_COMPACTION is 'pinned'; expected operators or kernel"):
        tables.reached(3)
    monkeypatch.setenv("KSL_CUDA_COMPACTION", "kernel")
    y[7, 5] = math.nan
    with pytest.raises(InputError, match="after has NaN or Inf in 1 row"):
        tables.reached(3)


def test_the_launchers_check_shapes_themselves(shim):
    with pytest.raises(ValueError, match=r"the tables have shapes \[2, 3\] and \[2, 4\]; expected one shape"):
        shim.ks_statistics((0, 2, 3, 3, 1, 1), (0, 2, 4, 4, 1, 1), 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="x has 2 rows and y has 3; expected as many"):
        shim.ks_rows((0, 2, 3, 3, 1, 1), (0, 3, 3, 3, 1, 1), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="a row of x has 0 values and a row of y 0; expected at least one in each"):
        shim.ks_decide((0, 2, 0, 0, 1, 1), (0, 2, 0, 0, 1, 1), 1, 0, 0, 0, 0)
    long = (0, 1, 2**30 + 1, 0, 1, 1)
    for call in (shim.ks_decide, shim.ks_statistics):
        with pytest.raises(
            ValueError, match=r"rows of 1073741825 and .* values; expected at most 2\^30 on a GPU: comp"
        ):
            call(long, long, 1, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"rows of 1 and 1073741825 values; expected at most 2\^30 on a GPU: compare"):
        shim.ks_rows((0, 1, 1, 0, 1, 1), (0, 1, 2**30 + 1, 0, 1, 1), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="their least common multiple does not fit 64 bits"):
        shim.ks_rows((0, 1, 2**40, 0, 0, 1), (0, 1, 2**40 - 1, 0, 0, 1), 0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_errors_of_the_launchers_are_input_errors(cuda):
    with pytest.raises(InputError, match="before has shape"):
        cuda.ks_statistics(torch.zeros(2, 3), torch.zeros(2, 4))
