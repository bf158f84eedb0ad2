"""ks_frames over Dask dataframes: two worker processes count the partitions, and the result is that in memory."""

from __future__ import annotations

import datetime
import decimal
import os
import signal

import dask
import dask.array
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from kslottery_fast import InputError, ks_frames
from kslottery_fast.ks.accumulator import KsAccumulator


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes of one thread each."""
    with (
        dask.config.set({"dataframe.convert-string": False}),  # else Dask makes texts of dates and decimals
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as two_workers,
        Client(two_workers, timeout="60s") as client,
    ):
        yield client


@pytest.fixture
def synchronous():
    with dask.config.set({"scheduler": "synchronous", "dataframe.convert-string": False}):
        yield


def table(rows: int, seed: int) -> pd.DataFrame:
    """Columns of every kind."""
    rng = np.random.default_rng(seed)
    day = pd.Timestamp("2024-01-01")
    numbers = rng.normal(0.1 * seed, size=rows)
    return pd.DataFrame(
        {
            "float": np.where(rng.random(rows) < 0.1, np.nan, numbers),
            "float32": numbers.astype(np.float32),
            "int": rng.integers(0, 9, rows),
            "wide": rng.integers(2**60, 2**60 + 50, rows),
            "nullable": pd.array(np.where(rng.random(rows) < 0.2, None, rng.integers(0, 99, rows)), dtype="Int64"),
            "bool": rng.random(rows) < 0.4 + 0.1 * seed,
            "moment": day + pd.to_timedelta(rng.integers(0, 10**6, rows), unit="s"),
            "zoned": (day + pd.to_timedelta(rng.integers(0, 10**6, rows), unit="s")).tz_localize("UTC"),
            "duration": pd.to_timedelta(rng.integers(0, 10**6, rows), unit="ms"),
            "day": [datetime.date(2024, 1, 1) + datetime.timedelta(int(each)) for each in rng.integers(0, 90, rows)],
            "price": [decimal.Decimal(int(each)) / 100 for each in rng.integers(0, 9999, rows)],
            "text": rng.choice(["a", "b"], rows),
            "constant": 5,
            "missing": np.nan,
        }
    )


def test_columns_of_every_kind_give_the_result_of_the_tables_in_memory(cluster, monkeypatch):
    # So few ranges that two passes are needed. The workers get what they count with from here.
    defaults = {"nan_policy": "propagate", "buckets": 256, "keep": 256}
    monkeypatch.setattr(KsAccumulator.__init__, "__kwdefaults__", defaults)
    reference, current = table(900, 0), table(700, 1)
    in_partitions = [dask.dataframe.from_pandas(each, npartitions=n) for each, n in ((reference, 11), (current, 3))]
    expected = ks_frames(reference, current, correction="bh")
    found = ks_frames(*in_partitions, correction="bh")
    assert found == expected
    assert [each.column for each in found] == list(reference)[:11]
    assert "not numeric: text" in found.skipped["text"]
    assert found.skipped["constant"].startswith("constant")
    assert "missing" in found.skipped["missing"]
    assert ks_frames(in_partitions[0], current, correction="bh") == expected
    assert ks_frames(reference, in_partitions[1], ["price", "int"]) == ks_frames(reference, current, ["price", "int"])


def test_more_columns_than_are_counted_together(synchronous):
    rng = np.random.default_rng(0)
    reference, current = (pd.DataFrame(rng.normal(size=(50, 20))) for _ in range(2))
    done = []
    found = ks_frames(
        dask.dataframe.from_pandas(reference, npartitions=2), current, progress=lambda *at: done.append(at)
    )
    assert found == ks_frames(reference, current)
    assert done == [(16, 20), (20, 20)]


def test_a_killed_worker_costs_a_retry_and_no_values(cluster, tmp_path):
    mark = tmp_path / "killed"

    def partition_of_a_worker_that_dies_once(number):
        if number == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pd.DataFrame({"a": np.random.default_rng(number).normal(size=200)})

    meta = pd.DataFrame({"a": np.zeros(0)})
    frame = dask.dataframe.from_map(partition_of_a_worker_that_dies_once, range(5), meta=meta)
    whole = pd.concat([pd.DataFrame({"a": np.random.default_rng(number).normal(size=200)}) for number in range(5)])
    current = pd.DataFrame({"a": np.random.default_rng(9).normal(size=700)})
    assert ks_frames(frame, current) == ks_frames(whole, current)
    assert mark.exists()


def test_partitions_of_other_types_than_the_rest_are_named(synchronous):
    def part(number):
        return pd.DataFrame({"a": [1.0, 2.0] if number else ["x", "y"], "b": [number, number + 1], "c": [None, None]})

    meta = pd.DataFrame({"a": np.zeros(0), "b": np.zeros(0, int), "c": np.zeros(0)})
    frame = dask.dataframe.from_map(part, range(2), meta=meta, enforce_metadata=False)
    current = pd.DataFrame({"a": [1.0, 5.0], "b": [4, 5], "c": [1.0, 2.0]})
    found = ks_frames(frame, current)
    assert [each.column for each in found] == ["b"]
    assert found.skipped["a"] == "different types in its pieces: number and text"
    assert found.skipped["c"] == "all values are missing in reference"
    objects = pd.DataFrame({"a": pd.Series([], dtype=object)})

    def object_part(number):
        return part(number)[["a"]].astype(object)

    mixed = dask.dataframe.from_map(object_part, range(2), meta=objects, enforce_metadata=False)
    assert ks_frames(mixed, current, ["a"]).skipped["a"].startswith("different types in its partitions: ")


def test_only_columns_of_objects_that_are_tested_are_read_for_their_types(synchronous):
    reads = []

    def part(number):
        reads.append(number)
        columns = {"a": [1.0, number], "o": [number, None], "only": [1, 2], "text": ["a", "b"], "kind": ["c", "d"]}
        types = {"o": object, "only": object, "text": "string[pyarrow]", "kind": "category"}
        return pd.DataFrame(columns).astype(types)

    frame = dask.dataframe.from_map(part, range(3), meta=part(0).iloc[:0], enforce_metadata=False)
    current = pd.concat([part(number) for number in range(2)]).drop(columns="only")
    whole = pd.concat([part(number) for number in range(3)])
    for columns, passes in ((["a"], 1), (["a", "text", "kind"], 1), (["a", "o"], 2), (None, 2)):
        reads.clear()
        found = ks_frames(frame, current, columns)
        assert len(reads) == 3 * passes
        assert list(found) == list(ks_frames(whole, current, columns))
        assert found.skipped.get("only") == (None if columns else "only in reference")


def test_other_collections_of_dask_and_tables_without_rows_are_refused(synchronous):
    current = pd.DataFrame({"a": [1.0, 2.0]})
    for value in (dask.array.arange(5), dask.delayed(current), dask.dataframe.from_pandas(current, npartitions=1)["a"]):
        with pytest.raises(TypeError, match=r"reference is .*: expected a Dask dataframe, such as column.to_frame\(\)"):
            ks_frames(value, current)
    empty = dask.dataframe.from_pandas(current.iloc[:0], npartitions=1)
    with pytest.raises(InputError, match="reference has no rows: expected a table with at least one"):
        ks_frames(empty, current)
