"""Every instruction set that this CPU has, whichever would be chosen: exact, no read beyond the rows, the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ISAS = ("avx512", "avx2", "baseline")


@pytest.fixture(scope="module")
def found():
    """What each_isa.py prints of each instruction set."""
    program = [sys.executable, "-X", "faulthandler", Path(__file__).parent / "each_isa.py"]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {result["asked"]: result for result in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("isa", ISAS)
def test_ks_kernels_are_exact_and_read_to_the_end_of_memory_and_no_further(found, isa):
    if "does not have it" in found[isa].get("refused", ""):
        pytest.skip(f"this CPU has no {isa}")
    assert found[isa]["isa"] == isa
    assert found[isa]["rows"] > 0
    assert found[isa]["differences"] == []


@pytest.mark.parametrize("isa", ISAS)
def test_rows_with_the_largest_tables_of_buckets_are_exact(found, isa):
    if "does not have it" in found[isa].get("refused", ""):
        pytest.skip(f"this CPU has no {isa}")
    assert found[isa]["long_rows"] == []


def test_row_adamw_gives_the_same_bits(found):
    assert "row_adamw" in found["baseline"]
    assert len({result["row_adamw"] for result in found.values() if "row_adamw" in result}) == 1
