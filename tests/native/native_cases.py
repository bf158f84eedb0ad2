"""What the native core is called with to compare it on different systems: all functions, types, layouts, refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from ks_cases import CASES, LAYOUTS, lay_out, make_pair
from native_calls import Call, Matrix, Members
from numpy.random import Generator, default_rng
from torch import Tensor

from kslottery_fast.ops.schemas import SIDES

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
PAIRS = ((F32, F32), (F64, F64), (F16, F16), (BF16, BF16), (F32, BF16), (F16, F64))
UNEQUAL = ((64, 64), (100, 37), (576, 576), (1000, 333), (4100, 4096), (7, 300), (1, 1))
EQUAL = (63, 576, 1025, 2048)
ROWS = 2


def all_calls() -> list[Call]:
    """The calls, always the same ones."""
    return [
        *_sides(default_rng(1)),
        *_integers(default_rng(2)),
        *_long_and_shared(default_rng(3)),
        *_statistics(default_rng(4)),
        *_probabilities(),
        *_streams(default_rng(5)),
        *_adamw(default_rng(6)),
        *_adamw_steps(default_rng(7)),
        *_finite(default_rng(8)),
        *_embedding(default_rng(9)),
        *_flushed(default_rng(10)),
        *_refused(),
    ]


def _ks_rows(x: Tensor, y: Tensor, sides: int, threads: int) -> Call:
    rows, place = len(x), x.dtype if x.dtype == y.dtype and not x.is_floating_point() else F64
    counts = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    places = torch.zeros(rows, dtype=place), torch.zeros(rows, dtype=place)
    flags = torch.zeros(rows, dtype=torch.uint8)
    return Call("ks_rows", (Matrix(x), Matrix(y), sides, *counts, *places, flags, threads))


def _sides(rng: Generator) -> Iterator[Call]:
    turns = zip(*map(itertools.cycle, (UNEQUAL, LAYOUTS, SIDES.values(), (1, 3))), strict=False)
    for case, dtypes in itertools.product(CASES, PAIRS):
        (n, m), layout, sides, threads = next(turns)
        x, y = make_pair(case, rng, ROWS, n, m, dtypes)
        yield _ks_rows(lay_out(x, layout), y, sides, threads)


def _integers(rng: Generator) -> Iterator[Call]:
    for dtype, (n, m) in itertools.product((np.int64, np.uint64), UNEQUAL):
        limits = np.iinfo(dtype)
        for low, high in ((limits.min, limits.max), (limits.max - 9, limits.max)):
            x, y = (torch.from_numpy(rng.integers(low, high, (ROWS, size), dtype, endpoint=True)) for size in (n, m))
            yield _ks_rows(x, y, SIDES["both"], 1)


def _long_and_shared(rng: Generator) -> Iterator[Call]:
    for dtype in (F32, F64):
        x = torch.from_numpy(rng.normal(size=(1, 550_000))).to(dtype)
        y = torch.from_numpy(np.round(rng.normal(size=(1, 500_001)), 3)).to(dtype)
        for threads in (1, 3):
            yield _ks_rows(x, y, SIDES["both"], threads)
        one, many = x[:, :5000].clone().expand(20, -1), y[:, :20_000].clone().view(20, 1000)
        for sides in SIDES.values():
            yield _ks_rows(one, many, sides, 3)
            yield _ks_rows(many, one, sides, 1)
        yield _ks_rows(one, many[:, :5], SIDES["larger"], 1)


def _statistics(rng: Generator) -> Iterator[Call]:
    turns = zip(*map(itertools.cycle, (EQUAL, LAYOUTS, (1, 3))), strict=False)
    for case, dtypes in itertools.product(CASES, PAIRS):
        n, layout, threads = next(turns)
        x, y = make_pair(case, rng, ROWS, n, n, dtypes)
        x = lay_out(x, layout)
        h, flags = torch.zeros(ROWS, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.uint8)
        identical = torch.zeros(ROWS, dtype=torch.uint8)
        yield Call("ks_statistics", (Matrix(x), Matrix(y), 0, h, flags, threads, identical))
        threshold = max(1, round(1.36 * math.sqrt(2 * n)))
        yield Call("ks_statistics", (Matrix(x), Matrix(y), threshold, h, flags, threads, None))
        decided = torch.zeros(ROWS, dtype=torch.uint8)
        yield Call("ks_decide", (Matrix(x), Matrix(y), threshold, decided, flags, threads))


def _probabilities() -> Iterator[Call]:
    for n, m, one_sided in ((7, 5, False), (100, 100, True), (300, 200, False), (1200, 900, False)):
        unit = n * m // math.gcd(n, m)
        counts = torch.tensor([0, 1, unit // 10, unit // 3, unit // 2, unit - 1, unit])
        p, log_p = torch.zeros(len(counts), dtype=F64), torch.zeros(len(counts), dtype=F64)
        yield Call("ks_outside_probability", (counts, len(counts), n, m, int(one_sided), p, log_p, 3))


def _intervals(keys: Tensor, whole: bool) -> Members:
    """One interval that holds all keys, or three of them, with a grid of 16 cells over them."""
    if whole:
        starts, lasts, shifts, bases, shift = [0], [2**64 - 1], [54], [0], 63
        cells = [0, 0, 0, 0]
    else:
        ordered = np.sort(keys.numpy().view(np.uint64))
        starts = [int(ordered[len(ordered) * k // 8]) for k in (1, 3, 5)]
        lasts = [(starts[1] - starts[0]) // 2, (starts[2] - starts[1]) // 4, 1 << 48]
        shifts = [max(0, last.bit_length() - 6) for last in lasts]
        bases = [0, 64, 128]
        span = starts[2] + lasts[2] - starts[0]
        shift = max(0, span.bit_length() - 4)
        edges = [starts[0] + (c << shift) for c in range(17)]
        cells = []
        for first, last in itertools.pairwise(edges):
            cells += [max(0, sum(s <= at for s in starts) - 1) for at in (first, last - 1)]
    return Members(
        (
            torch.from_numpy(np.array(starts, np.uint64)),
            torch.from_numpy(np.array(lasts, np.uint64)),
            torch.tensor(shifts, dtype=torch.uint8),
            torch.tensor(bases),
            torch.tensor(cells, dtype=torch.int32),
            len(starts),
            shift,
        )
    )


def _streams(rng: Generator) -> Iterator[Call]:
    for dtype, whole in itertools.product((F32, F64), (True, False)):
        values = rng.normal(size=2000)
        values[::7] = np.round(values[::7], 1)
        values[[3, 50, 1999]] = math.nan
        values[[4, 51]] = math.inf, -math.inf
        values[60:70] = 5e-324 if dtype is F64 else 1e-45
        tensor = torch.from_numpy(values).to(dtype)
        bits = tensor.double().numpy().view(np.int64)
        keys = np.where(bits < 0, np.int64(0) - (bits & np.int64(2**63 - 1)), bits) + np.int64(-(2**63))
        intervals = _intervals(torch.from_numpy(keys[~np.isnan(values)]), whole)
        counts, first = torch.zeros(1024, dtype=torch.int64), torch.zeros(1024, dtype=torch.uint64)
        states = torch.zeros(1024, dtype=torch.uint8)
        head = (tensor, len(tensor), {F64: 0, F32: 1}[dtype], intervals)
        yield Call("ks_stream_count", (*head, counts, first, states))
        collected = torch.zeros(1, dtype=torch.int64)
        yield Call("ks_stream_collect", (*head, torch.zeros(2000, dtype=torch.uint64), collected))


def _random(rng: Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers of sizes from 1e-6 to 1e3."""
    return torch.from_numpy(rng.normal(size=shape) * 10.0 ** rng.integers(-6, 4, shape)).to(dtype)


