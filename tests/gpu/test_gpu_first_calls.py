"""Each op captured into a graph by a process that has run no kernel before, so kernels are loaded while capturing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gpu_first_calls
import pytest


@pytest.fixture(scope="module")
def processes(gpu):
    """One process for each op. All of them run at the same time, because most of it is importing torch."""
    command = [sys.executable, gpu_first_calls.__file__]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = {name: subprocess.Popen([*command, name], **pipes) for name in gpu_first_calls.CASES}
    yield running
    for process in running.values():
        process.kill()


@pytest.mark.parametrize("name", gpu_first_calls.CASES)
def test_the_first_call_of_an_op_can_be_captured(processes, name):
    said, _ = processes[name].communicate(timeout=100)
    assert processes[name].returncode == 0, said
