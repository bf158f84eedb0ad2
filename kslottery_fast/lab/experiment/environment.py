"""Where and how a stage was made: versions, CPU, kernels, memory. Recorded with the stage, never made up afterwards."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.memory import peak_memory_bytes
from kslottery_fast.base.version import installed_version
from kslottery_fast.ops import native

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy", "sacrebleu", "safetensors")


def snapshot(command: str, *, own_peak: bool = False) -> dict[str, Any]:
    """Describe this process, now, as JSON takes it; ``own_peak``: the peak of memory was started anew before it."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "peak_memory_mb": round(peak_memory_bytes() / 1e6),
        "peak_memory_of": "stage" if own_peak else "process",
        "python": platform.python_version(),
        "packages": _versions(),
        "system": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "kernels": native.info(),
        },
    }


def _versions() -> dict[str, str]:
    versions = {"kslottery-fast": installed_version(), **{name: metadata.version(name) for name in _PACKAGES}}
    with contextlib.suppress(metadata.PackageNotFoundError):  # optional
        versions["peft"] = metadata.version("peft")
    return versions


def combined(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of a run from those of its stages: the first, the largest memory, and what else was different.

    >>> combined([{"system": "a", "peak_memory_mb": 5}, {"system": "b", "peak_memory_mb": 7}])
    {'system': 'a', 'peak_memory_mb': 7, 'resumed_on': [{'system': 'b'}]}
    """
    first, *rest = snapshots
    peak = max(record["peak_memory_mb"] for record in (first, *rest))
    others: list[dict[str, Any]] = []
    for record in rest:
        parts = [name for name in ("python", "packages", "system") if name in record]
        different = {name: record[name] for name in parts if record[name] != first[name]}
        if different and different not in others:
            others.append(different)
    common = {name: value for name, value in first.items() if name != "peak_memory_of"}
    return {**common, "peak_memory_mb": peak} | ({"resumed_on": others} if others else {})


def cpu_name() -> str:
    """The CPU's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
