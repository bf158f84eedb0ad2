"""Memory and devices: scratch memory while torch holds all of it, and devices that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kslottery_fast import ops

MIB = 1 << 20

ONLY_THE_SECOND_DEVICE = """
import ctypes
import torch
from kslottery_fast import RowAdamW, ops

driver = ctypes.CDLL("libcuda.so.1")

def has_context(device):
    flags, active = ctypes.c_uint(), ctypes.c_int()
    assert driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
    return bool(active.value)

where = torch.device("cuda", 1)
before = torch.randn(50, 576, device=where)
torch.cuda.synchronize(where)
print("torch alone:", has_context(0))
if not has_context(0):
    ops.ks_statistics(before, before + 1)
    ops.ks_decide(before, before + 1, 30)
    ops.ks_rows(before, before[:, :500] + 1)
    slots = torch.full((50,), -1, dtype=torch.int32, device=where)
    slots[3] = 0
    rows, ids = before[:1].clone().requires_grad_(), torch.tensor([1, 3, 3], device=where)
    ops.row_embedding(before, rows, slots, ids).sum().backward()
    RowAdamW([rows], capturable=True, nonfinite="skip").step()
    torch.cuda.synchronize(where)
    assert not has_context(0), "an op has made a context on device 0"
    assert torch.cuda.current_device() == 0
    print("no context on device 0")
"""


def test_a_process_that_uses_the_second_device_alone_has_no_context_on_the_first(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    command = [sys.executable, "-c", ONLY_THE_SECOND_DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    if "torch alone: True" in done.stdout:
        pytest.skip("torch itself makes a context on the first device")
    assert "no context on device 0" in done.stdout


def take_all(gpu):
    """Let torch's allocator take all memory of the device. All but the last piece may be given back to it."""
    pieces, size = [], 1 << 34
    while size >= MIB:
        try:
            pieces.append(torch.empty(size, dtype=torch.uint8, device=gpu))
        except torch.OutOfMemoryError:  # noqa: PERF203
            size //= 2
    return pieces


@pytest.mark.parametrize("sizes", [(33_000, 40_000), (300_000, 200_000)])
def test_long_rows_find_memory_in_what_torch_holds(gpu, sizes):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, size, generator=generator) for size in sizes)
    expected = ops.ks_rows(x, y + 0.02)
    there = x.to(gpu), y.to(gpu) + 0.02
    pieces = take_all(gpu)
    try:
        assert torch.cuda.mem_get_info(gpu)[0] < 64 * MIB, "torch did not take the memory"
        pieces.clear()  # free, but still torch's
        assert torch.cuda.mem_get_info(gpu)[0] < 64 * MIB
        for ours, theirs in zip(ops.ks_rows(*there), expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0)
    finally:
        pieces.clear()
        torch.cuda.empty_cache()


def test_memory_that_was_used_is_given_back(gpu):
    x, y = torch.randn(20, 300_000, device=gpu), torch.randn(20, 300_000, device=gpu)
    ops.ks_rows(x, y)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(gpu)[0]
    for _ in range(20):
        ops.ks_rows(x, y)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert free - torch.cuda.mem_get_info(gpu)[0] < 64 * MIB
