"""ks_2samp against scipy.stats.ks_2samp itself: numbers, types, warnings, errors."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import KsResult, SmallSampleWarning, ks_2samp

ALTERNATIVES = ("two-sided", "less", "greater")
FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign")


def recorded(call: Any) -> tuple[Any, set[tuple[type, str]]]:
    """The result of a call and the warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    # Arithmetic warnings that escape from scipy (n = m = 1, asymptotic) are no part of its interface.
    seen = {(w.category, str(w.message)) for w in caught}
    return result, {(category, text) for category, text in seen if "encountered in" not in text}


def assert_like_scipy(x: Any, y: Any, **options: Any) -> KsResult:
    """Same statistic, location and sign, p within 1e-10, same warnings (once); types and shapes too."""
    options = {"axis": -1, **options}
    theirs, their_warnings = recorded(lambda: stats.ks_2samp(x, y, **options))
    ours, our_warnings = recorded(lambda: ks_2samp(x, y, **options))
    # Where scipy's exact sum comes out above 1 by rounding, it falls back and warns; p is 1 then.
    overshoot = "ks_2samp: Exact calculation unsuccessful. Switching to method=asymp."
    n, m = np.shape(x)[-1] if np.ndim(x) else 1, np.shape(y)[-1] if np.ndim(y) else 1
    if n == m and (RuntimeWarning, overshoot) in their_warnings:
        their_warnings.discard((RuntimeWarning, overshoot))
        theirs_p, ours_p = np.asarray(theirs.pvalue), np.asarray(ours.pvalue)
        tolerated = np.isclose(ours_p, 1.0, rtol=1e-12) & (np.abs(theirs_p - 1) < 0.2)
        theirs_p = np.where(tolerated, ours_p, theirs_p)
    else:
        theirs_p = theirs.pvalue
    np.testing.assert_allclose(ours.statistic, theirs.statistic, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(ours.pvalue, theirs_p, rtol=1e-10, atol=0)
    np.testing.assert_array_equal(ours.statistic_location, theirs.statistic_location)
    np.testing.assert_array_equal(ours.statistic_sign, theirs.statistic_sign)
    assert our_warnings == their_warnings
    for name in FIELDS:
        assert np.shape(getattr(ours, name)) == np.shape(getattr(theirs, name)), name
    return ours


rng = np.random.default_rng(3)
GROUPS = {
    "floats": (rng.normal(size=40), rng.normal(size=60)),
    "same sizes": (rng.normal(size=50), rng.normal(0.3, size=50)),
    "ties": (rng.integers(0, 5, 30), rng.integers(1, 6, 20)),
    "identical": (np.arange(9.0), np.arange(9.0)),
    "disjoint": (np.arange(5.0), np.arange(5.0) + 10),
    "constant": (np.ones(7), np.ones(3)),
    "one value each": ([1.5], [2.5]),
    "lists of ints": ([1, 2, 3], [2, 3, 4, 5]),
    "bools": ([True, False, True], [False, False]),
    "infinities": ([np.inf, -np.inf, 1.0, 2.0], [np.inf, 0.0, 1.0]),
    "two zeros": ([0.0, -0.0, 1.0], [-0.0, 1.0, 1.0]),
    "subnormals": ([5e-324, 1e-323, 0.0], [1e-323, 1.5e-323, 5e-324, 2.0]),
    "float16 and float32": (np.float16([1, 2, 3]), np.float32([2, 3, 4])),
    "int32 and float32": (np.int32([2**24 + 1, 3]), np.float32([2**24, 5])),
    "beyond 2^53": (np.int64([2**53 + 1, 7]), np.int64([2**53, 2**53 + 3, 8])),
    "uint64": (np.uint64([2**63 + 1, 2**63 + 2]), np.uint64([2**63 + 1, 5])),
    "big endian": (np.array([1.0, 2.0, 3.0], dtype=">f8"), np.array([2, 5], dtype=">i4")),
    "scalars": (3, 4.5),
    "reversed view": (np.arange(10.0)[::-1], np.arange(20.0)[::3]),
}


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("name", GROUPS)
def test_one_pair_of_samples_gives_scipys_result_and_types(name: str, alternative: str) -> None:
    x, y = GROUPS[name]
    for method in ("auto", "exact", "asymp"):
        ours = assert_like_scipy(x, y, alternative=alternative, method=method)
        theirs = stats.ks_2samp(x, y, alternative=alternative, method=method)
        assert [type(getattr(ours, f)) for f in FIELDS] == [type(getattr(theirs, f)) for f in FIELDS]


@pytest.mark.parametrize("short", ["t", "T", "two", "g", "Greater", "l", "LESS", "lower"])
def test_the_first_letter_of_the_alternative_decides(short: str) -> None:
    assert_like_scipy(*GROUPS["floats"], alternative=short)


def test_options_may_be_positional_as_in_scipy() -> None:
    x, y = GROUPS["floats"]
    assert ks_2samp(x, y, "less", "asymp") == pytest.approx(tuple(stats.ks_2samp(x, y, "less", "asymp")))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize(
    ("x_shape", "y_shape", "axis"),
    [
        ((4, 10), (4, 12), -1),
        ((10, 4), (12, 4), 0),
        ((2, 3, 8), (2, 3, 9), 2),
        ((2, 8, 3), (2, 5, 3), 1),
        ((1, 8), (6, 9), -1),
        ((8,), (6, 9), -1),
        ((6, 9), (8,), 1),
        ((2, 1, 7), (5, 7), -1),
        ((7,), (2, 7), 0),
        ((2, 3, 4), (2, 3, 5), (0, 2)),
        ((2, 3, 4), (2, 3, 5), (-1, 0)),
        ((2, 3), (4, 5), None),
        ((2, 3), (7,), None),
        ((1, 6), (1, 7), -1),
        ((0, 6), (0, 7), -1),
        ((2, 0, 3), (2, 0, 4), -1),
    ],
)
def test_axis_and_broadcasting_follow_scipy(x_shape: Any, y_shape: Any, axis: Any, alternative: str) -> None:
    local = np.random.default_rng(1)
    x, y = local.integers(0, 9, x_shape).astype(float), local.normal(4, 2, y_shape)
    assert_like_scipy(x, y, axis=axis, alternative=alternative)
    kept = ks_2samp(x, y, axis=axis, keepdims=True)
    assert kept.statistic.shape == stats.ks_2samp(x, y, axis=axis, keepdims=True).statistic.shape


def test_samples_of_two_dimensions_need_an_axis_and_axis_0_gives_what_scipy_gives_by_default() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 7, 7))
    expected = stats.ks_2samp(x, y)
    np.testing.assert_array_equal(ks_2samp(x, y, axis=0).statistic, expected.statistic)
    assert (ks_2samp(x, y, axis=-1).statistic != expected.statistic).any()
    message = "axis is missing, and these samples have 2 dimensions: pass axis=0 for what scipy computes by default"
    for samples in ((x, y), (x[0], y), (torch.from_numpy(x), y)):
        with pytest.raises(InputError, match=message):
            ks_2samp(*samples)
    assert "axis: int | collections.abc.Sequence[int] | None = <none for 2-D samples>" in str(
        inspect.signature(ks_2samp)
    )


