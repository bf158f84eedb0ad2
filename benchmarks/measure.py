"""Timing: contenders take turns in one run (A B A B). The median and the 20% and 80% points of each are reported."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast import ops


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    ``run`` gets the number of the turn, so that it can pick another set of inputs each time. It does 1 / ``scale`` of
    the work of the others, for example scipy 50 rows of 32,000. With ``waits``, the work on a GPU ends with its result
    on the host. It is then timed by the host's clock from an idle device on, its Python included. Otherwise only the
    device's part is timed.
    """

    run: Callable[[int], object]
    scale: float = 1.0
    waits: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds for the whole work: median, 20% and 80% points over the turns."""

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Make a timing from the seconds of each turn.

        >>> Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
        Timing(median=3.5, low=2.0, high=5.0, turns=6)
        """
        ordered = sorted(seconds)
        low = round(0.2 * (len(ordered) - 1))
        return cls(statistics.median(ordered), ordered[low], ordered[-1 - low], len(ordered))


def take_turns(contenders: Mapping[str, Contender], turns: int, calls: int = 1) -> dict[str, Timing]:
    """Let all run once unmeasured, then `turns` times one after the other, `calls` calls in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "no row is selected" is one of the timed cases
            for turn in range(-1, turns):
                for name, contender in contenders.items():
                    start = time.perf_counter()
                    for call in range(calls):
                        contender.run((turn + 1) * calls + call)
                    if turn >= 0:
                        seconds[name].append((time.perf_counter() - start) * contender.scale / calls)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in seconds.items()}


def pin(threads: int) -> int:
    """Keep this process on that many CPUs (at most all), one torch thread for each. Return the number of threads."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, cpus)
        threads = len(cpus)
    torch.set_num_threads(threads)
    return threads


def cpu_name() -> str:
    """The name of the CPU from /proc/cpuinfo, or else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    """What a program prints. Empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def commit() -> str:
    """The commit of these sources, from KSL_COMMIT in the environment (for a copy without .git) or from git."""
    if named := os.environ.get("KSL_COMMIT"):
        return named
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    changed = output_of(*git, "status", "--porcelain")
    return (output_of(*git, "rev-parse", "HEAD") or "unknown") + (" with changes" if changed else "")


def machine() -> dict[str, Any]:
    """What a reader needs to know to compare numbers."""
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": ops.info()["isa"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "load": os.getloadavg()[0],
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
