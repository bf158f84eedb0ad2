"""Conflicts of shared memory's banks in the KS kernels, as Nsight Compute counts them. Skipped where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from gpu_bank_counts import metrics_of
from gpu_programs import search_path

# Of loads alone: the atomics of the counts meet at random, which no layout prevents.
WAVEFRONTS = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum"
ATOMICS = "smsp__inst_executed_op_shared_atom.sum"
ALLOWED = 0.05  # of the wavefronts: single words that all threads read, and the sample's exchange
WORK = """
import sys
import torch
from kslottery_fast import ops

before = torch.randn(2_000, 4_096, device="cuda")
after = before + 0.3 * torch.randn_like(before) + 0.2
ops.ks_decide(before.to(getattr(torch, sys.argv[1])), after.to(getattr(torch, sys.argv[1])), 123)
torch.cuda.synchronize()
"""


def counted(dtype: str) -> dict[str, float]:
    """The sums of the metrics over the kernel of one ks_decide."""
    program = shutil.which("ncu", path=search_path())
    if program is None:
        pytest.skip("ncu is not installed")
    metrics = ",".join((WAVEFRONTS, CONFLICTS, ATOMICS))
    options = ["--clock-control", "none", "--csv", "--metrics", metrics, "--kernel-name", "regex:ks_bucket_rows"]
    command = [program, *options, sys.executable, "-c", WORK, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=dict(os.environ))
    if not (sums := metrics_of(done.stdout)):
        pytest.skip(f"ncu cannot read the counters here: {' '.join((done.stdout + done.stderr).split())[-200:]}")
    return sums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_scan_of_the_buckets_has_no_bank_conflicts(gpu, dtype):
    sums = counted(dtype)
    print(dtype, sums)
    assert sums[WAVEFRONTS] > 0
    assert sums[CONFLICTS] <= ALLOWED * sums[WAVEFRONTS], sums
