"""Compare the KS kernels with scipy and a brute-force oracle on random and adversarial rows, for a given time.

    python tests/ops/fuzz_ks.py --seconds 60 --seed 0

Every instruction set that this CPU has gets its share of the time, in a process of its own. Prints the rows
checked and the differences; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import scipy.stats
import torch
from ks_cases import CASES, DTYPES, LAYOUTS, SIZES, Expected, expected, lay_out, make_pair

from kslottery_fast import ks_2samp, ops
from kslottery_fast.base.errors import InputError

ISAS = ("avx512", "avx2", "baseline")
VALUES_PER_BATCH = 60_000
ROWS_PER_BATCH = 400
SCIPY_ROWS_PER_BATCH = 6
EXACT_UP_TO = 200_000
PVALUE_RTOL = 1e-10
SUBNORMAL = 5e-324  # the unit of the last p-values before 0, where no relative accuracy is left


def check_batch(rng: np.random.Generator) -> tuple[int, int, list[str]]:
    """One random batch: rows checked against the oracle, rows checked against scipy itself, differences."""
    case = str(rng.choice(list(CASES)))
    n = int(rng.choice(SIZES)) if rng.random() < 0.97 else int(rng.integers(4097, 70_000))
    m = n if rng.random() < 0.7 else int(rng.choice(SIZES))
    dtypes = DTYPES[rng.integers(4)], DTYPES[rng.integers(4)]
    if rng.random() < 0.7:
        dtypes = dtypes[0], dtypes[0]
    rows = max(1, min(ROWS_PER_BATCH, VALUES_PER_BATCH // (n + m)))
    layouts = str(rng.choice(LAYOUTS)), str(rng.choice(LAYOUTS))
    threads = int(rng.integers(1, 3))
    x, y = make_pair(case, rng, rows, n, m, dtypes)
    shared = int(rng.integers(2)) if rng.random() < 0.2 else None  # which sample is the same for all rows
    if shared is not None:
        x, y = (sample[:1].repeat(rows, 1) if shared == i else sample for i, sample in enumerate((x, y)))
    want = expected(x, y)
    x, y = lay_out(x, layouts[0]), lay_out(y, layouts[1])
    if shared is not None:
        x, y = (sample[:1].expand_as(sample) if shared == i else sample for i, sample in enumerate((x, y)))
    torch.set_num_threads(threads)
    where = f"{case}, n={n}, m={m}, {dtypes}, {layouts}, shared {shared}, {threads} threads"
    differences = []

    def compare(what: str, got: torch.Tensor, wanted: np.ndarray) -> None:
        if not np.array_equal(got.numpy(), wanted, equal_nan=wanted.dtype.kind == "f"):
            row = int(np.flatnonzero(got.numpy() != wanted)[0])
            differences.append(f"{where}: {what}[{row}] is {got[row]}, expected {wanted[row]}")

    for sides in ops.schemas.SIDES:
        for name, got, wanted in zip(want._fields, ops.ks_rows(x, y, sides), of_sides(x, y, want, sides), strict=True):
            compare(f"ks_rows {sides} {name}", got, wanted)
    for integers in (as_integers(x, y), as_integers(x, y, torch.uint64)):
        for name, got, wanted in zip(
            want._fields, ops.ks_rows(*integers), ops.reference.ks_rows(*integers), strict=True
        ):
            compare(f"ks_rows of {integers[0].dtype} {name}", got, wanted.numpy())
    if n == m:
        h = np.maximum(want.plus, want.minus)
        got_h, flags = ops.ks_statistics(x, y)
        compare("ks_statistics h", got_h, h)
        compare("ks_statistics flags", flags, want.flags)
        some = int(h[rng.integers(rows)])
        for threshold in {0, 1, n, n + 1, some, some + 1, some - 1, int(1.92 * n**0.5)}:
            decided, flags = ops.ks_decide(x, y, threshold)
            compare(f"ks_decide at {threshold}", decided, (h >= threshold) & (h >= 0))
            compare("ks_decide flags", flags, want.flags)
            from_there, flags = ops.ks_statistics(x, y, threshold)
            compare(f"ks_statistics from {threshold}", from_there, np.where((h < 0) | (h >= threshold), h, 0))
            compare("ks_statistics flags", flags, want.flags)
    checked = rng.choice(rows, min(rows, SCIPY_ROWS_PER_BATCH), replace=False)
    for row in checked:
        differences += compare_with_scipy(x[row], y[row], f"{where}, row {row}")
    return rows, len(checked), differences


def as_integers(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, ...]:
    """Integers in the order of the values, beyond 2^53 where doubles are: the bits of the values."""
    pair = []
    for sample in (x, y):
        bits = sample.double().view(torch.int64)
        ordered = torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits)
        pair.append(ordered if dtype == torch.int64 else (ordered ^ torch.iinfo(torch.int64).min).view(dtype))
    return tuple(pair)


def of_sides(x: torch.Tensor, y: torch.Tensor, want: Expected, sides: str) -> list[np.ndarray]:
    """What is left of the expected results if these sides are asked for."""
    outputs = [torch.from_numpy(field.copy()) for field in want]
    ops.reference.show_sides(x, y, sides, tuple(outputs))
    return [output.numpy() for output in outputs]


def deep_pvalue(n: int, h: int, alternative: str) -> float:
    """The exact p-value of D = h / n for two samples of n, where it is next to nothing.

    scipy multiplies the same factors, but a product of a few units of the smallest float rounds to itself.
    """
    one_sided = math.fsum(math.log((n - j) / (n + j + 1)) for j in range(h))
    return math.exp(one_sided + math.log(2)) if alternative == "two-sided" else math.exp(one_sided)


def compare_with_scipy(x: torch.Tensor, y: torch.Tensor, where: str) -> list[str]:
    """All that scipy reports about one row."""
    differences = []
    n, m = len(x), len(y)
    # scipy counts lattice paths one by one for unequal sizes; for equal ones it has a closed form.
    method = "exact" if n == m or n * m <= EXACT_UP_TO else "asymp"
    for alternative in ("two-sided", "less", "greater"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            want = scipy.stats.ks_2samp(x.double().numpy(), y.double().numpy(), alternative=alternative, method=method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            got = ks_2samp(x, y, alternative=alternative, method=method)
        # Where rounding takes scipy's exact value above 1 it warns and gives the asymptotic one; ours stays exact.
        gave_up = any("Switching to method=asymp" in str(warning.message) for warning in caught)
        for field in ("statistic", "statistic_location", "statistic_sign", "pvalue"):
            a, b = float(getattr(got, field)), float(getattr(want, field))
            if field == "pvalue" and method == "exact" and n == m and b < sys.float_info.min:
                b = deep_pvalue(n, round(float(want.statistic) * n), alternative)
            # The statistic is a multiple of 1 / (n m); scipy subtracts two rounded quotients, so its last bit is off.
            tolerance = {"statistic": 4e-16, "pvalue": max(PVALUE_RTOL * b, 2 * SUBNORMAL)}.get(field, 0.0)
            if field == "pvalue" and gave_up:
                continue
            if not (abs(a - b) <= tolerance or a == b or (np.isnan(a) and np.isnan(b))):
                differences.append(f"{where}: {alternative} {method} {field} is {a!r}, scipy has {b!r}")
    return differences


def fuzz(seconds: float, seed: int) -> dict[str, object]:
    """Check batches until the time is over."""
    rng = np.random.default_rng(seed)
    end = time.monotonic() + seconds
    rows, by_scipy, differences = 0, 0, []
    while time.monotonic() < end:
        checked, scipy_checked, found = check_batch(rng)
        rows, by_scipy = rows + checked, by_scipy + scipy_checked
        differences += found
    return {"isa": ops.info()["isa"], "rows": rows, "scipy_rows": by_scipy, "differences": differences}


def supported(isa: str) -> bool:
    """Whether this CPU runs these kernels."""
    code = "from kslottery_fast.ops import info; info()"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "KSL_ISA": isa}, capture_output=True, check=False
    )
    return run.returncode == 0


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", action="store_true", help="only the instruction set of KSL_ISA, JSON on stdout")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(fuzz(arguments.seconds, arguments.seed)))
        return 0
    if not ops.info()["native"]:
        raise InputError(f"there are no native kernels to test: {ops.info()['error']}")
    isas = [isa for isa in ISAS if supported(isa)]
    rows, failed = 0, False
    for number, isa in enumerate(isas):
        command = [sys.executable, __file__, "--one", "--seconds", str(arguments.seconds / len(isas))]
        command += ["--seed", str(arguments.seed * len(ISAS) + number)]
        run = subprocess.run(command, env={**os.environ, "KSL_ISA": isa}, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(run.stdout)
        found = result["differences"]
        print(f"{isa:9} {result['rows']:9,} rows, {result['scipy_rows']:7,} by scipy too: {len(found)} differences")
        print(*found[:10], sep="\n", end="\n" if found else "")
        rows, failed = rows + result["rows"], failed or bool(found)
    print(
        f"{rows:,} rows checked with seed {arguments.seed}: {'DIFFERENCES, see above' if failed else 'no difference'}"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
