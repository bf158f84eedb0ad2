"""Pairs of checkpoints, made on the spot, and a Hub that has one."""

import pytest
import torch
from range_hub import range_hub
from safetensors.torch import save
from stored_tables import NAME, llamas, pair, tables

from kslottery_fast.checkpoints import hub_client

__all__ = ["hub", "llamas", "pair", "tables"]


@pytest.fixture
def hub(tables, tmp_path, monkeypatch):
    """Two repositories with the two tables, and in each a tensor that nobody wants."""
    monkeypatch.setattr(hub_client, "_PAUSE", 0.0)
    with range_hub(tmp_path) as (hub, handler):
        for name, table in zip(("org/before", "org/after"), tables, strict=True):
            tensors = {NAME: table, "big": torch.zeros(500, 100)}
            hub.commit(name, "main", {"model.safetensors": save(tensors), "README.md": b"x"})
        hub.handler = handler
        yield hub
