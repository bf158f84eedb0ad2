"""The machine code that nvcc made of the kernels, on any machine with nvcc. The module needs no driver."""

from __future__ import annotations

import importlib.util
import re
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


def test_no_kernel_of_ours_spills_registers(kernels):
    assert {kernel.architecture for kernel in kernels} == ARCHITECTURES
    ours = [kernel for kernel in kernels if "3ksl4cuda" in kernel.name and "3cub" not in kernel.name]
    assert len(ours) > 100
    assert [kernel for kernel in ours if kernel.spilled] == []


def block_of(kernel):
    """Bytes of a value and threads of a block, from the mangled name of a bucket kernel; None of other kernels."""
    block = re.search(r"ks_bucket_rowsI\w*?5BlockI(f|d|NS\d?_\d+B?Float16E)Li(\d+)ELb", kernel.name)
    return block and ({"f": 4, "d": 8}.get(block[1], 2), int(block[2]))


def resident_threads(kernel, threads, shared_memory):
    """How many threads a multiprocessor runs at the same time, which is the narrowest of its limits.

    Registers are given out by 256 a warp, 65,536 in all; shared memory by 128 bytes, and 1 KB a block is CUDA's own.
    """
    by_registers = 65_536 // (-(-kernel.registers // 8) * 8 * threads)
    by_shared = shared_memory // (-(-kernel.shared // 128) * 128 + 1_024)
    return threads * min(by_registers, by_shared, 2_048 // threads, 32)


LEAST = {  # threads on a multiprocessor, see docs/performance-notebook.md: (bytes of a value, threads of a block)
    "228 KB": {(2, 64): 832, (8, 512): 512, **dict.fromkeys([(8, 64), (8, 128), (8, 256)], 768)},
    "164 KB": {
        (2, 64): 576,
        (2, 128): 768,
        (4, 64): 768,
        (8, 512): 512,
        **dict.fromkeys([(8, 64), (8, 128), (8, 256)], 768),
    },
}  # 1,024 of all others


def test_as_many_threads_as_the_launch_bounds_promise_fit_a_multiprocessor_where_shared_memory_allows_it(kernels):
    bucket = [kernel for kernel in kernels if block_of(kernel)]
    assert {block_of(kernel) for kernel in bucket} == {(size, n) for size in (2, 4, 8) for n in (64, 128, 256, 512)}
    for kernel in bucket:
        memory = 164 if kernel.architecture == "sm_80" else 228
        least = LEAST[f"{memory} KB"].get(block_of(kernel), 1_024)
        assert resident_threads(kernel, block_of(kernel)[1], memory * 1_024) >= least, kernel


def test_threads_on_a_multiprocessor_are_counted_by_every_limit(resources):
    def threads(registers, shared, block, memory=228 * 1024):
        return resident_threads(resources.Kernel("k", "sm_90", registers, 0, shared), block, memory)

    assert threads(64, 0, 256) == 1_024
    assert threads(65, 0, 256) == 768  # as if there were 72
    assert threads(32, 56 * 1024, 256) == 4 * 256
    assert threads(32, 56 * 1024 + 1, 256) == 3 * 256
    assert (threads(16, 0, 1_024), threads(16, 0, 32)) == (2_048, 1_024)


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
