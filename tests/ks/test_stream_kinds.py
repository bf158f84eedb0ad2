"""ks_stream of dates, durations, nullable columns, decimals, and arrays that are read in pieces."""

from __future__ import annotations

import pickle
from decimal import Decimal
from fractions import Fraction

import dask
import dask.dataframe
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kslottery_fast import InputError, KsAccumulator, ks_2samp, ks_stream
from kslottery_fast.ks import stream

FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign", "log_pvalue")
SMALL = {"buckets": 16, "keep": 16, "max_passes": 999}  # so that hundreds of values need several passes


def assert_same(result, expected):
    for name in FIELDS:
        mine, its = np.asarray(getattr(result, name)), np.asarray(getattr(expected, name))
        assert mine.dtype == its.dtype, name
        assert np.array_equal(mine, its, equal_nan=True), (name, mine, its)


def chunks_of(sample):
    return np.array_split(sample, [20, 20, 150])


@pytest.mark.parametrize("unit", ["D", "s", "us", "ns"])
@pytest.mark.parametrize("kind", ["datetime64", "timedelta64"])
def test_dates_and_durations_give_the_result_of_ks_2samp(kind, unit):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(10**8, 10**8 + most, 300).view(f"{kind}[{unit}]") for most in (500, 450))
    x[[3, 200]] = "NaT"
    assert_same(ks_stream(chunks_of(x), chunks_of(y), nan_policy="omit", **SMALL), ks_2samp(x, y, nan_policy="omit"))
    result = ks_stream(x, y, nan_policy="omit", **SMALL)
    assert result.missing == (2, 0)
    assert result.passes > 1
    assert_same(ks_stream([x], [y]), ks_2samp(x, y))
    with pytest.raises(InputError, match="x contains nan values"):
        ks_stream([x], [y], nan_policy="raise")


def test_dates_of_two_units_are_compared_in_the_finer_one_if_both_are_known():
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    hours = np.arange("2024-01-09", "2024-02-20", dtype="datetime64[h]")
    assert_same(ks_stream(days, hours, **SMALL), ks_2samp(days, hours))
    assert_same(ks_stream([hours], [days], **SMALL), ks_2samp(hours, days))
    with pytest.raises(InputError, match=r"y holds .*\[h\] that datetime64\[D\], the unit of the first chunk, cannot"):
        ks_stream([days], [hours])
    whole = hours[::24]
    assert ks_stream([days], [whole]).statistic == ks_2samp(days, whole).statistic
    far = np.array(["9999-12-31"], "datetime64[D]")
    assert ks_stream([far], [days]).statistic == 1
    with pytest.raises(InputError, match=r"that datetime64\[ns\], the unit of the first chunk, cannot hold: give all"):
        ks_stream([days.astype("datetime64[ns]")], [far])


def test_columns_of_pandas_with_time_zones_and_missing_values():
    rng = np.random.default_rng(1)
    moments = pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 999, 300), unit="min"))
    zoned = moments.dt.tz_localize("Europe/Rome")
    later = (moments + pd.Timedelta(hours=1)).dt.tz_localize("UTC")
    assert_same(ks_stream([zoned[:9], zoned[9:]], [later], **SMALL), ks_2samp(zoned, later))
    nullable = pd.Series([1, None, 3, 2**60 + 1], dtype="Int64").iloc[:3]
    result = ks_stream([nullable], [[2.0, 3.0]], nan_policy="omit")
    assert_same(result, ks_2samp(nullable, [2.0, 3.0], nan_policy="omit"))
    with pytest.raises(TypeError, match=r"y has dtype datetime64\[\w+\], and earlier chunks .* with a time zone"):
        ks_stream([zoned], [moments])


