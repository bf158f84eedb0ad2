"""KS workloads: two embedding tables of real sizes, adversarial rows, and a small batch for ks_2samp."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from kslottery_fast import ks_2samp, ks_select, ks_statistics, ops
from kslottery_fast.ks import null as ks_pvalues
from kslottery_fast.ks.significance import critical_count

from . import memory, peers
from .measure import Contender
from .workloads import Spec, Suite, Workload

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "ops"))
from ks_cases import make_pair

SHAPES = ((32_000, 4_096), (49_152, 576), (128_256, 2_048))  # LLaMA, SmolLM2, Llama 3.2 1B
DTYPES = (torch.float32, torch.bfloat16)
DEVIATION = 0.02  # of an embedding's numbers
# What fine-tuning did: the share of changed rows, the noise of each number and the shift, in standard deviations.
CHANGES = {
    "every row shifted": (1.0, 0.3, 0.05),
    "every row selected": (1.0, 0.3, 0.5),
    "5% of rows changed": (0.05, 0.3, 0.5),
    "identical": (0.0, 0.0, 0.0),
}
QUICK_CASES = ("every row shifted", "5% of rows changed")
ADVERSARIAL = (
    "heavy tails",
    "huge range",
    "geometric",
    "geometric, all different",
    "one far outlier",
    "one bucket",
    "one bucket and outliers",
    "clusters",
    "nearly equal",
    "quantized",
    "two-valued",
    "constant",
    "subnormal",
)
PREFIX = "adversarial: "
ADVERSARIAL_ROWS = 1024
ADVERSARIAL_WIDTHS = (4_096, 576)
BATCH = (64, 4_096)
UNEQUAL = (10_000, 9_999)
# How far the second sample is shifted, in standard deviations: to an ordinary p-value, and to one that underflows.
SHIFTS = {"unequal sizes, near": 0.02, "unequal sizes, far": 0.8}
ALPHA = 0.05
SEED = 20_240_202


def suite(*, quick: bool = False) -> Suite:
    """All KS rows. Quick: a sixteenth of two tables, two of the four cases, and fewer adversarial rows."""
    share = 16 if quick else 1
    tables = [
        Spec(op, (V // share, d), dtype, case)
        for V, d in (SHAPES[:2] if quick else SHAPES)
        for case in (QUICK_CASES if quick else CHANGES)
        for dtype in DTYPES
        for op in ("ks_select", "ks_statistics")
    ]
    adversarial = [
        Spec("ks_statistics", (ADVERSARIAL_ROWS, d), dtype, PREFIX + case)
        for d in ADVERSARIAL_WIDTHS
        for dtype in DTYPES[: 1 if quick else None]
        for case in ADVERSARIAL[:: 2 if quick else 1]
    ]
    batch = [Spec("ks_2samp", (rows, BATCH[1]), torch.float32, "a small batch") for rows in (1, BATCH[0])]
    batch += [Spec("ks_2samp", (1, UNEQUAL[0]), torch.float64, case) for case in SHIFTS]
    return Suite([*tables, *adversarial, *batch], prepare)


def prepare(spec: Spec) -> Workload:
    """The data and the contenders of one row."""
    if spec.case in SHIFTS:
        return _unequal(spec)
    if spec.op == "ks_2samp":
        return _batch(spec)
    if spec.case.startswith(PREFIX):
        return _adversarial(spec)
    return _tables(spec)


@functools.lru_cache(maxsize=1)
def _before(shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape).normal_(0, DEVIATION, generator=torch.Generator().manual_seed(SEED))


@functools.lru_cache(maxsize=1)
def float32_tables(shape: tuple[int, int], case: str) -> tuple[Tensor, Tensor]:
    """Both tables, with the same numbers every time. One pair is kept for the rows of the table that share it."""
    share, noise, shift = CHANGES[case]
    before = _before(shape)
    generator = torch.Generator().manual_seed(SEED + 1)
    if share == 1.0:
        after = torch.empty(shape).normal_(shift * DEVIATION, noise * DEVIATION, generator=generator).add_(before)
    else:
        after = before.clone()
        rows = torch.randperm(shape[0], generator=generator)[: round(share * shape[0])]
        change = torch.empty(len(rows), shape[1])
        after[rows] += change.normal_(shift * DEVIATION, noise * DEVIATION, generator=generator)
    return before, after


@functools.lru_cache(maxsize=1)
def _bfloat16_tables(shape: tuple[int, int], case: str) -> tuple[Tensor, Tensor]:
    before, after = float32_tables(shape, case)
    return before.bfloat16(), after.bfloat16()


def forget_tables() -> None:
    """Free the pair that is kept."""
    for cached in (_before, float32_tables, _bfloat16_tables):
        cached.cache_clear()


def _floors(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Contender]:
    def floor(pattern: str) -> Contender:
        return Contender(lambda turn: memory.read(*pairs[turn % len(pairs)], pattern))

    return {f"floor: {pattern}": floor(pattern) for pattern in memory.PATTERNS}


def _tables(spec: Spec) -> Workload:
    narrow = spec.dtype == torch.bfloat16
    before, after = (_bfloat16_tables if narrow else float32_tables)(spec.shape, spec.case)
    run = functools.partial(ks_select, alpha=ALPHA) if spec.op == "ks_select" else ks_statistics
    contenders = {
        "ours": Contender(lambda turn: run(before, after)),
        **_floors([(before, after)]),
        "scipy": peers.scipy_rows(before, after),
        "numpy sort": peers.numpy_sort(before, after),
        "torch": peers.torch_ks(before, after),
    }
    if narrow:
        wide = float32_tables(spec.shape, spec.case)
        contenders["float32"] = Contender(lambda turn: run(*wide))
    tickets = ops.ks_decide(before, after, critical_count(spec.shape[1], ALPHA))[0].double().mean().item()
    return Workload(contenders, before.nbytes + after.nbytes, note=f"{100 * tickets:.2g}% tickets")


def _adversarial(spec: Spec) -> Workload:
    rng = np.random.default_rng(SEED)
    rows, d = spec.shape
    first = make_pair(spec.case.removeprefix(PREFIX), rng, rows, d, d, (spec.dtype, spec.dtype))
    size = first[0].nbytes + first[1].nbytes
    pairs = [first] + [(first[0].clone(), first[1].clone()) for _ in range(memory.copies_beyond_the_cache(size) - 1)]
    contenders = {
        "ours": Contender(lambda turn: ks_statistics(*pairs[turn % len(pairs)])),
        **_floors(pairs),
        "numpy sort": peers.numpy_sort(*first),
        "torch sort": peers.torch_sort(*first),
    }
    return Workload(contenders, size)


def _batch(spec: Spec) -> Workload:
    rows, d = spec.shape
    generator = torch.Generator().manual_seed(SEED)
    size = 2 * rows * d * 4
    pairs = [
        tuple(torch.empty(rows, d).normal_(0, DEVIATION, generator=generator).numpy() for _ in range(2))
        for _ in range(min(64, memory.copies_beyond_the_cache(size)))
    ]

    def contender(function: object) -> Contender:
        return Contender(lambda turn: function(*pairs[turn % len(pairs)], axis=1))

    contenders = {"ours": contender(ks_2samp), "scipy": contender(scipy.stats.ks_2samp)}
    return Workload(contenders, size)


def _unequal(spec: Spec) -> Workload:
    """One exact p-value. The remembered one is forgotten first."""
    rng = np.random.default_rng(SEED)
    x, y = rng.normal(size=UNEQUAL[0]), rng.normal(SHIFTS[spec.case], size=UNEQUAL[1])

    def ours(turn: int) -> object:
        del turn
        ks_pvalues._memory.cache_clear()
        return ks_2samp(x, y)

    contenders = {"ours": Contender(ours), "scipy": Contender(lambda turn: scipy.stats.ks_2samp(x, y))}
    return Workload(contenders, x.nbytes + y.nbytes)
