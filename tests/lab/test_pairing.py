"""`--rows` and `--map` of `kslottery select`."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import Tickets, ks_select
from kslottery_fast.lab.cli import main as cli


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A table, and one that was tuned, has new rows and another name."""
    monkeypatch.chdir(tmp_path)
    before = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    after = torch.cat([before, torch.ones(4, 64)])
    after[[5, 17]] += 3
    save_file({"tokens": before}, "before.safetensors")
    save_file({"net.table": after}, "after.safetensors")
    return before, after


def test_shared_rows_of_tables_with_two_names_give_tickets_of_both(paths, capsys):
    arguments = ["select", "before.safetensors", "after.safetensors", "--tensor", "tokens"]
    assert cli.main([*arguments, "--map", "tokens=net.table"]) == 2
    assert "--rows shared" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*arguments, "--map", "tokens=net.table", "--rows", "shared", "--quiet"]) == 0
    assert "of 60 shared rows" in capsys.readouterr().out
    tickets = Tickets.load("tickets.json")
    assert tickets == ks_select(*paths, rows="shared")
    assert (sorted(tickets), tickets.vocab_size, tickets.vocab_size_after) == ([5, 17], 60, 64)
    options = ["--rows", "shared", "--json", "--select-by", "l2", "-k", "1"]
    assert cli.main([*arguments, "--map", "tokens=net.table", *options]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size_after"] == 64


def test_a_map_that_fits_no_tensor_is_one_line(paths, capsys):
    arguments = ["select", "before.safetensors", "after.safetensors", "--tensor", "tokens", "--quiet"]
    assert cli.main([*arguments, "--map", "none=x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kslottery: error: name_map none=x: before.safetensors has no tensor none")
