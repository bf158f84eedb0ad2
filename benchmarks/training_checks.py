"""What a training step needs in memory beyond the frozen model's, and whether its losses are PEFT's.

    python -m benchmarks.training_checks [--quick]

A memory figure is the peak of a process of its own, from the loaded model to the end of the third step. Those of the
frozen model and of ours are medians of five processes. Linux can reset VmHWM, the highest resident size, for that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from .machine import pin
from .training_workloads import (
    BOTH,
    BOTH_TABLES,
    MAKE,
    TABLES,
    WIDTH,
    K,
    batch,
    cases,
    llama,
    peers_of,
    role,
    step,
    tokens,
)

MIB = 1 << 20
LOSS_STEPS, LOSS_BOUND = 50, 1e-5
PROCESSES = 5  # of the floor and of ours, whose median peaks are compared


def peak(name: str, V: int, case: str) -> int:
    """Bytes by which the process grew at most over three steps. Call it in a fresh process."""
    ids = tokens(V)
    model = llama(V, tied=case.startswith("tied"))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run = step(*MAKE[name](model, ids, role(case)), [batch(V, ids, 0), batch(V, ids, 1)])
    for turn in range(3):
        run(turn)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def in_a_process(name: str, V: int, case: str) -> int:
    """``peak`` of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_checks", "--peak", name, str(V), case]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))


def memory(V: int, case: str) -> dict[str, Any]:
    """Peaks of all contenders, and whether ours stays within its bound over the floor.

    One process of the same contender differs from the next by several MiB, about as much as the bound. So the two that
    the verdict compares take turns, and each has the median of its processes.
    """
    turns = [{name: in_a_process(name, V, case) for name in ("floor", "ours")} for _ in range(PROCESSES)]
    peaks = {name: int(statistics.median(turn[name] for turn in turns)) for name in ("floor", "ours")}
    peaks |= {name: in_a_process(name, V, case) for name in peers_of(case)}
    tables = 2 if role(case) == "own" else 1
    bound = tables * (16 * K * WIDTH + 8 * V) + 8 * MIB
    extra = peaks["ours"] - peaks["floor"]
    return {
        "check": "peak memory of a training step over the frozen model's",
        "shape": [V, WIDTH],
        "case": case,
        "peaks": peaks,
        "extra": extra,
        "bound": bound,
        "verdict": "met" if extra <= bound else "FALLS SHORT",
    }


def losses(V: int, case: str, steps: int = LOSS_STEPS) -> dict[str, Any]:
    """The largest difference between our losses and PEFT's, step by step."""
    ids = tokens(V)
    batches = [batch(V, ids, seed) for seed in range(4)]
    runs = []
    for name in ("ours", "peft"):
        model = llama(V, tied=case.startswith("tied"))
        run = step(*MAKE[name](model, ids, role(case)), batches)
        runs.append([run(turn) for turn in range(steps)])
        del model, run
    difference = max(abs(ours - theirs) for ours, theirs in zip(*runs, strict=True))
    return {
        "check": f"losses of {steps} steps against PEFT's",
        "shape": [V, WIDTH],
        "case": case,
        "difference": difference,
        "fell": runs[0][0] - runs[0][-1],
        "bound": LOSS_BOUND,
        "verdict": "met" if difference <= LOSS_BOUND else "FALLS SHORT",
    }


def text_of(record: dict[str, Any]) -> str:
    """One line."""
    head = f"{record['check']}, {record['shape'][0]:,} x {record['shape'][1]:,}, {record['case']}: "
    if "extra" in record:
        peaks = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in record["peaks"].items())
        extra = f"{record['extra'] / MIB:+.1f} MiB (at most {record['bound'] / MIB:.1f}; peaks in MiB: {peaks})"
        return f"{head}{extra}: {record['verdict']}"
    return f"{head}{record['difference']:.1e} (at most {record['bound']:.0e}): {record['verdict']}"


def run(*, quick: bool) -> list[dict[str, Any]]:
    """Print all checks while they run. Return their records."""
    records = []
    for V, case in cases(quick=quick):
        records.append(memory(V, case))
        print(text_of(records[-1]), flush=True)
    for V, case in ((TABLES[0], "tied, head follows"), (TABLES[0], "untied"), (BOTH_TABLES[0], BOTH)):
        records.append(losses(V, case, 5 if quick else LOSS_STEPS))
        print(text_of(records[-1]), flush=True)
    return records


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smaller table, and five steps of losses")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "V", "CASE"), help="print the bytes of one peak")
    arguments = parser.parse_args()
    pin(2)
    if arguments.peak:
        name, V, case = arguments.peak
        print(json.dumps(peak(name, int(V), case)))
        return 0
    return 1 if any(record["verdict"] != "met" for record in run(quick=arguments.quick)) else 0


if __name__ == "__main__":
    sys.exit(main())
