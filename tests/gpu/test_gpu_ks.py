"""KS statistics on a real GPU: integers, places and flags equal the CPU's, whatever the rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ks_cases import CASES, make_pair

from kslottery_fast import ks_select, ops
from kslottery_fast.ks.significance import critical_count

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def pair(case, dtype, d=576, rows=40):
    return make_pair(case, np.random.default_rng(7), rows, d, d, (dtype, dtype))


def assert_equal(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.reduced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_and_decisions_equal_the_cpus(gpu, dtype):
    before, after = pair("normal", dtype)
    there = before.to(gpu), after.to(gpu)
    assert_equal(ops.ks_statistics(*there), ops.ks_statistics(before, after))
    assert_equal(ops.ks_decide(*there, 30), ops.ks_decide(before, after, 30))
    assert_equal(ops.ks_rows(*there), ops.ks_rows(before, after))


@pytest.mark.reduced
@pytest.mark.parametrize("d", [17, 4_096, 20_000])
@pytest.mark.parametrize("case", ["clusters", "NaN and infinity", "one far outlier"])
def test_rows_that_are_zoomed_into_or_streamed_equal_the_cpus(gpu, case, d):
    before, after = pair(case, torch.float32, d, rows=3)
    there = before.to(gpu), after.to(gpu)
    assert_equal(ops.ks_statistics(*there), ops.ks_statistics(before, after))
    assert_equal(ops.ks_decide(*there, max(1, d // 30)), ops.ks_decide(before, after, max(1, d // 30)))
    assert_equal(ops.ks_rows(*there), ops.ks_rows(before, after))


@pytest.mark.parametrize("d", [1, 17, 4_096, 20_000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_row_equals_the_cpus(gpu, case, dtype, d):
    before, after = pair(case, dtype, d, rows=12)
    there = before.to(gpu), after.to(gpu)
    h, flags = ops.ks_statistics(before, after)
    assert_equal(ops.ks_statistics(*there), (h, flags))
    threshold = max(1, int(h.median()))
    assert_equal(ops.ks_decide(*there, threshold), ops.ks_decide(before, after, threshold))


def test_ks_select_finds_the_same_tickets(gpu):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5_000, 1_024, generator=generator)
    after = before.clone()
    after[::20] += 0.3 * torch.randn(250, 1_024, generator=generator) + 0.4
    ours, theirs = ks_select(before.to(gpu), after.to(gpu)), ks_select(before, after)
    assert len(theirs) > 100
    assert torch.equal(torch.as_tensor(ours.token_ids).cpu(), torch.as_tensor(theirs.token_ids).cpu())
    assert critical_count(1_024, 0.05) > 0


def test_ks_select_waits_for_the_device_twice(gpu):
    before = torch.randn(5_000, 256, generator=torch.Generator().manual_seed(0)).to(gpu)
    after = before.clone()
    after[::20] += 1
    ks_select(before, after)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ks_select(before, after)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in caught if "synchroniz" in str(each.message)]) == 2


@pytest.mark.parametrize("name", ["ks_statistics", "ks_decide"])
def test_captured_in_a_graph_and_the_same_bits_in_ten_runs(gpu, name):
    before, after = (table.to(gpu) for table in pair("clusters", torch.float32, 4_096, 300))
    arguments = (before, after, 30) if name == "ks_decide" else (before, after)
    expected = [each.clone() for each in getattr(ops, name)(*arguments)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = getattr(ops, name)(*arguments)
    for _ in range(10):
        graph.replay()
        assert_equal(captured, [each.cpu() for each in expected])
