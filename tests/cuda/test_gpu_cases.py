"""The cases of tests/gpu that do not need a real GPU in every part, executed by the shim."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parent.parent / "gpu"
CPU = torch.device("cpu")


def load(name):
    spec = importlib.util.spec_from_file_location(name, GPU / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


first_calls, adamw_steps, bank_conflicts = map(load, ("gpu_first_calls", "gpu_adamw_steps", "gpu_bank_counts"))


def test_replayed_steps_are_the_same_as_one_cluster(cuda, shim, monkeypatch):
    ends = []
    for name in ("launches", "cluster"):
        monkeypatch.setenv("KSL_CUDA_ADAMW", name)
        steps = adamw_steps.Steps(CPU, 64, cuda.row_adamw_step_, tables=8)
        before = shim.launches_executed()
        adamw_steps.go(steps, steps.run, 4, 2)
        assert shim.launches_executed() == before + (4 if name == "cluster" else 8)
        ends.append(steps.written())
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("name", [name for name in first_calls.CASES if name != "ks_rows of long rows"])
def test_the_cases_of_first_calls_have_the_cpus_bits(shim, request, name):
    expected = first_calls.CASES[name](CPU)()
    request.getfixturevalue("cuda")  # from here on the ops are executed by the shim
    blocks = shim.blocks_executed()
    for ours, theirs in zip(first_calls.CASES[name](CPU)(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert shim.blocks_executed() > blocks


def test_replayed_steps_keep_count_of_themselves_and_of_bad_gradients(cuda):
    tiles = 40  # the shim runs four blocks at a time
    steps = adamw_steps.Steps(CPU, tiles, cuda.row_adamw_step_)
    ends = []
    for _ in range(2):
        steps.start_again()
        adamw_steps.go(steps, steps.run, 6, 3)
        ends.append(steps.written())
    assert all(map(torch.equal, *ends))
    assert not torch.equal(ends[0][0], adamw_steps.Steps(CPU, tiles, cuda.row_adamw_step_).tables[0])


def test_a_step_that_is_lost_is_noticed(cuda):
    steps = adamw_steps.Steps(CPU, 2, cuda.row_adamw_step_)
    with pytest.raises(AssertionError):
        adamw_steps.go(steps, lambda: None, 4, 2)


NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","ks_bucket_rows","a.sum","","1,234"
"0","1","ks_bucket_rows","b.sum","","5"
"1","1","ks_bucket_rows","a.sum","","6"
"""


def test_what_ncu_counts_is_summed_over_kernels_and_its_absence_noticed():
    assert bank_conflicts.metrics_of(NCU) == {"a.sum": 1240.0, "b.sum": 5.0}
    assert bank_conflicts.metrics_of("==ERROR== The user does not have permission") == {}
