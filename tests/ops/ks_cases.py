"""Rows to test KS kernels with, and the brute-force oracle for them. Used by the tests and by fuzz_ks.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (1, 2, 3, 7, 31, 63, 64, 65, 100, 127, 256, 500, 576, 1000, 1025, 2048, 4096)


class Expected(NamedTuple):
    """What ks_rows has to give: int64 [R], int64 [R], float64 [R], float64 [R], uint8 [R]."""

    plus: np.ndarray
    minus: np.ndarray
    plus_at: np.ndarray
    minus_at: np.ndarray
    flags: np.ndarray


def expected(x: Tensor, y: Tensor) -> Expected:
    """The definition, row by row: sort, count with searchsorted, take the extremes in the order of scipy."""
    n, m = x.shape[1], y.shape[1]
    g = math.gcd(n, m)
    out = Expected(
        np.empty(len(x), np.int64),
        np.empty(len(x), np.int64),
        *np.empty((2, len(x))),
        np.empty(len(x), np.uint8),
    )
    for r, (a, b) in enumerate(zip(x.double().numpy(), y.double().numpy(), strict=True)):
        both = np.concatenate([a, b])
        out.flags[r] = np.isnan(both).any() + 2 * np.isinf(both).any()
        if out.flags[r] & 1:
            row = (-1, -1, math.nan, math.nan)
        else:
            a, b = np.sort(a), np.sort(b)
            both = np.concatenate([a, b])
            i, j = np.searchsorted(a, both, side="right"), np.searchsorted(b, both, side="right")
            exact = i * (m // g) - j * (n // g)
            rounded = i / n - j / m
            row = (exact.max(), -exact.min(), both[rounded.argmax()], both[rounded.argmin()])
        for column, value in zip(out, row, strict=False):
            column[r] = value
    return out


def _paired(change: Callable[[Generator, np.ndarray], np.ndarray]) -> Callable:
    """Two tables of one shape, the second made from the first."""

    def make(rng: Generator, rows: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(rows, max(n, m))) * 10.0 ** rng.integers(-3, 3)
        y = change(rng, x)
        return x[:, :n], y[:, :m]

    return make


def _separate(draw: Callable[[Generator, tuple[int, int]], np.ndarray]) -> Callable:
    """Two tables drawn the same way, apart from each other."""
    return lambda rng, rows, n, m: (draw(rng, (rows, n)), draw(rng, (rows, m)))


def _change_some(rng: Generator, x: np.ndarray) -> np.ndarray:
    changed = rng.random(x.shape) < 0.05
    return np.where(changed, x + rng.normal(size=x.shape), x)


def _one_far(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    values = rng.normal(size=shape)
    values[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = 1e4 * rng.choice([-1, 1], shape[0])
    return values


def _special(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    values = rng.normal(size=shape)
    chosen = rng.random(shape) < 1.5 / shape[1]
    return np.where(chosen, rng.choice([np.nan, np.inf, -np.inf, np.inf, -np.inf], shape), values)


def _powers(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    return 0.99 ** rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)


def _clusters(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Clusters inside clusters: at every scale almost all values are in a few buckets."""
    digits = rng.choice([0.0, 1.0, 0.97], size=(5, *shape))
    return sum(digit * 40.0**-k for k, digit in enumerate(digits))


CASES: dict[str, Callable[[Generator, int, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "normal": _separate(lambda rng, shape: rng.normal(size=shape)),
    "shifted": _paired(lambda rng, x: x + 0.1 * rng.normal(size=x.shape) * np.abs(x).mean()),
    "moved far": _paired(lambda rng, x: 3 * x + 5 * rng.normal()),
    "nearly equal": _paired(lambda rng, x: x * (1 + 1e-4 * rng.normal(size=x.shape))),
    "5% of the values changed": _paired(_change_some),
    "identical": _paired(lambda rng, x: x.copy()),
    "shuffled": _paired(lambda rng, x: rng.permuted(x, axis=1)),
    "heavy tails": _separate(lambda rng, shape: np.clip(rng.standard_cauchy(shape), -3e4, 3e4)),
    "huge range": _separate(lambda rng, shape: rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-40, 38, size=shape)),
    "geometric": _separate(lambda rng, shape: 2.0 ** -rng.integers(0, 24, shape).astype(float)),
    "geometric, all different": _separate(_powers),
    "one far outlier": _separate(_one_far),
    "one bucket": _separate(lambda rng, shape: 1 + 1e-5 * rng.normal(size=shape)),
    "one bucket and outliers": _separate(
        lambda rng, shape: np.where(rng.random(shape) < 0.02, 1e3, 1e-3) * rng.normal(size=shape)
    ),
    "clusters": _separate(_clusters),
    "quantized": _separate(lambda rng, shape: np.round(rng.normal(size=shape) * 4) / 4),
    "two-valued": _separate(lambda rng, shape: rng.choice([-0.5, 0.5], shape)),
    "both zeros": _separate(lambda rng, shape: rng.choice([-0.0, 0.0, 1.0, -1.0], shape)),
    "constant": _separate(lambda rng, shape: np.broadcast_to(rng.integers(0, 2, (shape[0], 1)) * 1.0, shape).copy()),
    "subnormal": _separate(lambda rng, shape: rng.integers(-60, 60, shape) * 2.0**-149),
    "subnormal double": _separate(lambda rng, shape: rng.integers(-60, 60, shape) * 2.0**-1074),
    "subnormal half": _separate(lambda rng, shape: rng.integers(-60, 60, shape) * 2.0**-24),
    "uniform": _separate(lambda rng, shape: rng.uniform(-1, 1, size=shape)),
    "NaN and infinity": _separate(_special),
}


def make_pair(
    case: str, rng: Generator, rows: int, n: int, m: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Tensors [rows, n] and [rows, m] of a case; values too large for a dtype are clipped, not made Inf."""
    pair = []
    for values, dtype in zip(CASES[case](rng, rows, n, m), dtypes, strict=True):
        limit = torch.finfo(dtype).max
        finite = np.isfinite(values)
        values = np.where(finite, np.clip(values, -limit, limit), values)
        pair.append(torch.from_numpy(values).to(dtype))
    return pair[0], pair[1]


LAYOUTS = ("contiguous", "transposed", "every other column", "padded rows")


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory."""
    rows, cols = tensor.shape
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "every other column":
        wide = torch.full((rows, 2 * cols), math.nan, dtype=tensor.dtype)
        wide[:, ::2] = tensor
        return wide[:, ::2]
    if layout == "padded rows":
        wide = torch.full((rows, cols + 3), math.nan, dtype=tensor.dtype)
        wide[:, 2:-1] = tensor
        return wide[:, 2:-1]
    return tensor.contiguous()
