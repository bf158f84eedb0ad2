"""ks_stream and KsAccumulator: the result of ks_2samp, whatever the chunks, the distribution and the dtype."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.ks_streams import normal_chunks
from kslottery_fast import InputError, KsAccumulator, ks_2samp, ks_stream
from kslottery_fast.ks.stream_result import huge_pvalue
from kslottery_fast.ops import native

FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign", "log_pvalue")
SMALL = {"buckets": 16, "keep": 16}  # so that samples of hundreds of values need several passes
ALTERNATIVES = ("two-sided", "greater", "less")


def chunks_of(sample, rng, pieces=4):
    """The sample in a random order, cut at random places."""
    shuffled = np.asarray(sample)[rng.permutation(len(sample))]
    return np.array_split(shuffled, np.sort(rng.integers(0, len(sample) + 1, pieces)))


def assert_same(result, expected):
    for name in FIELDS:
        mine, its = getattr(result, name), getattr(expected, name)
        assert np.array_equal(mine, its, equal_nan=True), (name, mine, its)
        assert np.asarray(mine).dtype == np.asarray(its).dtype, name


def samples(rng):
    """Pairs of samples that are hard in different ways."""
    normal = rng.normal(size=200)
    return {
        "normal": (normal, rng.normal(0.1, size=150)),
        "ties": (rng.integers(0, 6, 200), rng.integers(0, 7, 130)),
        "shared values": (normal, np.concatenate([normal[:100], rng.normal(size=40)])),
        "the same": (normal, normal.copy()),
        "constant": (np.full(20, 2.5), np.full(30, 2.5)),
        "two constants": (np.full(20, 2.5), np.full(30, np.nextafter(2.5, 3))),
        "infinities": (np.append(normal, [np.inf, -np.inf]), np.append(normal[:50], [np.inf, np.inf, -np.inf])),
        "zeros": (np.array([0.0, -0.0, 1.0]), np.array([-0.0, 0.0, 5e-324, -5e-324])),
        "one bucket": (1 + rng.integers(0, 99, 300) * 2.0**-52, 1 + rng.integers(0, 90, 200) * 2.0**-52),
        "all magnitudes": (normal * 10.0 ** rng.integers(-300, 300, 200), rng.normal(size=90)),
        "float32": (normal.astype(np.float32), rng.normal(size=150)),
        "float16": (normal.astype(np.float16), rng.normal(size=99).astype(np.float16)),
        "floats and integers": (rng.normal(size=50) * 3, rng.integers(-3, 3, 80).astype(np.int8)),
        "booleans": (rng.random(50) < 0.3, rng.random(80) < 0.5),
        "separated": (normal, normal[:77] + 100),
        "wide integers": (2**60 + rng.integers(0, 30, 200), 2**60 + rng.integers(3, 33, 150)),
        "negative wide integers": (-(2**62) - rng.integers(0, 900, 200), -(2**62) - rng.integers(0, 900, 99)),
        "unsigned": (
            np.uint64(2**64 - 1) - rng.integers(0, 3000, 200).astype(np.uint64),
            np.uint64(2**63) + rng.integers(0, 3000, 99).astype(np.uint64),
        ),
    }


@pytest.mark.parametrize("options", [{}, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("kind", samples(np.random.default_rng(0)))
def test_the_result_is_that_of_ks_2samp(kind, options):
    rng = np.random.default_rng(list(map(ord, kind)))
    for alternative in ALTERNATIVES:
        x, y = samples(rng)[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # scipy's fallback to asymp, in both
            expected = ks_2samp(x, y, alternative)
            result = ks_stream(chunks_of(x, rng), chunks_of(y, rng), alternative, max_passes=60, **options)
        assert_same(result, expected)
        assert result.exact
        assert (result.n, result.m) == (len(x), len(y))
        assert result.bounds[0] == result.bounds[1] == float(result.statistic)


def test_random_samples_of_few_values_agree_with_ks_2samp():
    rng = np.random.default_rng(5)
    for _ in range(60):
        n, m, values = rng.integers(1, 60, 3)
        x, y = rng.integers(0, values + 1, n) / 7, rng.integers(0, values + 1, m) / 7
        alternative = ALTERNATIVES[rng.integers(3)]
        expected = ks_2samp(x, y, alternative, "asymp")
        result = ks_stream([x], [y], alternative, "asymp", buckets=16, keep=int(rng.integers(16, 40)), max_passes=60)
        assert_same(result, expected)


def exact_statistic(x, y):
    """D of Python numbers, by counting with fractions."""
    gaps = [Fraction(sum(a <= t for a in x), len(x)) - Fraction(sum(b <= t for b in y), len(y)) for t in {*x, *y}]
    return float(max(map(abs, gaps)))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.full(10, 2**60 + 1), np.full(10, float(2**60))),
        (np.full(10, 2**63 - 1), np.full(10, 2.0**63)),
        (np.full(10, 2**64 - 1, dtype=np.uint64), np.full(10, 2.0**64)),
        (np.array([2**64 - 1, 2**53 + 1], dtype=np.uint64), np.array([2**63 - 1, 2**53 + 1])),
        (np.array([-(2**63), -(2**53) - 1]), np.array([-(2.0**63), -(2.0**53)])),
        (np.array([-(2**60) - 1, -(2**60) + 1]), np.array([-(2.0**60), -(2.0**60)])),
    ],
)
def test_integers_of_any_size_are_compared_exactly_with_floats(x, y):
    expected = exact_statistic([int(a) for a in x], [Fraction(float(b)) if y.dtype.kind == "f" else int(b) for b in y])
    for options in ({}, {"buckets": 16, "keep": 16}):
        # Enough copies that the values cannot be kept, so that the last bits are reached by zooming.
        result = ks_stream([np.tile(x, 20)], [np.tile(y, 20)], max_passes=60, **options)
        assert float(result.statistic) == expected


def test_bfloat16_tensors_masked_arrays_lists_and_strides_are_chunks():
    rng = np.random.default_rng(1)
    tensor = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    y = rng.normal(size=120)
    result = ks_stream([tensor[:30].reshape(5, 6), tensor[30:]], [y[::2], y[1::2].astype(">f8")])
    expected = ks_2samp(tensor.float().numpy(), y)
    assert float(result.statistic) == expected.statistic
    assert result.statistic_location == expected.statistic_location
    masked = np.ma.masked_array([1.0, 9.0, 3.0], [False, True, False])
    assert ks_stream([masked], [[1], [], [3, 3]]) == ks_stream([[1.0, 3.0]], [[1.0, 3.0, 3.0]])


def test_an_array_a_function_and_a_list_give_the_same():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=500), rng.normal(size=300)
    expected = ks_2samp(x, y)
    for form in (x, torch.from_numpy(x), [x], lambda: iter([x[:100], x[100:]])):
        assert_same(ks_stream(form, y, **SMALL, max_passes=60), expected)


def test_without_native_kernels_the_counts_are_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=3000), np.full(50, 7.0), [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324]])
    y = rng.normal(size=2500).astype(np.float32)

    def passes():
        seen, found = KsAccumulator(nan_policy="omit", buckets=64, keep=64), []
        while seen is not None:
            seen.update(x=x, y=y)
            found.append((seen._found.points(), seen.missing))
            seen = seen.refined()
        return found

    assert native.caller().offers("ks_stream_count")
    fast = passes()
    monkeypatch.setattr(native, "caller", lambda: None)
    slow = passes()
    assert len(fast) == len(slow) > 2
    for (one, missing), (other, its_missing) in zip(fast, slow, strict=True):
        assert missing == its_missing == (1, 0)
        assert all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


def test_subnormals_stay_apart_where_torch_flushes_them():
    x, y = np.full(9, 1e-40, dtype=np.float32), np.full(9, 2e-40, dtype=np.float32)
    torch.set_flush_denormal(True)
    try:
        result = ks_stream([x], [y])
    finally:
        torch.set_flush_denormal(False)
    assert float(result.statistic) == 1.0


def test_bounds_hold_at_every_moment_and_after_each_pass():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=4000), rng.normal(0.03, size=3000)
    seen, width = KsAccumulator(buckets=64, keep=100), 2.0
    first = seen.empty()
    for end in (10, 700, 3000):
        first.update(x=x[end - 10 : end], y=y[end - 10 : end])
        low, high = first.bounds()
        assert low < high or first.refined() is None
    exact = float(ks_2samp(x, y).statistic)
    while seen is not None:
        seen.update(x=x[:1])
        if seen.passes > 1:
            low, high = seen.bounds()  # those of the pass before
            assert low <= exact <= high
        low, high = seen.update(x=x[1:], y=y).bounds()
        assert low <= exact <= high
        assert high - low <= width
        width, seen = high - low, seen.refined()
    assert width == 0


def test_accumulators_merge_and_can_be_pickled_in_every_pass():
    rng = np.random.default_rng(6)
    x, y = np.split(rng.normal(size=900), 3), np.split(rng.normal(0.2, size=600), 3)
    seen, passes = KsAccumulator(**SMALL), 0
    while seen is not None:
        parts = [pickle.loads(pickle.dumps(seen.empty())).update(x=a, y=b) for a, b in zip(x, y, strict=True)]
        total = seen
        for part in reversed(parts):
            total.merge(pickle.loads(pickle.dumps(part)))
        seen, passes = total.refined(), passes + 1
    assert passes > 2
    assert_same(total.result(), ks_2samp(np.concatenate(x), np.concatenate(y)))
    assert len(pickle.dumps(KsAccumulator().update(x=x[0]))) < 20_000


def test_no_more_than_four_passes_for_64_bits_and_a_thousand_bits_of_range():
    rng = np.random.default_rng(7)
    near = 1 + rng.integers(0, 2, 50_000) * 2.0**-52  # two neighbours, far too many to be kept
    wide = rng.normal(size=50_000) * 2.0 ** rng.integers(-1000, 1000, 50_000)
    result = ks_stream([near, wide], [near[:40_000], wide[5000:]], keep=16)
    assert_same(result, ks_2samp(np.append(near, wide), np.append(near[:40_000], wide[5000:])))
    assert result.passes <= 5
    continuous = ks_stream([wide], [rng.normal(size=50_000)], keep=1000)
    assert continuous.exact
    assert continuous.passes <= 4


def test_data_with_few_distinct_values_need_one_pass():
    rng = np.random.default_rng(8)
    assert ks_stream([rng.poisson(5, 5000)], [rng.poisson(5, 5000)]).passes == 1


def test_counts_beyond_64_bits_do_not_overflow():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.5, 5.0])
    seen = KsAccumulator().update(x=x, y=y)
    for _ in range(38):
        seen.merge(pickle.loads(pickle.dumps(seen)))  # twice as many of each
    seen.update(x=[0.0])
    result = seen.result()
    n, m = 4 * 2**38 + 1, 3 * 2**38
    gap = max(Fraction(1 + k * 2**38, n) - Fraction(j * 2**38, m) for k, j in ((1, 0), (3, 1), (4, 2)))
    assert (result.n, result.m) == (n, m)
    assert float(result.statistic) == float(gap)
    assert result.log_pvalue < -1e10
    assert result.exact


@pytest.mark.parametrize("z", [0.3, 1.0, 3.0, 10.0])
def test_pvalues_of_huge_samples_continue_those_of_scipy(z):
    n = 4_000_000_000  # the largest round size that scipy takes
    d = z / np.sqrt(n / 2)
    p, log_p = huge_pvalue(d, n, n, one_sided=False)
    assert p == pytest.approx(scipy.stats.kstwo.sf(d, n / 2), rel=1e-7)
    assert log_p == pytest.approx(np.log(p))
    deep = huge_pvalue(1.0, 10**10, 10**10, one_sided=False)
    assert deep[0] == 0.0
    assert deep[1] == pytest.approx(-(10**10), rel=1e-3)
    one_sided = huge_pvalue(d, n, n, one_sided=True)[0]
    assert one_sided == pytest.approx(ks_one_sided(d, n), rel=1e-12)


def ks_one_sided(d, n):
    """Scipy's formula (Hodges 1958, equation 5.3) for two samples of n."""
    z = np.sqrt(n / 2) * d
    return np.exp(-2 * z**2 - 2 * z * (n + 2 * n) / np.sqrt(float(n) * n * (n + n)) / 3)