def test_arguments_go_by_scipys_names_and_by_their_former_ones_with_a_warning() -> None:
    x, y = GROUPS["floats"]
    expected = tuple(stats.ks_2samp(data1=x, data2=y, alternative="less", mode="asymp"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = ks_2samp(data1=x, data2=y, alternative="less", method="asymp")
        assert ks_2samp(x, y, "less", mode="asymp") == ours  # type: ignore[call-arg]
    assert ours == pytest.approx(expected)
    with pytest.warns(DeprecationWarning, match=r"ks_2samp\(\) takes data[12] now, which was called [xy]") as caught:
        assert ks_2samp(x=x, y=y, alternative="less", method="asymp") == ours  # type: ignore[call-arg]
    assert [(note.category, note.filename) for note in caught] == [(DeprecationWarning, __file__)] * 2
    with pytest.raises(TypeError, match="got multiple values for argument now known as `method`"):
        ks_2samp(x, y, mode="asymp", method="asymp")  # type: ignore[call-arg]


def test_warnings_point_at_the_line_of_the_caller() -> None:
    with pytest.warns(SmallSampleWarning) as caught:
        ks_2samp([], [1.0])
    assert caught[0].filename == __file__


def test_strided_transposed_and_read_only_views_give_the_same_and_stay_as_they_are() -> None:
    base = np.random.default_rng(2).normal(size=(12, 20))
    base.flags.writeable = False
    expected = ks_2samp(base.T[::2].copy(), base.T[1::2].copy(), axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = ks_2samp(base.T[::2], base.T[1::2], axis=-1)
    np.testing.assert_array_equal(views.statistic, expected.statistic)
    np.testing.assert_array_equal(views.pvalue, expected.pvalue)


NAN_X = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, 0.0], [np.nan] * 4, [5.0, 1.0, 2.0, 2.0]])
NAN_Y = np.array([[2.0, 2.5, 9.0], [1.0, 0.0, 3.0], [1.0, 2.0, 3.0], [np.nan, 1.0, np.nan]])


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_nan_policies_follow_scipy_in_batches(policy: str, alternative: str) -> None:
    assert_like_scipy(NAN_X, NAN_Y, nan_policy=policy, alternative=alternative)
    assert_like_scipy(NAN_X[[0, 1, 3]], NAN_Y[[0, 1, 3]], nan_policy=policy, alternative=alternative)


