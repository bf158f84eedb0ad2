"""Every instruction set that this CPU has, whichever would be chosen: exact, no read beyond the rows, the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ISAS = ("avx512", "avx2", "baseline")


@pytest.fixture(scope="module")
def found():
    """What one_isa.py prints with each instruction set, and None with those that this CPU does not have."""
    results = {}
    for isa in ISAS:
        run = subprocess.run(
            [sys.executable, "-X", "faulthandler", Path(__file__).parent / "one_isa.py"],
            env={**os.environ, "KSL_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        if "does not have it" in run.stderr:
            results[isa] = None
        else:
            assert run.returncode == 0, f"{isa}: {run.stderr}"  # -11: killed by a read beyond the rows
            results[isa] = json.loads(run.stdout)
    return results


@pytest.mark.parametrize("isa", ISAS)
def test_ks_kernels_are_exact_and_read_to_the_end_of_memory_and_no_further(found, isa):
    if found[isa] is None:
        pytest.skip(f"this CPU has no {isa}")
    assert found[isa]["isa"] == isa
    assert found[isa]["rows"] > 0
    assert found[isa]["differences"] == []


def test_row_adamw_gives_the_same_bits(found):
    assert found["baseline"] is not None
    assert len({result["row_adamw"] for result in found.values() if result is not None}) == 1
