"""What nvcc made of the kernels, on any machine that has nvcc; and that the module needs no driver."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from kslottery_fast.ops import native

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}


@pytest.fixture(scope="module")
def resources():
    """csrc/cuda/resources.py."""
    spec = importlib.util.spec_from_file_location("resources", ROOT / "csrc" / "cuda" / "resources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels(resources):
    """The resource report of the build that this Python uses."""
    if reason := native.module().cuda_reason:
        pytest.skip(f"there are no CUDA kernels to check: {reason}")
    return resources.report_of(ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-release")


def test_no_kernel_spills_registers_on_any_architecture(kernels):
    assert {kernel.architecture for kernel in kernels} == ARCHITECTURES
    assert [kernel for kernel in kernels if kernel.spilled] == []


def test_the_blocks_that_the_launch_bounds_promise_fit_a_multiprocessor(kernels):
    bucket = [kernel for kernel in kernels if "ks_bucket_rows" in kernel.name]
    assert bucket
    for kernel in bucket:
        floats = "BlockId" not in kernel.name
        assert kernel.registers <= (64 if floats else 128)
        assert kernel.shared <= 48 * 1024


def test_a_report_is_read_as_ptxas_writes_it(resources):
    (kernel,) = resources.kernels(
        "ptxas info    : 28 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1kv\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 26128 bytes smem\n"
    )
    assert kernel == ("_Z1kv", "sm_90", 64, 12, 26128)


def test_the_module_brings_the_cuda_runtime_and_loads_without_a_driver():
    library = Path(native.module().__file__).read_bytes()
    assert b"libcudart.so" not in library
    if native.module().cuda_reason:
        assert not hasattr(native.module(), "cuda")
    elif not torch.cuda.is_available():
        assert native.info()["cuda"] is False
        assert native.info()["cuda_reason"] != ""
        assert native.module().cuda.unavailable() != ""
