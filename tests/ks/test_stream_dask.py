"""ks_stream over Dask collections: two worker processes count their partitions, and D is that of ks_2samp."""

from __future__ import annotations

import os
import signal

import dask
import dask.array
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from kslottery_fast import InputError, ks_2samp, ks_stream

FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign", "log_pvalue")
SMALL = {"buckets": 512, "keep": 512}  # so that two passes are needed


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes of one thread each."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as two_workers,
        Client(two_workers, timeout="60s") as client,
    ):
        yield client


def assert_same(result, expected):
    for name in FIELDS:
        assert np.array_equal(getattr(result, name), getattr(expected, name)), name


def test_arrays_and_columns_give_the_exact_result_of_the_values_in_memory(cluster):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6000), rng.normal(0.05, size=5000).astype(np.float32)
    array = dask.array.from_array(x, chunks=601)  # ten partitions, which two tasks merge
    column = dask.dataframe.from_pandas(pd.DataFrame({"a": y, "b": 0}), npartitions=2)["a"]
    result = ks_stream(array, column, **SMALL)
    assert_same(result, ks_2samp(x, y))
    assert result.passes >= 2


def test_a_killed_worker_costs_a_retry_and_no_values(cluster, tmp_path):
    mark = tmp_path / "killed"

    def values_of_a_worker_that_dies_once(number):
        if number == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.random.default_rng(number).normal(size=200)

    make = dask.delayed(values_of_a_worker_that_dies_once, pure=False)
    parts = [dask.array.from_delayed(make(number), (200,), dtype=float) for number in range(5)]
    x = np.concatenate([np.random.default_rng(number).normal(size=200) for number in range(5)])
    y = np.random.default_rng(9).normal(size=700)
    result = ks_stream(dask.array.concatenate(parts), [y], **SMALL)
    assert mark.exists()
    assert_same(result, ks_2samp(x, y))


def test_without_a_cluster_dask_counts_in_this_process():
    values = dask.array.arange(100.0, chunks=7)
    with dask.config.set(scheduler="synchronous"):
        result = ks_stream(values.reshape(10, 10), values + 10, buckets=16, keep=16, max_passes=60)
    assert_same(result, ks_2samp(np.arange(100.0), np.arange(100.0) + 10))


def test_unfit_collections_are_refused_by_name():
    frame = dask.dataframe.from_pandas(pd.DataFrame({"a": [1.0], "b": [2.0]}), npartitions=1)
    with pytest.raises(InputError, match=r"x_chunks is a dataframe of 2 columns \('a', 'b'\): choose one of them"):
        ks_stream(frame, [[1.0]])
    with pytest.raises(TypeError, match=r"y_chunks is a Delayed\w*: expected a Dask array"):
        ks_stream([[1.0]], dask.delayed(1))
    texts = dask.dataframe.from_pandas(pd.DataFrame({"a": ["one", "two"]}), npartitions=1)["a"]
    with dask.config.set(scheduler="synchronous"), pytest.raises(TypeError, match="x_chunks: x has dtype"):
        ks_stream(texts, [[1.0]])