def test_dates_do_not_meet_numbers_or_durations():
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    for other in ([1.0], [3], np.array([5], "timedelta64[D]")):
        for x, y in (([days], [other]), ([other], [days])):
            with pytest.raises(TypeError, match=r"y has dtype .*, and earlier chunks .*: expected all of one kind"):
                ks_stream(x, y)
    seen = KsAccumulator().update(x=days)
    with pytest.raises(TypeError, match="expected all of one kind"):
        seen.update(y=[1])
    assert seen.sizes == (len(days), 0)
    with pytest.raises(InputError, match=r"other has seen float64, and this one datetime64\[D\]: give all chunks one"):
        seen.merge(KsAccumulator().update(y=[1.0]))
    with pytest.raises(InputError, match=r"other has seen datetime64\[h\], and this one datetime64\[D\]"):
        seen.merge(KsAccumulator().update(y=days.astype("datetime64[h]")))
    part = pickle.loads(pickle.dumps(seen.empty())).update(y=days + 5)
    assert seen.merge(part).sizes == (len(days), len(days))
    assert_same(seen.refined().update(x=days, y=days + 5).result(), ks_2samp(days, days + 5))


def test_the_byte_order_of_dates_does_not_matter():
    for kind in ("M8[s]", "m8[s]"):
        x, y = np.array([1, 2, 3] * 10, f">{kind}"), np.array([256, 3, 4] * 10, kind)
        for swapped, native in ((x, y), (y, x)):
            for one, other in ((swapped, native), ([swapped], [native])):
                assert_same(ks_stream(one, other), ks_2samp(swapped, native))
    assert ks_stream([x], [y]).statistic == 2 / 3


def test_a_second_array_may_have_a_coarser_or_a_finer_unit_than_chunks():
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    hours = np.arange("2024-01-09", "2024-02-20", dtype="datetime64[h]")
    for x, y in ((days, hours), (hours, days)):
        assert_same(ks_stream([x], y, **SMALL), ks_2samp(x, y))
        assert_same(ks_stream(lambda x=x: [x[:9], x[9:]], y, **SMALL), ks_2samp(x, y))
    for other in ([1.0, 2.0], np.array([5], "timedelta64[D]")):
        with pytest.raises(TypeError, match=r"y_chunks: .*: y has dtype .*, and earlier chunks .*: expected all of"):
            ks_stream([other], days)


def test_chunks_without_values_are_of_no_kind():
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    hours = days[:20].astype("datetime64[h]") + np.timedelta64(5, "h")
    nothing = [], np.array([], dtype=object), np.zeros(0), np.zeros(0, "datetime64[Y]"), np.zeros(0, "datetime64")
    for empty in nothing:
        assert_same(ks_stream([empty, hours], [empty, days], **SMALL), ks_2samp(hours, days))
        assert_same(ks_stream([hours, empty], [days, empty], **SMALL), ks_2samp(hours, days))
        assert_same(ks_stream([empty, [1, 2]], [[2, 3], empty], **SMALL), ks_2samp([1, 2], [2, 3]))
    for absent in ([None, None], np.array([None], dtype=object), [np.nan], np.array(["NaT"], "datetime64")):
        for chunks in ([absent, hours], [hours, absent]):
            result = ks_stream(chunks, [days], nan_policy="omit", **SMALL)
            assert_same(result, ks_2samp(hours, days))
            assert result.missing == (len(absent), 0)
    with pytest.raises(TypeError, match=r"x has dtype datetime64\[D\], and earlier chunks numbers: expected all"):
        ks_stream([[np.nan], [1.0], days], [days])


def test_accumulators_without_values_are_of_no_kind():
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    expected = ks_2samp(days, days[:9])
    for nothing in ([], [None], np.zeros(0, "datetime64[s]")):
        for first, second in ((nothing, days), (days, nothing)):
            seen = KsAccumulator(nan_policy="omit").update(x=first)
            seen.merge(KsAccumulator(nan_policy="omit").update(x=second))
            seen.merge(KsAccumulator(nan_policy="omit").update(y=days[:9]))
            assert_same(seen.refined().update(x=days, y=days[:9]).result(), expected)
    seen = KsAccumulator(nan_policy="omit").update(x=[None]).merge(KsAccumulator(nan_policy="omit").update(y=[1]))
    assert seen.sizes == (0, 1)


