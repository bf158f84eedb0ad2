"""RowAdamW and row_embedding against what torch has: fused AdamW on a compact parameter, F.embedding on a table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kslottery_fast import RowAdamW, ops

from . import memory
from .measure import Contender
from .workloads import Spec, Suite, Workload

SHAPES = {(18, 4_096): 32_000, (2_253, 576): 49_152}  # rows that train, and how many the table has
DENSE = {(18, 4_096): 128_256}  # the table that a dense AdamW would train; 8.4 GB with its state, so
DENSE_PART = 8_016  # a sixteenth of it is timed
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.01}
TOKENS = (8, 128)
SEED = 20_240_202
CALLS = 20


def suite(*, quick: bool = False) -> Suite:
    """All rows of the table about trained rows. They are short in any case."""
    del quick
    specs = [
        Spec(op, shape, torch.float32, case)
        for shape in SHAPES
        for op, case in (
            ("RowAdamW", "compact parameter"),
            ("row_adamw_", "in a table"),
            ("row_embedding", "forward"),
            ("row_embedding", "forward and backward"),
        )
    ]
    return Suite(specs, prepare)


def prepare(spec: Spec) -> Workload:
    """The data and the contenders of one row."""
    if spec.op == "row_embedding":
        return _embedding(spec)
    return _adamw(spec)


def _parameter(values: Tensor, grad: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(values.clone())
    parameter.grad = grad.clone()
    return parameter


def _adamw(spec: Spec) -> Workload:
    """One step. It reads values, gradients and both moments and writes all but the gradients: seven times k * d."""
    k, d = spec.shape
    generator = torch.Generator().manual_seed(SEED)
    values, grad = torch.randn(k, d, generator=generator), torch.randn(k, d, generator=generator)
    moved = 7 * values.nbytes
    sets = range(min(256, memory.copies_beyond_the_cache(moved)))
    fused = [torch.optim.AdamW([_parameter(values, grad)], fused=True, **OPTIMIZER) for _ in sets]
    contenders = {"torch": Contender(lambda turn: fused[turn % len(sets)].step())}
    if spec.op == "RowAdamW":
        ours = [RowAdamW([_parameter(values, grad)], **OPTIMIZER) for _ in sets]
        contenders = {"ours": Contender(lambda turn: ours[turn % len(sets)].step()), **contenders}
        if spec.shape in DENSE:
            part = DENSE_PART, d
            dense = torch.optim.AdamW([_parameter(torch.zeros(part), torch.ones(part))], fused=True, **OPTIMIZER)
            contenders["dense"] = Contender(lambda turn: dense.step(), DENSE[spec.shape] / DENSE_PART)
    else:
        table = torch.randn(SHAPES[spec.shape], d, generator=generator)
        rows = [torch.randperm(len(table), generator=generator)[:k] for _ in sets]
        states = [(torch.zeros_like(grad), torch.zeros_like(grad)) for _ in sets]
        grads = [grad.clone() for _ in sets]
        hyper = {"step": 3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **OPTIMIZER}

        def step(turn: int) -> None:
            i = turn % len(sets)
            ops.row_adamw_(table, rows[i], grads[i], *states[i], **hyper)

        contenders = {"ours": Contender(step), **contenders}
    return Workload(contenders, moved, CALLS)


def _embedding(spec: Spec) -> Workload:
    """A batch of tokens, half of which have trained rows. In backward, torch makes a gradient for the whole table."""
    k, d = spec.shape
    V = SHAPES[spec.shape]
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randn(V, d, generator=generator)
    slots = torch.full((V,), -1, dtype=torch.int32)
    trained = torch.randperm(V, generator=generator)[:k]
    slots[trained] = torch.arange(k, dtype=torch.int32)
    out_bytes = TOKENS[0] * TOKENS[1] * d * 4
    batches = []
    for _ in range(min(16, memory.copies_beyond_the_cache(2 * out_bytes))):
        ids = torch.randint(V, TOKENS, generator=generator)
        ours = torch.rand(TOKENS, generator=generator) < 0.5
        batches.append(torch.where(ours, trained[torch.randint(k, TOKENS, generator=generator)], ids))
    if spec.case == "forward":
        rows = table[trained].clone()
        return Workload(
            {
                "ours": Contender(lambda turn: ops.row_embedding(table, rows, slots, batches[turn % len(batches)])),
                "torch": Contender(lambda turn: F.embedding(batches[turn % len(batches)], table)),
            },
            2 * out_bytes,
            CALLS,
        )
    rows, weight = table[trained].clone().requires_grad_(), table.clone().requires_grad_()
    grad = torch.randn(*TOKENS, d, generator=generator)

    def ours(turn: int) -> None:
        rows.grad = None
        ops.row_embedding(table, rows, slots, batches[turn % len(batches)]).backward(grad)

    def dense(turn: int) -> None:
        weight.grad = None
        F.embedding(batches[turn % len(batches)], weight).backward(grad)

    return Workload({"ours": Contender(ours), "torch": Contender(dense)}, None)
