"""ks_2samp on many columns: the cases that loops over scipy are replaced for, in float64 with asymptotic p-values.

python -m benchmarks.table --only "float64, against"   one call of ks_2samp after each loop over scipy
python -m benchmarks.two_sample_workloads              calls in a row, and calls that know no p-values yet
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch

from kslottery_fast import ks_2samp, ops
from kslottery_fast.ks import null

from .measure import Contender
from .paired import Ratio
from .workloads import Spec, Suite, Workload

SEED = 20_240_203
SHIFT = 0.05  # of each second sample, in standard deviations
SCIPY_VALUES = 4_000_000  # values that scipy gets in a turn; its time is scaled to all rows
SHAPES = {  # rows, n, m: how many times as fast as a loop over scipy to reach on two cores
    (2_000, 576, 576): 300,
    (5_000, 2_000, 1_500): 120,
    (200, 100_000, 80_000): 60,
    (20, 1_000_000, 1_000_000): 150,
}
REFERENCE = (500, 20, 100_000)  # rows and their size, against one reference of that size
COLUMNS, COLUMNS_KERNEL, ONE_REFERENCE = "ks_2samp", "ks_rows, larger side", "ks_2samp, 1 ref"

Array = npt.NDArray[np.float64]


def column_spec(op: str, rows: int, n: int, m: int) -> Spec:
    """The row of a table for one of SHAPES."""
    return Spec(op, (rows, n), torch.float64, f"against {m:,} values")


REFERENCE_SPEC = Spec(ONE_REFERENCE, REFERENCE[:2], torch.float64, f"one reference of {REFERENCE[2]:,} values")
OMIT_SPEC = Spec(ONE_REFERENCE, REFERENCE[:2], torch.float64, f"one reference of {REFERENCE[2]:,} values, NaN omitted")
MISSING = 0.1  # of the values of OMIT_SPEC that are NaN


def suite(*, quick: bool = False) -> Suite:
    """The cases, each by ks_2samp and by its kernel alone. Quick: without the two that take long."""
    shapes = list(SHAPES)[: 2 if quick else None]
    specs = [column_spec(op, *shape) for shape in shapes for op in (COLUMNS, COLUMNS_KERNEL)]
    return Suite([*specs, REFERENCE_SPEC, OMIT_SPEC], prepare)


def prepare(spec: Spec) -> Workload:
    """The data and the contenders of one row."""
    if spec in (REFERENCE_SPEC, OMIT_SPEC):
        return _one_reference(*REFERENCE, missing=MISSING if spec == OMIT_SPEC else 0.0)
    (shape,) = (shape for shape in SHAPES if column_spec(spec.op, *shape) == spec)
    return _columns(spec.op, *shape)


def _columns(op: str, rows: int, n: int, m: int) -> Workload:
    rng = np.random.default_rng(SEED)
    x, y = rng.normal(size=(rows, n)), rng.normal(SHIFT, size=(rows, m))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    few = min(rows, max(1, SCIPY_VALUES // (n + m)))

    def loop(turn: int) -> object:
        del turn
        return [scipy.stats.ks_2samp(x[row], y[row], method="asymp").pvalue for row in range(few)]

    def ours(turn: int) -> object:
        del turn
        if op == COLUMNS_KERNEL:
            return ops.ks_rows(*tensors, "larger")
        return ks_2samp(x, y, method="asymp", axis=1)

    contenders = {"ours": Contender(ours), "scipy": Contender(loop, rows / few)}
    if op == COLUMNS:
        # scipy's own loop along an axis.
        contenders["scipy axis"] = Contender(
            lambda turn: scipy.stats.ks_2samp(x[:few], y[:few], method="asymp", axis=1), rows / few
        )
    return Workload(contenders, x.nbytes + y.nbytes)


def _one_reference(rows: int, n: int, size: int, missing: float) -> Workload:
    rng = np.random.default_rng(SEED)
    x, reference = rng.normal(SHIFT, size=(rows, n)), rng.normal(size=size)
    ordered = np.sort(reference)
    x[rng.random(x.shape) < missing] = np.nan
    policy = "omit" if missing else "propagate"

    def presorted(turn: int) -> object:
        del turn
        return [presorted_statistic(row[~np.isnan(row)] if missing else row, ordered) for row in x]

    contenders = {
        "ours": Contender(lambda turn: ks_2samp(x, reference, method="asymp", axis=1, nan_policy=policy)),
        "presorted": Contender(presorted),
    }
    return Workload(contenders, None)


def presorted_statistic(sample: Array, ordered: Array) -> float:
    """D of a sample against a sorted reference, by numpy.searchsorted."""
    sample = np.sort(sample)
    below = np.searchsorted(sample, sample, side="right") / sample.size
    at = np.searchsorted(ordered, sample, side="right") / ordered.size
    before = np.searchsorted(sample, sample, side="left") / sample.size
    until = np.searchsorted(ordered, sample, side="left") / ordered.size
    return float(max(np.abs(below - at).max(), np.abs(before - until).max()))


def mean_seconds(work: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """The seconds of a call, as the mean of some that follow each other and one that is not measured."""
    work()
    start = clock()
    for _ in range(calls):
        work()
    return (clock() - start) / calls


def forget_pvalues() -> None:
    """Let the next call compute its p-values, as the first one of a process does."""
    null._memory.cache_clear()
    null._dense_table.cache_clear()


def main() -> int:
    """Print how many times as fast as scipy ks_2samp is if calls follow each other."""
    parser = argparse.ArgumentParser(description="ks_2samp in calls that follow each other, and loops over scipy")
    parser.add_argument("--turns", type=int, default=7, help="of each shape, of which the medians are printed")
    turns = parser.parse_args().turns
    print(
        f"medians of {turns} turns: scipy by its processor time, ks_2samp with two threads by the clock and with one "
        f"by its processor time; load {os.getloadavg()[0]:.1f}"
    )
    for shape, to_reach in SHAPES.items():
        print(f"{shape[0]:,} x {shape[1]:,}, {shape[2]:,} (to reach: {to_reach})")
        workload = _columns(COLUMNS, *shape)
        for threads in (2, 1):
            _print_line(workload, threads, turns, calls=60 if shape[1] < 10_000 else 8)
    return 0


def _print_line(workload: Workload, threads: int, turns: int, calls: int) -> None:
    """A turn is a loop over scipy, then calls of ks_2samp, then such that compute all p-values anew.

    scipy has one thread, so its processor time is what its loop takes where no other process is at work. Ours gets
    nothing of that kind with two threads, which wait for each other: what disturbs it counts against it.
    """
    ours, loop = workload.contenders["ours"], workload.contenders["scipy"]
    clock = time.perf_counter if threads > 1 else time.thread_time
    seconds: dict[str, list[float]] = {"scipy": [], "ks_2samp": [], "with all p-values computed anew": []}
    theirs, again, first = seconds.values()
    torch.set_num_threads(threads)
    for _ in range(turns):
        start = time.thread_time()
        loop.run(0)
        theirs.append((time.thread_time() - start) * loop.scale)
        again.append(mean_seconds(partial(ours.run, 0), calls, clock))
        first.append(mean_seconds(partial(_first_call, ours), calls, clock))
    print(f"  threads: {threads}; scipy {statistics.median(theirs) * 1e3:,.0f} ms", end="")
    for name, of_turns in list(seconds.items())[1:]:
        ratio = Ratio.of(theirs, of_turns)
        print(f"; {name} {statistics.median(of_turns) * 1e3:.3g} ms, x {ratio.median:.0f}", end="")
        print(f" ({ratio.low:.0f} to {ratio.high:.0f})", end="")
    print(flush=True)


def _first_call(ours: Contender) -> None:
    forget_pvalues()
    ours.run(0)


if __name__ == "__main__":
    sys.exit(main())