def test_units_that_cannot_be_converted_are_refused():
    months, days = np.array([1, 2], "timedelta64[M]"), np.array([30, 60], "timedelta64[D]")
    plain, none = np.array([5, 6], "timedelta64"), np.array(["NaT"], "timedelta64")
    with pytest.raises(InputError, match=r"x_chunks has dtype timedelta64\[M\] and y_chunks timedelta64\[D\], which"):
        ks_stream(months, days)
    for x, y in ((days, months), (months, days), (plain, days), (days, plain)):
        with pytest.raises(InputError, match=r"y has dtype .*, and earlier chunks .*, which have no common unit: give"):
            ks_stream([x], [y])
        with pytest.raises(InputError, match=r"which have no common unit: give (all chunks|both) one with \.astype"):
            ks_stream([x], y)
    with pytest.raises(InputError, match=r"data1 has dtype timedelta64\[M\] and data2 has dtype timedelta64\[D\], w"):
        ks_2samp(months, days)
    assert_same(ks_stream(plain, plain + 1), ks_2samp(plain, plain + 1))
    for x in (none, [none]):
        assert_same(ks_stream(x, [days]), ks_2samp(none, days))


def test_a_single_column_with_a_time_zone_is_cut_into_columns(monkeypatch):
    monkeypatch.setattr(stream, "_SLICE", 100)
    rng = np.random.default_rng(6)
    x, y = (pd.Series(pd.to_datetime(rng.integers(0, 999, 300), unit="s", utc=True)) for _ in range(2))
    x[5] = pd.NaT
    x.index = rng.random(300)  # a slice of a column with such an index goes by its labels
    expected = ks_2samp(x, y, nan_policy="omit")
    arrow = x.astype(pd.ArrowDtype(pa.timestamp(x.dt.unit, "UTC")))
    for column in (x, x.array, pd.Index(x), arrow, arrow.array):
        assert_same(ks_stream(column, y, nan_policy="omit", **SMALL), expected)
    far = pd.Series([253402214400, None], dtype=pd.ArrowDtype(pa.timestamp("s", "UTC")))  # in 9999
    assert ks_stream(far, y.dt.as_unit("s"), nan_policy="omit").statistic == 1
    for column in (pa.array([1, 2, None]), pa.chunked_array([[1, 2], [None]]), pd.Series([1, 2, None], dtype="Int64")):
        assert_same(ks_stream(column, [[2.0]], nan_policy="omit"), ks_2samp([1, 2], [2.0]))


def test_a_sample_of_missing_dates_has_no_location():
    with pytest.warns(RuntimeWarning, match="too small"):
        result = ks_stream([np.array(["NaT"], "datetime64[D]")], [np.array([3], "datetime64[D]")], nan_policy="omit")
    assert np.isnan(result.statistic)
    assert np.isnat(result.statistic_location)


def test_columns_of_dates_of_dask():
    rng = np.random.default_rng(2)
    start = pd.Timestamp("2024-01-01")
    x, y = (pd.Series(start + pd.to_timedelta(rng.integers(0, 999, 300), unit="h")) for _ in range(2))
    y = y.astype("datetime64[s]")
    columns = [dask.dataframe.from_pandas(pd.DataFrame({"a": each}), npartitions=3)["a"] for each in (x, y)]
    with dask.config.set(scheduler="synchronous"):
        assert_same(ks_stream(*columns, **SMALL), ks_2samp(x, y))


