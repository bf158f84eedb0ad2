"""Whether several processes made the same stages as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = ("--arms", "partial@4,full", "--seed", "0", "--effects", "0")
SMALL_STAGES = 1 + 4 * 3 + 1
"""The corpus; the untuned model and three arms, each with two scores; the certificate."""


def contents(stage: Path) -> dict[str, Any]:
    """The files of a stage by name, without the record of its time."""
    files = [path for path in stage.rglob("*") if path.is_file() and path.name != "stage.json"]
    return {str(path.relative_to(stage)): parts(path) for path in files}


def parts(path: Path) -> Any:
    """The bytes of a file. The library writes the metadata of safetensors in any order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    size, header = int.from_bytes(path.read_bytes()[:8], "little"), path.read_bytes()[8:]
    return json.loads(header[:size]), header[size:]


def assert_same_stages(output: Path, finished: Path, count: int) -> None:
    stages = sorted(path.name for path in (output / "stages").iterdir())
    assert len(stages) == count
    for name in stages:
        assert contents(output / "stages" / name) == contents(finished / "stages" / name), name
    assert not (output / "claims").exists()
    assert not list(output.rglob("*.tmp"))