@pytest.mark.parametrize("policy", ["propagate", "omit"])
@pytest.mark.parametrize("row", range(4))
def test_nan_policies_follow_scipy_for_one_pair(row: int, policy: str) -> None:
    ours = assert_like_scipy(NAN_X[row], NAN_Y[row], nan_policy=policy)
    theirs = recorded(lambda: stats.ks_2samp(NAN_X[row], NAN_Y[row], nan_policy=policy))[0]
    assert [type(getattr(ours, f)) for f in FIELDS] == [type(getattr(theirs, f)) for f in FIELDS]


def test_nan_policy_raise_says_what_scipy_says() -> None:
    for call in (stats.ks_2samp, ks_2samp):
        with pytest.raises(ValueError, match="The input contains nan values"):
            call(NAN_X, NAN_Y, nan_policy="raise", axis=-1)
    assert_like_scipy(NAN_X[:1], NAN_Y[:1], nan_policy="raise")


@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_masked_values_are_left_out(policy: str) -> None:
    mask = np.zeros(NAN_X.shape, dtype=bool)
    mask[0, :2] = True
    mask[1, 1] = True
    mask[3] = True
    masked = np.ma.array(NAN_X, mask=mask)
    assert_like_scipy(masked[:3], NAN_Y[:3], nan_policy=policy)
    assert_like_scipy(masked[0], NAN_Y[0], nan_policy=policy)
    assert_like_scipy(masked, NAN_Y, nan_policy="propagate")  # the last row is empty: NaN, and scipy is silent
    assert_like_scipy(NAN_Y[0], masked[3], nan_policy="propagate")  # a single one: NaN with a warning


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], [1.0, 2.0]),
        ([1.0], []),
        ([], []),
        (np.ones((3, 0)), np.ones((3, 4))),
        (np.ones((3, 4)), np.ones((3, 0))),
        (np.ones((0, 0)), np.ones((0, 4))),
    ],
)
def test_empty_samples_give_nan_and_scipys_warning(x: Any, y: Any) -> None:
    assert_like_scipy(x, y)
    if np.size(x) + np.size(y) and np.shape(x)[0]:
        with pytest.warns(SmallSampleWarning, match="too small"):
            ks_2samp(x, y, axis=-1)


def test_auto_changes_to_asymptotic_beyond_ten_thousand() -> None:
    local = np.random.default_rng(5)
    for n in (10_000, 10_001):
        assert_like_scipy(local.normal(size=n), local.normal(0.01, size=n))


def test_exact_falls_back_with_scipys_warnings() -> None:
    local = np.random.default_rng(6)
    x, y = local.normal(size=46_343), local.normal(0.01, size=46_341)
    _, caught = recorded(lambda: ks_2samp(x, y, method="exact"))
    assert caught == {
        (
            RuntimeWarning,
            "Exact ks_2samp calculation not possible with samples sizes 46343 and 46341. Switching to 'asymp'.",
        )
    }
    assert_like_scipy(x, y, method="exact")
    # One-sided with n != m: the number of paths overflows float64. Not for equal rows, whose p is 1 anyway.
    assert_like_scipy(x[:600], y[:599], alternative="less")
    assert_like_scipy(x[:600], y[:599], alternative="greater")
    assert_like_scipy(np.zeros(600), np.zeros(599), alternative="greater")


