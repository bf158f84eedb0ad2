"""The kernels read no value beyond the rows: memory ends right behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by ctypes")
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_rows_at_the_end_of_memory_are_read_to_their_end_and_no_further(isa):
    run = subprocess.run(
        [sys.executable, HERE / "guarded_rows.py"],
        env={**os.environ, "KSL_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "does not have it" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.returncode == 0, run.stderr  # -11: killed by the read
    assert run.stdout.strip() == isa
