"""Two gloo processes on the CPU run distributed_cases.py once; each case is a test here."""

from __future__ import annotations

import json
from pathlib import Path

import distributed_cases
import pytest
import torch
from tiny_models import TOKENS, make
from two_processes import run_on_two_processes

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.distributed import gather_rows, replicate_rows

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    """The traceback of each case, empty if it passed, of both processes."""
    folder = tmp_path_factory.mktemp("distributed")
    run_on_two_processes(HERE / "distributed_cases.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


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