def test_nan_policies_are_those_of_ks_2samp():
    x, y = np.array([1.0, np.nan, 3.0]), np.array([2.0, 3.0, 4.0, np.nan, np.nan])
    assert_same(ks_stream([x], [y]), ks_2samp(x, y))
    omitted = ks_stream([x], [y], nan_policy="omit")
    assert_same(omitted, ks_2samp(x, y, nan_policy="omit"))
    assert omitted.missing == (1, 2)
    assert all(np.isnan(KsAccumulator().update(x=x, y=y).bounds()))
    for chunk in ({"x_chunks": [x], "y_chunks": [[1.0]]}, {"x_chunks": [[1.0]], "y_chunks": [[2.0], y]}):
        with pytest.raises(InputError, match="contains nan values"):
            ks_stream(**chunk, nan_policy="raise")


@pytest.mark.parametrize(("x", "policy"), [([], "propagate"), ([np.nan], "omit")])
def test_an_empty_sample_gives_nan_and_the_warning_of_ks_2samp(x, policy):
    with pytest.warns(RuntimeWarning) as expected:
        ks_2samp(x, [1.0], nan_policy=policy)
    with pytest.warns(RuntimeWarning) as warned:
        result = ks_stream([x], [[1.0]], nan_policy=policy)
    assert (warned[0].category, str(warned[0].message)) == (expected[0].category, str(expected[0].message))
    assert all(np.isnan(getattr(result, name)) for name in FIELDS)