def test_decimals_of_fifteen_digits_are_compared_exactly():
    rng = np.random.default_rng(3)
    x, y = ([Decimal(int(each)) / 100 for each in rng.integers(-9000, 9000, 200)] for _ in range(2))
    y[:50] = x[:50]
    exact = [[Fraction(each) for each in sample] for sample in (x, y)]
    places = sorted(set(exact[0] + exact[1]))
    ranks = [[places.index(each) for each in sample] for sample in exact]
    expected = ks_2samp(*ranks)
    for found in (ks_2samp(x, y), ks_stream([x[:7], x[7:]], [np.array(y, dtype=object)], **SMALL)):
        assert (found.statistic, found.pvalue) == (expected.statistic, expected.pvalue)
        assert found.statistic_location == float(places[expected.statistic_location])
    assert ks_stream([pa.array(x)], [pa.array(y)]).statistic == expected.statistic
    near = [Decimal("0.123456789012345"), Decimal("0.123456789012346000")]
    assert ks_2samp(near[:1], near[1:]).statistic == 1
    assert np.isnan(ks_2samp([Decimal("NaN"), Decimal(1)], near).statistic)
    message = "holds 1.2345678901234567, a decimal of 17 digits: decimals of up to 15 digits are compared exactly"
    for test in (ks_2samp, ks_stream):
        with pytest.raises(InputError, match=message):
            test([[Decimal("1.2345678901234567")]] if test is ks_stream else [Decimal("1.2345678901234567")], [[1.0]])


def test_decimals_beyond_the_range_of_floats_are_refused():
    low, high = Decimal("1E-307"), Decimal("9.99999999999999E+307")
    assert ks_2samp([low, -high], [low * 1 + Decimal("1E-321"), -high]).statistic == 0.5
    assert ks_2samp([Decimal(0), Decimal("Infinity")], [Decimal("-0"), Decimal("Infinity")]).statistic == 0
    assert ks_2samp([Decimal("0E-999")], [0.0]).statistic == 0
    for number, size in (("1E400", r"1e\+400"), ("-2E308", r"1e\+308"), ("3E-308", "1e-308"), (10**310, r"1e\+310")):
        with pytest.raises(InputError, match=f"data1 holds a decimal of about {size}: floats tell decimals apart from"):
            ks_2samp([Decimal(number)], [1.0])
        with pytest.raises(InputError, match=r"to below 1e\+308; scale all values first, as with .scaleb\(-100\)"):
            ks_stream([[1.0]], [[Decimal(1), Decimal(number)]])


class OnDisk:
    """What h5py and zarr have in common: values are read when they are indexed."""

    def __init__(self, values, chunks=None):
        self._values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, []
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, place):
        read = self._values[place]
        self.reads.append(read.shape)
        return read

    def __array__(self, *_):
        raise AssertionError("read as a whole")


@pytest.mark.parametrize(
    ("shape", "chunks", "reads"),
    [
        ((1000,), None, [(256,)] * 3 + [(232,)]),
        ((1000,), (100,), [(200,)] * 5),
        ((1000,), (600,), [(600,), (400,)]),
        ((1000,), (4000,), [(1000,)]),
        ((100, 10), None, [(25, 10)] * 4),
        ((100, 10), (10, 5), [(20, 10)] * 5),
        ((2, 500), None, [(1, 256), (1, 244)] * 2),
        ((2, 500), (1, 250), [(1, 500)] * 2),
        ((4, 3000), (2, 100), [(2, 100)] * 60),
        ((4, 3000), (2, 2000), [(2, 2000), (2, 1000)] * 2),
        ((5, 2, 100), None, [(1, 2, 100)] * 5),
        ((9, 40, 40), (4, 20, 20), [(4, 20, 20)] * 8 + [(1, 20, 40)] * 2),
        ((1,), None, [(1,)]),
    ],
)
def test_an_array_on_disk_is_read_in_pieces_that_end_with_its_own_chunks(monkeypatch, shape, chunks, reads):
    monkeypatch.setattr(stream, "_SLICE", 256)
    values = np.random.default_rng(4).normal(size=shape)
    other = np.random.default_rng(5).normal(size=700)
    array = OnDisk(values, chunks)
    result = ks_stream(array, other, max_passes=1)
    assert array.reads == reads
    assert result.n == values.size
    # At most four times as much as wanted, or one chunk of the array, and no chunk is read twice.
    assert max(map(np.prod, reads)) <= max(4 * 256, np.prod(chunks or 1))
    assert_same(ks_stream(OnDisk(values, chunks), other), ks_2samp(values, other, axis=None))


def test_an_array_on_disk_without_dimensions_is_one_value():
    array = OnDisk(np.array(3.0))
    assert ks_stream(array, [[1.0, 4.0]]).n == 1
