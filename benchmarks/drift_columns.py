"""A drift job in three ways: a loop over scipy, ks_frames, and ks_frames on parquet files.

    python -m benchmarks.drift_columns            prints a table; --quick for smaller tables

The tables are DataFrames of pandas. The three take turns in one process, and the median of each is shown. All give
the same statistics, up to the last digit, where scipy rounds differently.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from benchmarks.machine import pin
from benchmarks.measure import Contender, take_turns
from kslottery_fast import ks_frames

CASES = {
    "1,000 columns of 2,000 and 1,500 rows": (1000, 2000, 1500),
    "200 columns of 100,000 and 80,000 rows": (200, 100_000, 80_000),
    "20 columns of 1,000,000 and 1,000,000 rows": (20, 1_000_000, 1_000_000),
}
QUICK = {"50 columns of 2,000 and 1,500 rows": (50, 2000, 1500)}


def tables(columns: int, n: int, m: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables of normal values, of which the second has moved in every tenth column."""
    rng = np.random.default_rng(0)
    names = [f"column {number}" for number in range(columns)]
    moved = np.where(np.arange(columns) % 10, 0.0, 0.2)
    return (
        pd.DataFrame(rng.normal(size=(n, columns)), columns=names),
        pd.DataFrame(rng.normal(moved, size=(m, columns)), columns=names),
    )


def loop(reference: pd.DataFrame, current: pd.DataFrame) -> list[float]:
    """What a drift job does without this package."""
    return [
        float(scipy.stats.ks_2samp(reference[name].dropna(), current[name].dropna(), method="asymp").statistic)
        for name in reference
    ]


def measure(columns: int, n: int, m: int, turns: int) -> dict[str, float]:
    """Return the median seconds of each way, and check that all find the same statistics."""
    reference, current = tables(columns, n, m)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.parquet") for name in ("reference", "current")]
        for table, path in zip((reference, current), paths, strict=True):
            table.to_parquet(path)
        expected = loop(reference, current)
        for found in (ks_frames(reference, current, method="asymp"), ks_frames(*paths, method="asymp")):
            assert np.allclose([test.statistic for test in found], expected, rtol=1e-12, atol=0)
        ways = {
            "loop over scipy": Contender(lambda _: loop(reference, current)),
            "ks_frames": Contender(lambda _: ks_frames(reference, current, method="asymp")),
            "ks_frames, parquet": Contender(lambda _: ks_frames(*paths, method="asymp")),
        }
        return {name: timing.median for name, timing in take_turns(ways, turns).items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, for a test of this program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print(f"{pin(options.threads)} threads, median of {options.turns} turns, seconds")
    for case, sizes in (QUICK if options.quick else CASES).items():
        seconds = measure(*sizes, options.turns)
        slowest = seconds["loop over scipy"]
        print(case)
        for name, value in seconds.items():
            print(f"  {name:20} {value:8.3f}  {slowest / value:6.1f} x")


if __name__ == "__main__":
    main()
