"""What only a real GPU can show; `make gpu` runs it, a plain `pytest` does not collect it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kslottery_fast import ops

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "ops"))  # ks_cases


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Collected where this folder or a file of it is asked for by name."""
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    return None if any(HERE in (path, *path.parents) for path in asked) else True


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first device, with our kernels and not the reference in their place."""
    if not torch.cuda.is_available():
        pytest.fail("tests/gpu needs a CUDA device, and torch finds none")
    info = ops.info()
    assert info["cuda"], info["cuda_reason"]
    return torch.device("cuda", 0)