def _update(rng: Generator, dtype: torch.dtype, cols: int, layout: str) -> tuple[Tensor, ...]:
    """A table of 9 rows, rows to update, their master, gradient and moments."""
    state = torch.promote_types(dtype, F32)
    table, grad = lay_out(_random(rng, (9, cols), dtype), layout), lay_out(_random(rng, (5, cols), dtype), layout)
    grad[1] = 0
    grad[3, ::2] = 0
    row_ids = torch.tensor([8, 0, 3, 5, 4])
    moments = _random(rng, (5, cols), state), _random(rng, (5, cols), state).square()
    return table, row_ids, table[row_ids].to(state), grad, *moments


def _adamw(rng: Generator) -> Iterator[Call]:
    turns = zip(*map(itertools.cycle, (LAYOUTS, (1, 3), (1, 2, 1000, 123_457), (0.9, 0.3))), strict=False)
    for dtype, lazy, keep in itertools.product((F32, F64, F16, BF16), (False, True), (False, True)):
        if keep and dtype in (F32, F64):
            continue
        for cols in (7, 1037):
            layout, threads, step, beta1 = next(turns)
            table, row_ids, master, grad, *moments = _update(rng, dtype, cols, layout)
            for spoil in (False, True):
                if spoil:
                    grad[2, -1], grad[0, 3] = math.nan, -math.inf
                kept = master if keep else None
                head = (Matrix(table), row_ids, 5, kept, Matrix(grad), *moments)
                numbers = (1e-3, beta1, 0.999, 1e-8, 0.01)
                yield Call("row_adamw", (*head, Members((*numbers, step)), int(lazy), threads))
                done = torch.tensor([float(step - 1)])
                yield Call("row_adamw_if_finite", (*head, done, Members((*numbers, 0)), int(lazy), threads))