def test_exact_is_exact_where_scipy_cannot_count_the_paths_of_one_side() -> None:
    x, y = np.arange(881.0), np.arange(369.0) * 881 / 369 + 160.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = ks_2samp(x, y, alternative="greater", method="exact")
    h = round(float(ours.statistic) * math.lcm(881, 369))
    inside = [1] + [0] * 881  # paths from (0, 0) to (i, j) that stay below the difference h
    for j in range(370):
        for i in range(882):
            inside[i] += inside[i - 1] if i else 0
            if i * 369 - j * 881 >= h:
                inside[i] = 0
    total = math.comb(881 + 369, 369)
    assert ours.pvalue == pytest.approx((total - inside[881]) / total, rel=1e-12)
    assert ours.pvalue < 1e-6
    theirs = assert_like_scipy(x, y, alternative="greater")  # "auto" is asymptotic here, as in scipy
    assert theirs.pvalue != pytest.approx(ours.pvalue, rel=1e-3)


def test_where_scipys_sum_exceeds_one_p_is_one() -> None:
    x, y = np.arange(7.0), np.arange(7.0) + 0.5  # h = 1 of 7: certain
    theirs, caught = recorded(lambda: stats.ks_2samp(x, y))
    ours, our_warnings = recorded(lambda: ks_2samp(x, y))
    assert ours.pvalue == 1
    assert not our_warnings
    if caught:  # scipy 1.17; a later one may have mended it
        assert 0.999 < theirs.pvalue < 1
    else:
        assert theirs.pvalue == pytest.approx(1)


def test_the_sign_of_an_exact_tie_is_scipys() -> None:
    # D+ = D- = 1/3 as fractions; in floating point 1 - 2/3 is the larger one.
    for x, y in (([1, 4, 5], [2, 3, 6]), ([2, 3, 6], [1, 4, 5]), ([1, 2, 7, 8], [3, 4, 5, 6])):
        assert_like_scipy(x, y)


def test_log_pvalue_is_right_where_pvalue_underflows() -> None:
    x, y = np.arange(2000.0), np.arange(2000.0) + 1e6
    result = ks_2samp([x, x], [y, x], axis=-1)
    assert result.pvalue[0] == 0
    assert result.log_pvalue[0] == pytest.approx(math.log(2) - math.lgamma(4001) + 2 * math.lgamma(2001), rel=1e-12)
    assert result.log_pvalue[1] == 0


def samples(rows: int) -> st.SearchStrategy[np.ndarray]:
    awkward = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e-310, 1e308, -1e308, np.inf, -np.inf])
    values = st.one_of(awkward, st.floats(-2, 2, width=16), st.integers(-3, 3).map(float))
    return st.integers(1, 12).flatmap(lambda n: hnp.arrays(np.float64, (rows, n), elements=values))


@settings(max_examples=150, deadline=None)
@given(samples(3), samples(3), st.sampled_from(ALTERNATIVES), st.sampled_from(["auto", "asymp"]))
def test_any_rows_agree_with_scipy(x: np.ndarray, y: np.ndarray, alternative: str, method: str) -> None:
    assert_like_scipy(x, y, alternative=alternative, method=method)


@settings(max_examples=60, deadline=None)
@given(samples(3), samples(3), st.data())
def test_any_rows_with_nan_agree_with_scipy(x: np.ndarray, y: np.ndarray, data: st.DataObject) -> None:
    x[data.draw(hnp.arrays(bool, x.shape))] = np.nan
    policy = data.draw(st.sampled_from(["propagate", "omit"]))
    ours, _ = recorded(lambda: ks_2samp(x, y, nan_policy=policy, axis=-1))
    for row in range(len(x)):
        theirs, caught = recorded(lambda r=row: stats.ks_2samp(x[r], y[r], nan_policy=policy))
        np.testing.assert_array_equal(ours.statistic_sign[row], theirs.statistic_sign)
        np.testing.assert_array_equal(ours.statistic_location[row], theirs.statistic_location)
        np.testing.assert_allclose(ours.statistic[row], theirs.statistic, rtol=1e-14, atol=1e-15)
        if not any("unsuccessful" in message for _, message in caught):
            np.testing.assert_allclose(ours.pvalue[row], theirs.pvalue, rtol=1e-10)
