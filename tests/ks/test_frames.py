"""`ks_frames` against scipy, one column at a time, for tables of pandas, polars and pyarrow."""

from __future__ import annotations

import datetime
import io
import json
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.stats

from kslottery_fast import InputError, ks_2samp, ks_frames
from kslottery_fast.ks import adjust, frame_testing
from kslottery_fast.ks.frame_result import ColumnTest

RNG = np.random.default_rng(0)


def numbers(n=60, shift=0.0):
    return {
        "float": RNG.normal(size=n) + shift,
        "short": (RNG.normal(size=n) + shift).astype(np.float32),
        "integer": RNG.integers(0, 20, n) + int(2 * shift),
        "flag": RNG.random(n) < 0.3 + shift / 4,
        "count": RNG.integers(0, 20, n) - int(2 * shift),
        "text": np.array(["a", "b"] * (n // 2)),
    }


REFERENCE, CURRENT = numbers(), numbers(50, 0.5)
LIBRARIES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("other", LIBRARIES)
def test_every_numeric_column_gives_what_scipy_gives(library, other):
    result = ks_frames(LIBRARIES[library](REFERENCE), LIBRARIES[other](CURRENT))
    assert [test.column for test in result] == ["float", "short", "integer", "flag", "count"]
    for test in result:
        x, y = (np.asarray(table[test.column], dtype=np.float64) for table in (REFERENCE, CURRENT))
        expected = scipy.stats.ks_2samp(x, y)
        assert test.statistic == expected.statistic
        assert test.pvalue == pytest.approx(expected.pvalue, rel=1e-10)
        assert test.log_pvalue == pytest.approx(math.log(expected.pvalue), rel=1e-10)
        assert (test.statistic_location, test.statistic_sign) == (
            expected.statistic_location,
            expected.statistic_sign,
        )
        assert (test.n, test.m, test.missing_reference, test.missing_current) == (60, 50, 0, 0)
    assert list(result.skipped) == ["text"]
    types = {test.column: type(test.statistic_location) for test in result}
    assert types == {"float": float, "short": float, "integer": int, "flag": bool, "count": int}


@pytest.mark.parametrize("correction", [None, "bonferroni", "bh"])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_p_values_are_corrected_for_the_columns_that_were_tested(correction, alternative):
    reference, current = (pd.DataFrame(RNG.normal(size=(40, 12)) + shift) for shift in (0, np.linspace(0, 1, 12)))
    options = {"alpha": 0.01, "correction": correction, "method": "asymp", "alternative": alternative}
    result = ks_frames(reference.assign(text="a"), current.assign(text="b"), **options)
    expected = [scipy.stats.ks_2samp(reference[i], current[i], alternative, "asymp").pvalue for i in range(12)]
    adjusted = adjust(expected, correction).tolist()
    assert [test.adjusted_pvalue for test in result] == pytest.approx(adjusted, rel=1e-9)
    assert result.drifted == [str(i) for i in range(12) if adjusted[i] < 0.01]


def test_missing_values_of_every_library_are_counted_and_left_out():
    values = [1.0, None, math.nan, 2.0, 5.0]
    other = {"a": [2.0, 3.0, 3.0], "b": [1, 2, 3]}
    for table in (
        pa.table({"a": values, "b": [1, None, None, 4, 5]}),
        pl.DataFrame({"a": values, "b": [1, None, None, 4, 5]}),
        pd.DataFrame({"a": values, "b": pd.array([1, None, None, 4, 5], dtype="Int64")}),
        pd.DataFrame({"a": pd.array(values, dtype="Float64"), "b": np.array([1, None, None, 4, 5], dtype=object)}),
    ):
        result = ks_frames(table, pl.DataFrame(other))
        assert [(test.n, test.m, test.missing_reference, test.missing_current) for test in result] == [(3, 3, 2, 0)] * 2
        assert result["a"].pvalue == pytest.approx(scipy.stats.ks_2samp([1, 2, 5], other["a"]).pvalue, rel=1e-12)
        assert result["b"].statistic == scipy.stats.ks_2samp([1, 4, 5], other["b"]).statistic


def test_columns_that_cannot_be_tested_are_named_and_the_others_are_tested():
    reference = pd.DataFrame(
        {
            "good": [1.0, 2.0, 3.0],
            "text": ["a", "b", "c"],
            "mixed": np.array([1, "a", None], dtype=object),
            "number or flag": [1, 0, 1],
            "missing": [math.nan] * 3,
            "missing here": [1.0, 2.0, 3.0],
            "constant": [7.0] * 3,
            "category": pd.Categorical([1, 2, 3]),
            "complex": np.array([1j, 2j, 3j]),
            "huge": np.array([2**70, 1, 2], dtype=object),
            "old": [1, 2, 3],
            "zone": pd.to_datetime(["2026-01-01"] * 3, utc=True),
            "moved constant": [7] * 3,
        }
    )
    current = reference.drop(columns=["old"]).assign(new=1.0)
    current["number or flag"] = [True, False, True]
    current["missing here"] = pd.array([None] * 3, dtype="Int64")
    current["zone"] = pd.to_datetime(["2026-01-01"] * 3)
    # Releases of pandas differ in the unit of a time.
    reference["zone"], current["zone"] = reference["zone"].dt.as_unit("us"), current["zone"].dt.as_unit("us")
    current["moved constant"] = 8
    result = ks_frames(reference, current)
    assert [test.column for test in result] == ["good", "moved constant"]
    assert (result["moved constant"].statistic, result["moved constant"].statistic_location) == (1.0, 7)
    assert result.skipped == {
        "text": "not numeric: text",
        "mixed": "not numeric: object of mixed values; convert it with astype(float)",
        "number or flag": "different types: int64 and bool",
        "missing": "all values are missing in both tables",
        "missing here": "all values are missing in current",
        "constant": "constant, with the same value in both tables",
        "category": "not numeric: categories of int64",
        "complex": "not numeric: complex128",
        "huge": "not numeric: object of mixed values; convert it with astype(float)",
        "old": "only in reference",
        "zone": "different types: timestamp[us, tz=UTC] and timestamp[us], of which one has a time zone",
        "new": "only in current",
    }
    with pytest.raises(KeyError, match="only in reference"):
        result["old"]


def test_a_name_that_occurs_twice_is_left_out():
    frame = pd.DataFrame([[1.0, 2.0, 3.0]] * 3, columns=["a", "a", "b"])
    moved = pd.DataFrame({"a": [1.0], "b": [4.0]})
    for twice in (frame, pa.table([[1.0], [2.0], [3.0]], names=["a", "a", "b"])):
        result = ks_frames(moved, twice)
        assert ([test.column for test in result], result.skipped) == (["b"], {"a": "the name occurs more than once"})


def test_dates_times_and_decimals_are_compared_exactly_whatever_their_unit():
    start = datetime.datetime(2026, 1, 1)
    days = [start + datetime.timedelta(days=day) for day in range(20)]
    reference = pa.table(
        {
            "timestamp": pa.array(days, pa.timestamp("s")),
            "zoned": pa.array(days, pa.timestamp("s", "Europe/Rome")),
            "date": pa.array(days, pa.date32()),
            "time": pa.array(range(20), pa.time32("s")),
            "duration": pa.array(range(20), pa.duration("ms")),
            "decimal": pa.array([Decimal(i) / 10 for i in range(20)], pa.decimal128(5, 1)),
        }
    )
    # One nanosecond later than the reference, which a float64 cannot tell apart.
    late = np.array(days, dtype="datetime64[ns]") + 1
    current = pa.table(
        {
            "timestamp": pa.array(late),
            "zoned": pa.array(days, pa.timestamp("us", "UTC")),
            "date": pa.array(days, pa.date64()),
            "time": pa.array([second * 10**6 + 1 for second in range(20)], pa.time64("us")),
            "duration": pa.array([second * 10**9 + 500 for second in range(20)], pa.duration("ns")),
            "decimal": pa.array([Decimal(i) / 10 + Decimal("0.0001") for i in range(20)], pa.decimal256(40, 4)),
        }
    )
    result = ks_frames(reference, current)
    assert result.skipped == {}
    # Where the values of the two tables alternate, scipy finds D at the same place as in alternating small integers.
    at = int(scipy.stats.ks_2samp(np.arange(0, 40, 2), np.arange(1, 41, 2)).statistic_location) // 2
    assert {test.column: (test.statistic, test.statistic_location) for test in result} == {
        "timestamp": (0.05, f"2026-01-{at + 1:02}T00:00:00.000000000"),
        "zoned": (0.0, "2026-01-01T00:00:00.000000Z"),
        "date": (0.0, "2026-01-01"),
        "time": (0.05, f"00:00:{at:02}.000000"),
        "duration": (0.95, 0.019),
        "decimal": (0.05, at / 10),
    }


def test_values_that_the_common_type_cannot_hold_leave_one_column_out():
    reference = pa.table(
        {
            "far": pa.array([10**12], pa.timestamp("s")),
            "long": pa.array([Decimal(10**25)], pa.decimal128(30, 0)),
            "b": [1.0],
        }
    )
    current = pa.table(
        {"far": pa.array([1], pa.timestamp("ns")), "long": pa.array([Decimal(1)], pa.decimal128(30, 4)), "b": [2.0]}
    )
    result = ks_frames(reference, current)
    assert [test.column for test in result] == ["b"]
    assert result.skipped["far"].startswith("values that timestamp[ns] cannot hold (Casting from timestamp[s]")
    assert result.skipped["long"] == "values that decimal128(38, 4) cannot hold (a decimal needs more than 64 bits)"


def test_constants_that_only_float64_takes_for_equal_are_tested():
    result = ks_frames(pa.table({"a": [2**60 + 1] * 9}), pa.table({"a": [float(2**60)] * 9}))
    assert result["a"].statistic == 1
    assert not result.skipped


def test_a_column_that_arrow_does_not_take_leaves_the_others_alone():
    frame = pl.DataFrame({"wide": pl.Series([1, 2], dtype=pl.Int128), "b": [1, 2]})
    result = ks_frames(frame, frame)
    assert [test.column for test in result] == ["b"]
    assert result.skipped["wide"] == "not numeric for Arrow: Int128"


def test_locations_of_integers_beyond_float64_are_exact():
    big = 2**60
    tables = [pa.table({"a": range(big, big + 9), "b": range(big + start, big + start + 9)}) for start in (1, 4)]
    result = ks_frames(*tables)
    at = scipy.stats.ks_2samp(np.arange(1, 10), np.arange(4, 13)).statistic_location
    assert [(test.statistic, test.statistic_location) for test in result] == [(0.0, big), (3 / 9, big + at)]


def test_many_columns_of_one_size_are_one_batch(monkeypatch):
    calls = []

    def spy(x, y, *rest, **named):
        calls.append(x.shape)
        return ks_2samp(x, y, *rest, **named)

    monkeypatch.setattr(frame_testing, "ks_2samp", spy)
    tables = [pl.DataFrame(RNG.normal(size=(30, 50))) for _ in range(2)]
    whole = ks_frames(*tables)
    assert calls == [(50, 30)]
    monkeypatch.setattr(frame_testing, "_BATCH_VALUES", 60 * 8)
    monkeypatch.setattr(frame_testing, "_GROUP_BYTES", 60 * 8 * 20)
    assert ks_frames(*tables) == whole
    assert calls[1:] == [(8, 30), (8, 30), (4, 30)] * 2 + [(8, 30), (2, 30)]


def test_the_result_is_a_table_of_every_library_and_json():
    reference = pa.table({"a": [1, 2, 3, 4], "b": [0.5, 1.5, 2.5, math.inf], "c": ["x"] * 4})
    current = pa.table({"a": [3, 4, 5, 6], "b": [-math.inf] * 4, "c": ["x"] * 4})
    result = ks_frames(reference, current, correction="bonferroni")
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["format"] == "kslottery-drift/1"
    assert content["skipped"] == {"c": "not numeric: text"}
    assert [line["statistic_location"] for line in content["columns"]] == [2, "-inf"]
    assert [line["adjusted_pvalue"] for line in content["columns"]] == pytest.approx([1.0, 4 / 70], rel=1e-14)
    read = pd.read_csv(io.StringIO(result.to_csv()), float_precision="round_trip")
    for frame in (result.to_pandas(), pd.DataFrame(result.to_polars().to_dicts()), read):
        assert list(frame.columns) == list(ColumnTest.__annotations__)
        assert frame["statistic_location"].tolist() == [2.0, -math.inf]
        assert frame["pvalue"].tolist() == [test.pvalue for test in result]
    dated = {"d": pa.array([1, 2], pa.date32())}
    mixed = ks_frames(pa.table({"a": [1, 2], **dated}), pa.table({"a": [1, 3], **dated}))
    assert mixed.to_polars()["statistic_location"].to_list() == ["2", "1970-01-02"]


def test_the_table_of_a_result_begins_with_the_smallest_p_and_names_what_it_lacks():
    reference = pd.DataFrame(RNG.normal(size=(40, 25)))
    text = repr(ks_frames(reference.assign(t="a"), (reference + np.arange(25) / 25).assign(t="b"))).splitlines()
    assert text[0].endswith("of 25 columns drifted (p < 0.05)")
    assert len(text) == 24
    assert {line.split()[0] for line in text[2:6]} <= {str(column) for column in range(15, 25)}
    assert text[-2:] == ["... and 5 more", "not tested: t (not numeric: text)"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"current": pa.table({"b": [1.0]})},
            InputError,
            "reference and current have no column in common: the first has 'a'",
        ),
        ({"reference": pa.table({"a": pa.array([], pa.float64())})}, InputError, "reference has no rows"),
        ({"columns": ["a", "agw"]}, InputError, "columns names 'agw', which reference lacks; it has 'a'"),
        ({"columns": "a"}, TypeError, "columns is 'a': expected a list of names"),
        ({"columns": []}, InputError, "columns is empty"),
        ({"columns": [1]}, TypeError, "columns holds 1: expected names, as str"),
        (
            {"reference": pl.LazyFrame({"a": [1]})},
            TypeError,
            r"which is lazy: expected a table in memory, reference.collect\(\)",
        ),
        (
            {"reference": {"a": [1]}},
            TypeError,
            "reference is the dict .*: expected a DataFrame of pandas, polars or Dask",
        ),
        ({"correction": "holm"}, InputError, "correction is 'holm'"),
        ({"method": "paper"}, InputError, "method is 'paper'"),
        ({"alternative": "t"}, InputError, "alternative is 't'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    table = pa.table({"a": [1.0, 2.0]})
    with pytest.raises(error, match=message):
        ks_frames(**{"reference": table, "current": table, **arguments})


def test_without_pyarrow_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("kslottery_fast.base.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ks_frames needs pyarrow; pip install 'kslottery-fast\[frames\]'"):
        ks_frames(pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}))


def test_two_single_values_have_no_asymptotic_p_value():
    result = ks_frames(pa.table({"a": [1]}), pa.table({"a": [2]}), method="asymp")
    assert (len(result), result.skipped) == (0, {"a": "too few values for method='asymp'"})
    assert (repr(result).splitlines()[0], list(result)) == ("0 of 0 columns drifted (p < 0.05)", [])
