"""ks_2samp on dates, nullable columns, objects that are numbers, lists of tensors; and the option atol."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import ks_2samp

FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign")
NS = np.array([0, 1, 2, 5], dtype=np.int64) + 1_700_000_000_000_000_001


def test_dates_are_compared_to_the_nanosecond_and_located_as_dates() -> None:
    ours = ks_2samp(NS.view("M8[ns]"), (NS + 1).view("M8[ns]"))
    theirs = stats.ks_2samp([0, 1, 2, 5], [1, 2, 3, 6])
    assert (ours.statistic, ours.statistic_sign) == (theirs.statistic, theirs.statistic_sign)
    assert ours.pvalue == pytest.approx(theirs.pvalue)
    assert ours.statistic_location == NS[theirs.statistic_location].view("M8[ns]")
    assert ours.statistic_location.dtype == "M8[ns]"


def test_dates_of_two_units_durations_and_rows_of_dates() -> None:
    days, seconds = np.array(["2024-01-01", "2024-01-03"], "M8[D]"), np.array(["2024-01-02", "2024-01-03"], "M8[s]")
    assert ks_2samp(days, seconds).statistic == 0.5
    assert ks_2samp(days - days[0], seconds - seconds[0]).statistic == 0.5
    rows = np.stack([days, np.array(["2024-01-05", "NaT"], "M8[D]")])
    result = ks_2samp(rows, seconds, axis=-1)
    assert result.statistic_location.tolist() == [days[0].astype("M8[s]").item(), None]
    assert math.isnan(result.pvalue[1])
    assert ks_2samp(rows, seconds, axis=-1, nan_policy="omit").statistic.tolist() == [0.5, 1.0]


def test_empty_dates_give_nan_with_scipys_warning() -> None:
    with pytest.warns(RuntimeWarning, match="too small"):
        assert math.isnan(ks_2samp(np.array([], "M8[s]"), np.array([], "M8[s]")).statistic)


def test_nullable_columns_of_pandas_are_numbers_and_missing_ones_are_nan() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = [3, 1, None, 2], [2.5, 4.0, 3.5]
    for dtype in ("Int64", "Int8", "Float64", "int64[pyarrow]", "double[pyarrow]"):
        column = pandas.Series(x, dtype=dtype)
        for given in (column, column.array, pandas.DataFrame({"a": column})["a"]):
            ours = ks_2samp(given, y, nan_policy="omit")
            assert tuple(ours) == pytest.approx(tuple(stats.ks_2samp([3, 1, 2], y)))
            assert math.isnan(ks_2samp(given, y).pvalue)
    flags = pandas.Series([True, None, False], dtype="boolean")
    assert ks_2samp(flags, [0, 0], nan_policy="omit").statistic == 0.5
    long = pandas.Series([2**60 + 1, 2**60 + 3], dtype="Int64")
    assert ks_2samp(long, [2**60 + 1, 2**60 + 2]).statistic == 0.5


def test_long_integers_beside_missing_ones_stay_exact_or_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series([2**60 + 1, None, 2**60 + 3], dtype="Int64")
    if np.finfo(np.longdouble).nmant < 62:
        with pytest.raises(InputError, match=r"data1 holds .*, and no float of this machine has so many digits"):
            ks_2samp(column, [1.0])
    else:
        ours = ks_2samp(column, pandas.Series([2**60 + 1, 2**60 + 2, None], dtype="object"), nan_policy="omit")
        assert ours.statistic == 0.5


def test_dates_of_pandas_with_and_without_a_time_zone() -> None:
    pandas = pytest.importorskip("pandas")
    plain = pandas.Series(pandas.to_datetime(["2024-01-01", None, "2024-03-01"]))
    assert ks_2samp(plain, plain[:1], nan_policy="omit").statistic == 0.5
    zoned = plain.dt.tz_localize("Europe/Berlin")
    assert ks_2samp(zoned, zoned.dt.tz_convert("Asia/Tokyo"), nan_policy="omit").statistic == 0
    with pytest.raises(TypeError, match="data1 has a time zone and data2 has none: give both one, or neither"):
        ks_2samp(zoned, plain)
    arrow = pandas.Series(plain, dtype="timestamp[us][pyarrow]")
    assert ks_2samp(arrow, plain, nan_policy="omit").statistic == 0


def test_objects_that_are_numbers_are_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    mixed = pandas.DataFrame({"a": [0.5, 1.5, 2.5], "b": [True, False, True]})
    expected = stats.ks_2samp(mixed.to_numpy(dtype=float), np.ones((2, 2)))
    np.testing.assert_allclose(ks_2samp(mixed, np.ones((2, 2)), axis=0).pvalue, expected.pvalue)
    for column in ([1, 2.5, np.float32(3)], [1, None, 2.5, 3.0], [1, pandas.NA, 2.5, math.nan, 3]):
        ours = ks_2samp(np.array(column, dtype=object), [2, 3], nan_policy="omit")
        assert tuple(ours) == pytest.approx(tuple(stats.ks_2samp([1, 2.5, 3], [2, 3])))
    assert ks_2samp([1, None, 2], [1, 2], nan_policy="omit").statistic == 0
    assert ks_2samp(np.array([2**64 - 1, 2**64 - 3], object), np.array([2**64 - 2], np.uint64)).statistic == 0.5


def test_lists_of_tensors_are_taken_as_lists_of_numbers_are() -> None:
    numbers = [0.5, 1.5, 2.5]
    expected = tuple(ks_2samp(numbers, [1.0, 2.0]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        single = [torch.tensor(number).to(dtype).requires_grad_() for number in numbers]
        assert tuple(ks_2samp(single, [1.0, 2.0])) == expected
    rows = [torch.tensor([[0.5, 1.5, 2.5]], requires_grad=True), [numbers]]
    assert ks_2samp(rows, rows, axis=-1).statistic.tolist() == [[0.0], [0.0]]
    assert ks_2samp([torch.tensor(3), 4], (torch.tensor(3.0), 5.0)).statistic == 0.5


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (
            ([Fraction(1), 2], [1]),
            TypeError,
            r"data1 has dtype object and holds 1*a? ?Fraction.*: expected real numbers; con",
        ),
        (([1], np.array(["a", 2], object)), TypeError, r"data2 has dtype object and holds 'a': .*\.astype\(float\)"),
        (
            (NS.view("M8[ns]"), [1]),
            TypeError,
            r"data1 has dtype datetime64\[ns\] and data2 has dtype int64: expected both",
        ),
        ((NS.view("M8[ns]"), torch.ones(1)), TypeError, "data2 has dtype torch.float32: expected both of one kind"),
        ((NS.view("M8[ns]"), NS.view("m8[ns]")), TypeError, r"data2 has dtype timedelta64\[ns\]: expected both of one"),
        (
            (NS.view("M8[ns]"), NS.view("M8[s]")),
            InputError,
            r"data2 holds dates that datetime64\[ns\] cannot hold: give",
        ),
        ((np.array([2**70, 0.5], object), [1]), InputError, "data1 holds 1180591620717411303424, and no float of this"),
        (
            (torch.empty(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), [1]),
            TypeError,
            "data1 has dtype torch.float4_e2",
        ),
        (
            ([torch.empty(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)], [1]),
            TypeError,
            "which torch does not convert",
        ),
        (
            ([1], torch.empty(2, dtype=torch.bits8)),
            TypeError,
            "data2 has dtype torch.bits8, which torch does not convert: u",
        ),
    ],
)
def test_what_holds_no_numbers_is_named(samples: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ks_2samp(*samples)


def test_atol_joins_numbers_that_only_rounding_tells_apart() -> None:
    x, y = [0.2 - 0.1], [0.3 - 0.2]
    assert ks_2samp(x, y).statistic == ks_2samp(x, y, atol=0.0).statistic == 1
    joined = ks_2samp(x, y, atol=1e-12)
    assert (joined.statistic, joined.pvalue) == (0, 1)


def joined_by_hand(x: np.ndarray, y: np.ndarray, atol: float) -> tuple[np.ndarray, np.ndarray]:
    pooled, group = np.sort(np.concatenate([x, y])), {}
    largest = pooled[-1]
    for i in range(len(pooled) - 1, -1, -1):
        if i + 1 < len(pooled) and pooled[i + 1] - pooled[i] > atol:
            largest = pooled[i]
        group[pooled[i]] = largest
    return np.array([group[v] for v in x]), np.array([group[v] for v in y])


@pytest.mark.parametrize("atol", [1e-3, 0.02, 0.5, 100.0])
def test_atol_gives_scipys_result_for_samples_joined_by_hand(atol: float) -> None:
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(5, 30)), generator.normal(0.4, size=(5, 41))
    ours = ks_2samp(x, y, axis=-1, atol=atol)
    for row in range(5):
        theirs = stats.ks_2samp(*joined_by_hand(x[row], y[row], atol))
        for name in FIELDS:
            assert getattr(ours, name)[row] == pytest.approx(getattr(theirs, name), rel=1e-10)


def test_atol_joins_chains_keeps_infinities_apart_and_leaves_out_what_does_not_count() -> None:
    assert ks_2samp([0.0, 1.0], [0.5, 1.5], atol=0.5).statistic == 0  # 0, 0.5, 1 and 1.5 are one chain
    assert ks_2samp([0.0, 1.0], [0.5, 1.5], atol=0.49).statistic == 0.5
    assert ks_2samp([-math.inf, math.inf], [1e308, math.inf], atol=1e300).statistic == 0.5
    hidden = np.ma.array([0.0, 0.5, 1.0], mask=[False, True, False])
    assert ks_2samp(hidden, [1.0], atol=0.5).statistic == 0.5  # the hidden 0.5 joins nothing
    assert math.isnan(ks_2samp([0.0, math.nan], [0.1], atol=1.0).statistic)
    assert ks_2samp([0.0, math.nan], [0.1], atol=1.0, nan_policy="omit").statistic == 0
    assert ks_2samp(torch.tensor([1.0, 2.0]), torch.tensor([1.5]).bfloat16(), atol=0.5).statistic.item() == 0


@pytest.mark.parametrize(
    ("atol", "error", "message"),
    [
        (-0.1, InputError, "atol is -0.1: expected a finite number of at least 0"),
        (math.nan, InputError, "atol is nan"),
        (math.inf, InputError, "atol is inf"),
        ("small", TypeError, "atol is 'small': expected a finite number of at least 0"),
        (True, TypeError, "atol is True"),
    ],
)
def test_a_tolerance_that_is_none_is_named(atol: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ks_2samp([1.0], [2.0], atol=atol)


def test_atol_does_not_apply_to_values_that_are_compared_by_rank() -> None:
    with pytest.raises(
        InputError, match=r"atol is 1, but values of dtype datetime64\[ns\] are compared by rank: leave"
    ):
        ks_2samp(NS.view("M8[ns]"), NS.view("M8[ns]"), atol=1)
