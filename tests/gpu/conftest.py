"""Tests of what only a real GPU can show. `make gpu` runs them, and a plain `pytest` does not collect them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kslottery_fast import ops

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "ops"))  # ks_cases


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Collect the tests only if this folder or one of its files is named."""
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    return None if any(HERE in (path, *path.parents) for path in asked) else True


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first device, with the native kernels and not with the reference."""
    if not torch.cuda.is_available():
        pytest.fail("tests/gpu needs a CUDA device, and torch finds none")
    info = ops.info()
    assert info["cuda"], info["cuda_reason"]
    return torch.device("cuda", 0)
