"""Blocks that really run beside each other, which the shim cannot show: it runs one after the other."""

from __future__ import annotations

import contextlib
import itertools
import warnings

import numpy as np
import pytest
import torch
from gpu_adamw_steps import Steps, go
from ks_cases import make_pair

from kslottery_fast import ops

REPLAYS, BAD_EVERY = 100_000, 1_000
RUNS = 200


@contextlib.contextmanager
def other_work(gpu):
    """A stream of its own keeps the multiprocessors busy now and then, so blocks start in another order each time."""
    stream, matrix = torch.cuda.Stream(gpu), torch.randn(1_024, 1_024, device=gpu)
    stream.wait_stream(torch.cuda.current_stream(gpu))

    def launch() -> None:
        with torch.cuda.stream(stream):
            torch.mm(matrix, matrix)

    yield launch
    torch.cuda.current_stream(gpu).wait_stream(stream)


def test_a_hundred_thousand_replays_of_a_step_lose_no_tile_and_no_word(gpu):
    """More tiles than resident blocks and more tables than a launch takes, with bad gradients in between."""
    tiles = 18 * torch.cuda.get_device_properties(gpu).multi_processor_count  # 16 blocks of 128 threads at most
    steps = Steps(gpu, tiles, ops.row_adamw_step_)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps.run()
    ends = []
    with other_work(gpu) as launch:
        for beside in (False, True):
            steps.start_again()

            turns = itertools.cycle(range(7))

            def replay(beside=beside, turns=turns) -> None:
                graph.replay()
                if beside and next(turns) == 0:
                    launch()

            go(steps, replay, REPLAYS, BAD_EVERY)
            ends.append(steps.written())
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_replays_of_a_step_that_is_one_cluster_lose_no_tile_and_no_word(gpu, monkeypatch):
    """Its blocks wait for each other. The end is that of the several launches."""
    if torch.cuda.get_device_capability(gpu) < (9, 0):
        pytest.skip("this GPU has no clusters of thread blocks")
    ends = []
    for name in ("launches", "cluster"):
        monkeypatch.setenv("KSL_CUDA_ADAMW", name)
        steps = Steps(gpu, 64, ops.row_adamw_step_, tables=8)
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(), torch.cuda.graph(graph):
            warnings.simplefilter("error", RuntimeWarning)
            steps.run()
        steps.start_again()
        with other_work(gpu) as launch:
            turns = itertools.cycle(range(7))

            def replay(graph=graph, turns=turns, launch=launch) -> None:
                graph.replay()
                if next(turns) == 0:
                    launch()

            go(steps, replay, REPLAYS // 5, BAD_EVERY)
        ends.append(steps.written())
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_all_that_is_written_after_some_replays_has_the_cpus_bits(gpu):
    there, here = (Steps(where, 300, ops.row_adamw_step_) for where in (gpu, torch.device("cpu")))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        there.run()
    for _ in range(20):
        graph.replay()
        here.run()
    for ours, theirs in zip(there.written(), here.written(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [576, 4_096])
def test_statistics_have_the_same_bits_in_every_run_beside_other_work(gpu, dtype, d):
    """On real multiprocessors, whose warps the shim does not run beside each other. A missing barrier may show here."""
    cases = ("normal", "clusters", "one far outlier", "nearly equal")
    pairs = [make_pair(case, np.random.default_rng(7), 150, d, d, (dtype, dtype)) for case in cases]
    before, after = (torch.cat(tables) for tables in zip(*pairs, strict=True))
    expected = ops.ks_statistics(before, after)[0].to(gpu)
    before, after = before.to(gpu), after.to(gpu)
    wrong = torch.zeros((), dtype=torch.int64, device=gpu)
    with other_work(gpu) as launch:
        for run in range(RUNS):
            if run % 3 == 0:
                launch()
            wrong += (ops.ks_statistics(before, after)[0] != expected).sum()
    assert wrong.item() == 0


@pytest.mark.parametrize("sizes", [(576, 576), (4_096, 3_000)])
def test_both_sides_have_the_same_bits_in_every_run_beside_other_work(gpu, sizes):
    x, y = make_pair("quantized", np.random.default_rng(7), 200, *sizes, (torch.float32, torch.float32))
    expected = [each.to(gpu) for each in ops.ks_rows(x, y)]
    x, y = x.to(gpu), y.to(gpu)
    wrong = torch.zeros((), dtype=torch.int64, device=gpu)
    with other_work(gpu) as launch:
        for run in range(RUNS):
            if run % 3 == 0:
                launch()
            for ours, theirs in zip(ops.ks_rows(x, y), expected, strict=True):
                wrong += (ours != theirs).sum()
    assert wrong.item() == 0
