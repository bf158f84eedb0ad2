"""The CUDA kernels on a machine without a GPU: executed on the CPU by the shim in tests/cuda/shim."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import shim_module

from kslottery_fast.ops import kernels, native

sys.path.append(str(Path(__file__).parent.parent / "ops"))  # ks_cases


@pytest.fixture(scope="session")
def shim() -> ModuleType:
    """The module ksl_shim: the functions of kslottery_fast._C.cuda on the CPU, set_seed, probe.

    KSL_SHIM in the environment names one that is built already.
    """
    built = os.environ.get("KSL_SHIM")
    return shim_module.load(Path(built) if built else shim_module.build())


@pytest.fixture
def cuda(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """kslottery_fast.ops.kernels as it runs for CUDA tensors, but on CPU tensors, through the shim."""
    monkeypatch.setattr(native, "caller", lambda device: native.Caller(shim, 0, 0))
    yield kernels
    shim.set_seed(0)


@pytest.fixture(params=[0, 1], ids=["in order", "any order"])
def seeded(request: pytest.FixtureRequest, shim: ModuleType, cuda: ModuleType) -> ModuleType:
    """The kernels with their threads in one order or another."""
    shim.set_seed(request.param)
    return cuda