def _adamw_steps(rng: Generator) -> Iterator[Call]:
    """Powers of the betas, of which float64 shows every bit."""
    for step in (*range(1, 100), *(int(n) for n in rng.integers(100, 100_000, 100))):
        table, _, _, grad, *moments = _update(rng, F64, 3, "contiguous")
        numbers = (1e-3, 0.9 if step % 2 else 0.95, 0.999 if step % 3 else 0.98, 1e-8, 0.0)
        yield Call("row_adamw", (Matrix(table), None, 5, None, Matrix(grad), *moments, Members((*numbers, step)), 0, 1))


def _finite(rng: Generator) -> Iterator[Call]:
    for dtype, layout, value in itertools.product((F32, F64, F16, BF16), LAYOUTS, (0.0, math.nan, math.inf)):
        matrix = _random(rng, (4, 1030), dtype)
        matrix[3, -1] = value
        yield Call("all_finite", (Matrix(lay_out(matrix, layout)), 3))


def _embedding(rng: Generator) -> Iterator[Call]:
    slots = torch.full((50,), -1, dtype=torch.int32)
    slots[[3, 7, 49]] = torch.tensor([1, 0, 2], dtype=torch.int32)
    ids = torch.from_numpy(rng.integers(0, 50, 60))
    for dtype, layout, cols in itertools.product((F32, F64, F16, BF16), LAYOUTS, (5, 1100)):
        state = torch.promote_types(dtype, F32)
        table, rows = lay_out(_random(rng, (50, cols), dtype), layout), _random(rng, (3, cols), state)
        out = torch.zeros(60, cols, dtype=dtype)
        yield Call("row_embedding", (Matrix(table), Matrix(rows), slots, ids, 60, out, 3))
        grad_out = lay_out(_random(rng, (60, cols), dtype), layout)
        grad_rows = torch.ones(3, cols, dtype=state)
        code = {F64: 0, F32: 1}[state]
        yield Call("row_embedding_backward", (Matrix(grad_out), slots, 50, ids, 60, 3, grad_rows, code, 3))


def _flushed(rng: Generator) -> Iterator[Call]:
    """With subnormals flushed in the calling thread, which the results must not show."""
    yield Call("flush_subnormals", (1,))
    for case, dtypes in itertools.product(("subnormal", "subnormal half"), ((F32, F32), (F32, F64), (F16, F16))):
        yield _ks_rows(*make_pair(case, rng, ROWS, 300, 200, dtypes), SIDES["both"], 3)
    for dtype in (F32, F64):
        table, row_ids, _, grad, *moments = _update(rng, dtype, 1037, "contiguous")
        least = torch.finfo(dtype).smallest_normal
        head = (Matrix(table * least), row_ids, 5, None, Matrix(grad * least), moments[0] * least, moments[1] * least)
        yield Call("row_adamw", (*head, Members((1e-3, 0.9, 0.999, 1e-8, 0.01, 2)), 0, 1))
    yield Call("flush_subnormals", (0,))


def _refused() -> Iterator[Call]:
    x, ids, slots = torch.zeros(3, 4), torch.tensor([0, 5, 1]), torch.zeros(3, dtype=torch.int32)
    counts, flags = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.uint8)
    yield Call("ks_statistics", (Matrix(x), Matrix(x[:2]), 0, counts, flags, 1, None))
    yield Call("row_embedding", (Matrix(x), Matrix(x[:1]), slots, ids, 3, x.clone(), 3))
    numbers = (1e-3, 0.9, 0.999, 1e-8, 0.0)
    table, moments = x.clone(), (x.clone(), x.clone())
    for row_ids, step in (((0, 3, 1), 1), ((0, 1, 0), 1), ((0, 1, 2), 0)):
        head = (Matrix(table), torch.tensor(row_ids), 3, None, Matrix(x), *moments)
        yield Call("row_adamw", (*head, Members((*numbers, step)), 0, 1))
