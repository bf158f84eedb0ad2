"""The machine that a benchmark runs on: what a reader needs to know about it, and its CPUs."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from kslottery_fast import ops


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