def test_an_iterator_that_can_be_read_once_is_refused_or_gives_bounds():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=2000), rng.normal(size=1000)
    with pytest.raises(InputError, match=r"^y_chunks is .*read only once.*max_passes=1"):
        ks_stream([x], iter([y]))
    with pytest.warns(RuntimeWarning, match="after one pass, D is known to be between"):
        result = ks_stream(iter([x]), (chunk for chunk in [y]), max_passes=1)
    low, high = result.bounds
    exact = ks_2samp(x, y)
    assert low <= exact.statistic <= high
    assert not result.exact
    assert result.statistic == low
    assert result.pvalue >= exact.pvalue


def test_too_few_passes_give_bounds_and_say_so():
    values = np.arange(4000.0)
    with pytest.warns(RuntimeWarning, match=r"after 3 passes, D is known .*a larger keep or max_passes finds it"):
        result = ks_stream([values], [values + 0.5], buckets=64, keep=64, max_passes=3)
    assert result.bounds[0] <= 1 / 4000 <= result.bounds[1]
    assert ks_stream([values], [values + 0.5], buckets=64, keep=64, max_passes=999).statistic == 1 / 4000


def test_other_values_in_a_later_pass_are_refused():
    rng = np.random.default_rng(10)
    first, second = rng.normal(size=(2, 3000))
    once = [first]
    with pytest.raises(InputError, match="pass 2 has seen 0 values of x and 3,000 of y, and the first pass 3,000"):
        ks_stream(lambda: [once.pop()] if once else [], [second])
    turns = [second, first]
    with pytest.raises(InputError, match="pass 2 has seen other values than the first pass"):
        ks_stream(lambda: [turns.pop()], [rng.normal(size=3000)])


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        ([["a"]], TypeError, "x_chunks: chunk 0: x has dtype <U1: expected real numbers"),
        ([[1.0], [[1.0], [2.0, 3.0]]], InputError, "x_chunks: chunk 1: x is not a rectangular array"),
        ([np.array([1, 2**70], dtype=object)], InputError, "x holds 1180591620717411303424, and no float of this"),
        ([np.array([1, "a"], dtype=object)], TypeError, "x has dtype object and holds 'a': expected real numbers"),
        ([np.array([1j])], TypeError, "x has dtype complex128"),
        ([np.ones(2, dtype=np.longdouble)], TypeError, "expected at most float64"),
        ([torch.ones(2, device="meta")], InputError, "x is on the meta device"),
        ([None], TypeError, "x_chunks: chunk 0 is None"),
        (lambda: None, TypeError, "x_chunks returns None: expected an iterable of chunks"),
        ("numbers.csv", TypeError, "x_chunks is 'numbers.csv': expected chunks, or a function"),
        (3.0, TypeError, "x_chunks is 3.0: expected chunks"),
    ],
)
def test_bad_chunks_are_refused_by_name(chunks, error, message):
    with pytest.raises(error) as raised:
        ks_stream(chunks, [[1.0]])
    assert message in str(raised.value)


