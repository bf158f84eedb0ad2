"""The threads under the native kernels: torch's, forks, concurrent callers, exceptions, many threads."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import kernels, native
from kslottery_fast.ops.records import RowUpdate

VOCAB, D, N = 300, 64, 20_000


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def look_up(seed=0):
    """A look-up of many chunks, and whether its result is right.

    Everything but the kernel is numpy: torch's own thread pool does not survive a fork.
    """
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((VOCAB, D)).astype(np.float32)
    ids = generator.integers(VOCAB, size=N)
    slots = np.full(VOCAB, -1, np.int32)
    out = ops.row_embedding(*map(torch.from_numpy, (table, table[:0], slots, ids)))
    return np.array_equal(out.numpy(), table[ids])


def in_child(function, seconds=60):
    """Whether function() is true in a forked child, which must end within this time."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)  # a deadlock becomes a failure
            status = 0 if function() else 2
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def test_kernels_work_in_a_forked_child_and_in_its_child():
    assert look_up()
    assert in_child(lambda: look_up(1) and in_child(lambda: look_up(2)))
    assert look_up(3)


def task_ids():
    """The threads of this process."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def in_new_thread(function):
    """What function() returns, called in a thread that OpenMP has given no helpers yet: each caller has its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found.pop()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")


@needs_proc
def test_a_forked_child_gets_helpers_of_its_own():
    def helpers_after_look_up():
        before = task_ids()
        assert look_up()
        return len(task_ids() - before)

    assert look_up()
    assert in_child(lambda: helpers_after_look_up() == 3)


def two_chunks_of_row_embedding():
    """Too little work for four threads."""
    slots = torch.full((VOCAB,), -1, dtype=torch.int32)
    ops.row_embedding(torch.zeros(VOCAB, D), torch.zeros(0, D), slots, torch.zeros(400, dtype=torch.int64))


def two_chunks_of_row_adamw():
    """Too little work for four threads, which here wait for each other."""
    table, exp_avg, exp_avg_sq = torch.zeros(3, 600, D)
    hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    ops.row_adamw_(table, None, torch.ones(600, D), exp_avg, exp_avg_sq, step=1, **hyper)


@needs_proc
@pytest.mark.parametrize("work", [look_up, two_chunks_of_row_embedding, two_chunks_of_row_adamw])
def test_the_helpers_are_the_threads_that_torch_computes_with_and_stay_however_little_there_is_to_do(work):
    def exchanged_threads():
        torch.ones(1_000_000).add_(1.0)
        before = task_ids()
        for _ in range(3):
            work()
            torch.ones(1_000_000).add_(1.0)
        return before ^ task_ids()

    assert in_new_thread(exchanged_threads) == set()


def test_kernels_work_in_a_child_forked_while_other_threads_compute():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            look_up()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert all(in_child(look_up) for _ in range(5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_several_python_threads_may_call_at_once():
    results = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(all(look_up(i) for _ in range(10)))) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6


def test_an_exception_in_a_helper_thread_reaches_the_caller_and_the_pool_lives_on():
    table, slots = torch.zeros(VOCAB, D), torch.full((VOCAB,), -1, dtype=torch.int32)
    ids = torch.zeros(N, dtype=torch.int64)
    for position in (0, N // 2, N - 1):
        bad = ids.clone()
        bad[position] = VOCAB
        with pytest.raises(InputError, match=f"ids holds {VOCAB}"):
            ops.row_embedding(table, torch.zeros(0, D), slots, bad)
    assert look_up()


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_more_threads_than_cores_or_chunks_are_no_problem(threads):
    torch.set_num_threads(threads)
    assert look_up()


HYPER = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def test_a_dtype_that_the_kernels_do_not_know_is_refused_before_threads_wait_for_each_other():
    def refused():
        table, grad, exp_avg, exp_avg_sq = np.zeros((4, 5000, D), np.float32)
        unknown = 9

        def matrix(array, dtype):
            return (array.ctypes.data, *array.shape, D, 1, dtype)

        call = native.caller()
        step = np.zeros(1, np.float32)
        moments = exp_avg.ctypes.data, exp_avg_sq.ctypes.data, step.ctypes.data
        with pytest.raises(InputError, match="unknown dtype code 9"):
            call(
                "row_adamw_if_finite",
                matrix(table, 1),
                0,
                5000,
                0,
                matrix(grad, unknown),
                *moments,
                *HYPER.values(),
                False,
            )
        return step[0] == 0

    assert in_child(refused, seconds=20)


@pytest.fixture
def flushing():
    """A caller whose arithmetic takes subnormal numbers for zeros. Other threads keep theirs."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


def tiny(*shape, dtype=torch.float32):
    """Subnormal numbers, made without arithmetic on them."""
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    return torch.from_numpy(np.random.default_rng(0).integers(1, 1000, shape)).to(bits).view(dtype)


def bits_of(*tensors):
    return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_caller_that_flushes_subnormals_changes_no_bit_of_row_adamw(threads, dtype, request):
    def updated(lazy):
        tables = [tiny(5000, D, dtype=dtype) for _ in range(4)]
        table, grad, exp_avg, exp_avg_sq = tables
        update = RowUpdate(table, None, grad, exp_avg, exp_avg_sq, 1, *HYPER.values(), None, lazy)
        kernels.update_rows(update)
        kernels.update_rows_if_finite(update, torch.ones(1))
        return bits_of(*tables)

    torch.set_num_threads(threads)
    expected = [updated(lazy) for lazy in (False, True)]
    request.getfixturevalue("flushing")
    assert [updated(lazy) for lazy in (False, True)] == expected


@pytest.mark.parametrize("threads", [1, 4])
def test_a_caller_that_flushes_subnormals_changes_no_bit_of_row_embedding(threads, request):
    table, rows, slots = torch.zeros(VOCAB, D), tiny(3, D).double(), torch.full((VOCAB,), -1, dtype=torch.int32)
    slots[:3] = torch.arange(3, dtype=torch.int32)
    ids, grad = torch.arange(N) % 5, tiny(N, D)

    def found():
        return bits_of(
            ops.row_embedding(table, rows, slots, ids), ops.row_embedding_backward(grad, slots, ids, len(rows))
        )

    torch.set_num_threads(threads)
    expected = found()
    assert np.frombuffer(expected[1], np.float32).all(), "the sums are subnormal, not zero"
    request.getfixturevalue("flushing")
    assert found() == expected
