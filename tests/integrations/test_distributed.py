"""Two gloo processes on the CPU run distributed_cases.py once; each case is a test here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import distributed_cases
import pytest
import torch
from tiny_models import TOKENS, make

from kslottery_fast.errors import InputError
from kslottery_fast.integrations.distributed import gather_rows, replicate_rows
from kslottery_fast.rows import attach_rows, get_rows

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    """The traceback of each case, empty if it passed, of both processes."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "distributed_cases.py", folder / f"{rank}.json"],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    files = [folder / f"{rank}.json" for rank in range(2)]
    for file, error in zip(files, errors, strict=True):
        assert file.is_file(), error
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("name", list(distributed_cases.CASES))
def test_two_processes(outcomes, name):
    assert [outcome[name] for outcome in outcomes] == ["", ""], "\n".join(outcome[name] for outcome in outcomes)


def test_without_a_process_group_replicating_is_refused_and_gathering_is_a_copy():
    model = attach_rows(make("llama"), TOKENS)
    with pytest.raises(InputError, match="needs a process group; call"):
        replicate_rows(model)
    rows = gather_rows(model)
    assert torch.equal(rows, get_rows(model).rows)
    assert rows.data_ptr() != get_rows(model).rows.data_ptr()
