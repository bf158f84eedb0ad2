"""The environment of a stage: versions, CPU, kernels and memory, recorded while the stage is made."""

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
    """Describe this process now, as values that JSON can hold.

    Parameters
    ----------
    command : str
        The command line.
    own_peak : bool
        Whether the peak memory was reset before the stage. If not, it is the peak of the whole process.
    """
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
    """Combine the records of all stages into one for the run.

    It is the first record with the largest peak memory. ``resumed_on`` lists what differed in other records.

    Examples
    --------
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
    """The name of the CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