def test_an_error_in_one_sample_counts_nothing_of_the_other():
    seen = KsAccumulator(nan_policy="raise")
    with pytest.raises(InputError, match="y contains nan values"):
        seen.update(x=[1.0], y=[np.nan])
    assert seen.sizes == (0, 0)


def test_accumulators_of_different_passes_or_options_do_not_merge():
    rng = np.random.default_rng(11)
    seen = KsAccumulator(**SMALL).update(x=rng.normal(size=300), y=rng.normal(size=300))
    for other in (seen.refined(), KsAccumulator(), KsAccumulator("less", **SMALL)):
        with pytest.raises(InputError, match=r"^other is of pass"):
            seen.merge(other)
    with pytest.raises(InputError, match="other is the accumulator itself"):
        seen.merge(seen)
    with pytest.raises(TypeError, match="other is 3: expected a KsAccumulator"):
        seen.merge(3)


def test_ten_million_values_take_a_few_megabytes():
    ks_stream([[1.0]], [[2.0]])  # imports
    tracemalloc.start()
    result = ks_stream(normal_chunks(5_000_000, 0), normal_chunks(5_000_000, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.exact
    assert (result.n, result.m) == (5_000_000, 5_000_000)
    assert result.passes <= 3
    assert 0 < result.statistic < 0.002
    assert peak < 100e6


def test_the_warning_says_that_only_the_place_is_unknown():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    with pytest.warns(
        RuntimeWarning, match=r"after one pass, D is known to be 0\.07042857\d*, but its place is not known"
    ):
        result = ks_stream([x], [x[:700] + 0.1], max_passes=1)
    assert result.bounds[0] == result.bounds[1] == result.statistic
    assert not result.exact
