"""The shim itself: it does what CUDA promises, and catches what CUDA forbids."""

from __future__ import annotations

import functools

import numpy as np
import pytest

SEEDS = range(4)


@pytest.fixture(params=SEEDS)
def seeded(request, shim):
    shim.set_seed(request.param)
    yield shim
    shim.set_seed(0)


def test_every_thread_of_every_block_runs_once_with_its_numbers(seeded):
    before = seeded.blocks_executed()
    assert seeded.probe("numbers") == [1000 * block + thread for block in range(3) for thread in range(40)]
    assert seeded.blocks_executed() == before + 3


def test_sums_and_reductions_go_over_the_whole_block(seeded):
    for threads in (64, 512):
        numbers = np.arange(threads) * 37 % 64 - 20
        assert seeded.probe("sums", threads) == (np.cumsum(numbers) - numbers).tolist()
    product = functools.reduce(lambda a, b: a * (b + 1) % 1000003, (thread * 37 % 64 for thread in range(64)))
    assert seeded.probe("reduces") == [1] * 64 + [product]


def test_warp_operations_give_what_cuda_documents(seeded):
    lanes = np.arange(64) % 32
    up, down = np.where(lanes == 0, 0, lanes - 1), np.where(lanes >= 30, lanes, lanes + 2)
    half = np.where(lanes < 16, 120 % 100, 0)
    assert seeded.probe("warps") == (496 * 1000000 + up * 10000 + down * 100 + half).tolist()


def test_atomics_lose_nothing(seeded):
    assert seeded.probe("atomics") == [200] * 100


@pytest.mark.parametrize(
    ("probe", "stride", "served", "more"),
    [
        ("words", 0, 1, 0),  # one word for all
        ("words", 1, 1, 0),
        ("words", 2, 1, 1),
        ("words", 32, 1, 31),
        ("words", 33, 1, 0),
        ("vectors", 1, 4, 0),  # eight lanes at a time
        ("vectors", 2, 4, 4),
        ("vectors", 4, 4, 12),
        ("vectors", 5, 4, 0),
    ],
)
def test_bank_conflicts_are_counted_as_the_hardware_has_them(shim, probe, stride, served, more):
    shim.bank_conflicts()
    shim.probe(probe, stride)
    ((site, counts),) = shim.bank_conflicts().items()
    assert site.startswith("probes.cu:")
    assert counts == (served, more)


def test_blocks_of_a_cluster_wait_for_each_other_and_clusters_come_one_after_the_other(seeded):
    before = seeded.blocks_executed(), seeded.launches_executed()
    numbers = seeded.probe("cluster sums", 1)
    assert (seeded.blocks_executed(), seeded.launches_executed()) == (before[0] + 8, before[1] + 1)
    assert numbers[:8] == [1 << block for block in range(8)]
    assert numbers[8:] == [0b1111] * 256 + [0b11110000] * 256


def test_a_missing_barrier_of_a_cluster_gives_wrong_numbers(seeded):
    assert seeded.probe("cluster sums", 0)[8:] != [0b1111] * 256 + [0b11110000] * 256


def test_shared_memory_starts_poisoned_in_every_block(seeded):
    assert seeded.probe("poison") == [1] * 64


def test_a_missing_barrier_gives_other_results_for_some_order(shim):
    right = list(range(255, -1, -1))
    results = {False: [], True: []}
    for seed in SEEDS:
        shim.set_seed(seed)
        for with_barrier in results:
            results[with_barrier].append(shim.probe("reversed", with_barrier))
    shim.set_seed(0)
    assert results[True] == [right] * len(SEEDS)
    assert all(result != right for result in results[False])


@pytest.mark.parametrize(
    ("probe", "argument", "words"),
    [
        (
            "some leave before a barrier",
            0,
            "is stuck: 63 threads, first 0, at __syncthreads in probes.cu",
        ),
        (
            "some leave before a cluster barrier",
            0,
            r"the cluster of block \(0, 0, 0\) is stuck: 121 threads, first 0, at cluster_barrier in .* 7 threads, ",
        ),
        ("cluster of", 16, "CUDA failed in probe: cudaErrorInvalidClusterSize"),
        ("cluster of", 3, "CUDA failed in probe: cudaErrorInvalidClusterSize"),
        ("two barriers", 0, "threads wait at different barriers: __syncthreads in probes.cu"),
        ("shuffle in a branch", 0, "is stuck: 16 threads, first 0, at __shfl_sync in .* with mask 0xffffffff"),
        ("shuffle outside the mask", 0, "thread 16: __shfl_sync by a lane that is not in its mask"),
        ("beyond dynamic shared", 100, "shared memory was written outside of what was declared"),
        ("beyond dynamic shared", -1, "shared memory was written outside of what was declared"),
        ("large static shared", 0, "the block wants 50000 bytes of shared memory, allowed are 49152"),
        ("threads", 1025, "CUDA failed in probe: cudaErrorInvalidConfiguration"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_cuda_forbids_is_caught(shim, probe, argument, words, seed):
    shim.set_seed(seed)
    with pytest.raises(RuntimeError, match=words.replace("first 0", r"first \d+").replace("thread 16", r"thread \d+")):
        shim.probe(probe, argument)
    shim.set_seed(0)
    assert shim.probe("atomics") == [200] * 100  # the next kernel runs as ever


def test_a_launch_of_no_blocks_is_none_and_too_many_are_refused(shim):
    before = shim.blocks_executed()
    shim.probe("blocks", 0)
    assert shim.blocks_executed() == before
    with pytest.raises(ValueError, match=r"probe: a launch of 2147483648 blocks; CUDA takes 1 to 2\^31 - 1"):
        shim.probe("blocks", 2**31)
