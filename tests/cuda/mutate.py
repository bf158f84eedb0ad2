"""Plant faults in the CUDA KS kernels, one token each, and see that the tests of this folder catch every one.

    python tests/cuda/mutate.py            all of them, ten minutes or so
    python tests/cuda/mutate.py 3 7        some, by their numbers

Works on a copy of the sources in build/mutants. Prints which test caught each fault; exit code 1 if one escaped, or if
the copy without a fault does not pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import shim_module

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "mutants"
TESTS = "tests/cuda/test_ks_cuda.py"


class Fault(NamedTuple):
    """In a file of csrc/cuda: the only place that reads `line`, where `old` becomes `new`."""

    file: str
    line: str
    old: str
    new: str


FAULTS = (
    Fault("ks_loops.cuh", "for (int j = 0; j < part.nx; ++j) at += keys[j] <= keys[i];", "<= keys[i]", "< keys[i]"),
    Fault("ks_loops.cuh", "max(at + count.x, count.y - at) > best", "count.y - at", "count.y + at"),
    Fault("ks_loops.cuh", "bounds.lower = max(bounds.lower, abs(at + count.x - count.y));", "abs(at +", "abs(at -"),
    Fault("ks_loops.cuh", "if (bucket >= from && mine == kBuckets", ">= from", "> from"),
    Fault("ks_loops.cuh", "if (slot != kNoSlot) shared.keys[atomicAdd(&slot, 0x10000u) >> 16]", ">> 16", ">> 15"),
    Fault("ks_input.cuh", "if (begin(v) < n) vector = __ldcs(vectors + v * kThreads);", "< n", "<= n"),
    Fault("ks_input.cuh", "nan |= (bits & kMagnitude<T>) > BitsOf<T>::kInfinity;", "> BitsOf", ">= BitsOf"),
    Fault("ks_maps.cuh", "return key >= low && key <= high;", ">= low", "> low"),
    Fault("ks_maps.cuh", "while ((high - low) >> shift >= static_cast<key_t<T>>(kBuckets)) ++shift;", ">= st", "> st"),
    Fault("ks_zoom.cuh", "if (key < low || key > high) return;", "key > high", "key >= high"),
    Fault("ks_zoom.cuh", "frame = {low, high, large.y, 0};", "large.y", "large.x"),
    Fault("ks_engine.cuh", "block.best > problem.floor ? block.best : 0", "> problem", ">= problem"),
    Fault("ks_engine.cuh", "problem.decided[r] = !nan && block.best >= problem.stop;", ">= problem", "> problem"),
    Fault("ks_sort.cuh", "if (keys[middle] <= key) {", "<= key", "< key"),
    Fault("ks_sort.cuh", "return at < other.at;", "< other", "> other"),
)


def copy_sources() -> None:
    """What the shim is built from; files that did not change keep their times, so that little is built again."""
    for folder in ("csrc", "tests/cuda"):
        for source in (ROOT / folder).rglob("*"):
            target = COPY / source.relative_to(ROOT)
            if source.is_file() and (not target.exists() or target.read_bytes() != source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def failing_test() -> str | None:
    """Build the copy and run the tests on it: the first test that fails, or None."""
    environment = {**os.environ, "KSL_SHIM": str(shim_module.build(COPY))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return failed[1] if failed else f"exit code {done.returncode}"


def main(numbers: list[int]) -> int:
    """Run the command line; the exit code."""
    copy_sources()
    if not numbers and (broken := failing_test()):
        print(f"without a fault: {broken} fails")
        return 1
    escaped = 0
    for number, fault in enumerate(FAULTS, start=1):
        if numbers and number not in numbers:
            continue
        path = COPY / "csrc" / "cuda" / fault.file
        text = path.read_text()
        if text.count(fault.line) != 1 or fault.line.count(fault.old) != 1:
            raise SystemExit(f"fault {number}: {fault.file} does not read {fault.line!r} exactly once")
        path.write_text(text.replace(fault.line, fault.line.replace(fault.old, fault.new)))
        try:
            caught = failing_test()
        finally:
            path.write_text(text)
        escaped += caught is None
        print(f"{number:2} {fault.file}: {fault.old} -> {fault.new}: {caught or 'NOT CAUGHT'}", flush=True)
    print("every fault was caught" if not escaped else f"{escaped} faults were not caught")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
