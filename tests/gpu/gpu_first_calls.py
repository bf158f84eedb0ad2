"""First calls of ops: python gpu_first_calls.py NAME [cpu]. tests/gpu/test_gpu_first_calls.py runs it on a GPU.

CUDA loads a kernel when it is first used. Here that is while a graph is captured, in a process in which no kernel of
the package has run before. The result of the graph is compared with the CPU's, bit by bit.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kslottery_fast import ops

Call = Callable[[], Sequence[Tensor]]
HYPER: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
VOCAB, K, D = 97, 5, 132


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_rows() -> Tensor:
    """The rows that train."""
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:K]


def pair(rows: int, n: int, m: int, dtype: torch.dtype, where: torch.device) -> tuple[Tensor, Tensor]:
    """Two tables, of which the second is shifted."""
    return random(rows, n, dtype=dtype).to(where), (random(rows, m, seed=1) + 0.1).to(dtype).to(where)


def statistics(dtype: torch.dtype, d: int) -> Callable[[torch.device], Call]:
    """ks_statistics, whose kernel is another one for each type and for long rows."""

    def make(where: torch.device) -> Call:
        before, after = pair(40, d, d, dtype, where)
        return lambda: ops.ks_statistics(before, after)

    return make


def decide(where: torch.device) -> Call:
    """ks_decide."""
    before, after = pair(40, 576, 576, torch.float32, where)
    return lambda: ops.ks_decide(before, after, 30)


def sides(n: int, m: int) -> Callable[[torch.device], Call]:
    """ks_rows, in shared memory or with memory of its own."""

    def make(where: torch.device) -> Call:
        x, y = pair(6, n, m, torch.float32, where)
        return lambda: ops.ks_rows(x, y)

    return make


def update(*, lazy: bool) -> Callable[[torch.device], Call]:
    """row_adamw_, of a table and its moments."""

    def make(where: torch.device) -> Call:
        table, rows, grad = random(VOCAB, D).to(where), some_rows().to(where), random(K, D, seed=2)
        grad[1] = 0.0
        moments = [random(K, D, seed=3).to(where), random(K, D, seed=4).square().to(where)]

        def run() -> Sequence[Tensor]:
            ops.row_adamw_(table, rows, grad_there, *moments, step=3, lr=0.01, **HYPER, lazy=lazy)
            return [table, *moments]

        grad_there = grad.to(where)
        return run

    return make


def step_of_tables(where: torch.device, count: int = 17) -> Call:
    """row_adamw_step_ on 17 tables, which are two launches. All that it writes has the CPU's bits (see csrc/ksl.h)."""
    lists = [[random(VOCAB, D, seed=i + 10 * j).to(where) for i in range(count)] for j in range(2)]
    moments = [[random(VOCAB, D, seed=i + 10 * j).square().to(where) for i in range(count)] for j in (2, 3)]
    steps = [torch.tensor(float(i), device=where) for i in range(count)]
    rates = [torch.tensor(0.01, dtype=torch.float64, device=where)] * count
    control = torch.zeros(3, dtype=torch.int32, device=where)
    options: dict[str, Any] = {name: [value] * count for name, value in HYPER.items()} | {
        "whole_grads": [False] * count
    }

    def run() -> Sequence[Tensor]:
        tensors: list[Any] = [
            lists[0],
            [None] * count,
            lists[1],
            *moments,
            [torch.empty(0)] * count,
            steps,
            rates,
            control,
        ]
        ops.row_adamw_step_(*tensors, **options, skip_nonfinite=True)
        return [*lists[0], *moments[0], *moments[1], *steps, control]

    return run


def as_cluster(where: torch.device) -> Call:
    """row_adamw_step_ as one launch of a cluster, on a GPU that has clusters."""
    call = step_of_tables(where, 4)

    def run() -> Sequence[Tensor]:
        os.environ["KSL_CUDA_ADAMW"] = "cluster"
        try:
            with warnings.catch_warnings():
                if where.type == "cuda" and torch.cuda.get_device_capability(where) >= (9, 0):
                    warnings.simplefilter("error", RuntimeWarning)  # it would say that there were several launches
                return call()
        finally:
            del os.environ["KSL_CUDA_ADAMW"]

    return run


def look_up(where: torch.device) -> Call:
    """row_embedding."""
    table, rows, slots, ids = embedding(where)
    return lambda: [ops.row_embedding(table, rows, slots, ids)]


def gradient(where: torch.device) -> Call:
    """row_embedding_backward, with CUB's sort."""
    _, _, slots, ids = embedding(where)
    grad = random(*ids.shape, D, seed=7).to(where)
    return lambda: [ops.row_embedding_backward(grad, slots, ids, K)]


def embedding(where: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table, rows, slots and ids."""
    slots = torch.full((VOCAB,), -1, dtype=torch.int32)
    slots[some_rows()] = torch.arange(K, dtype=torch.int32)
    ids = torch.randint(VOCAB, (4, 50), generator=torch.Generator().manual_seed(5))
    ids[:, ::3] = some_rows()[0]
    return random(VOCAB, D).to(where), random(K, D, seed=6).to(where), slots.to(where), ids.to(where)


CASES: dict[str, Callable[[torch.device], Call]] = {
    "ks_statistics float32": statistics(torch.float32, 576),
    "ks_statistics float64": statistics(torch.float64, 576),
    "ks_statistics float16": statistics(torch.float16, 576),
    "ks_statistics bfloat16": statistics(torch.bfloat16, 576),
    "ks_statistics of long rows": statistics(torch.float32, 20_000),
    "ks_decide": decide,
    "ks_rows": sides(576, 500),
    "ks_rows of long rows": sides(40_000, 33_000),
    "row_adamw_": update(lazy=False),
    "row_adamw_ lazy": update(lazy=True),
    "row_adamw_step_": step_of_tables,
    "row_adamw_step_ as a cluster": as_cluster,
    "row_embedding": look_up,
    "row_embedding_backward": gradient,
}


def check(name: str, where: torch.device) -> None:
    """Capture the first call of an op and replay it (on the CPU: call it). Fails unless it has the CPU's bits."""
    there = CASES[name](where)
    if where.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = there()
        graph.replay()
        torch.cuda.synchronize()
    else:
        got = there()
    for ours, theirs in zip(got, CASES[name](torch.device("cpu"))(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    check(sys.argv[1], torch.device(sys.argv[2] if len(sys.argv) > 2 else "cuda"))
