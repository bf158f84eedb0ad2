"""Pairs of checkpoints, made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stored_tables import D, V, write

from kslottery_fast import ks_select


@pytest.fixture(scope="session")
def tables() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(V, D, generator=generator)
    after = before.clone()
    after[::3] += 0.6 * torch.rand(len(after[::3]), 1, generator=generator)
    return before, after


@pytest.fixture
def pair(tables, tmp_path) -> tuple[Path, Path]:
    return write(tmp_path / "before.safetensors", tables[0]), write(tmp_path / "after.safetensors", tables[1])


@pytest.fixture(scope="session")
def llamas(tiny_llama, tmp_path_factory):
    """A tiny LLaMA before and after a change of some rows: folders of one file and of several shards."""
    root = tmp_path_factory.mktemp("models")
    before, after = tiny_llama(), tiny_llama()
    with torch.no_grad():
        after.model.embed_tokens.weight[40:60] += 2
        after.model.layers[0].self_attn.q_proj.weight[:3] += 2
    for name, model in (("before", before), ("after", after)):
        model.save_pretrained(root / name)
        model.save_pretrained(root / f"{name}-sharded", max_shard_size="40KB")
    tables = [model.model.embed_tokens.weight.detach() for model in (before, after)]
    assert len(list((root / "after-sharded").glob("model-*.safetensors"))) > 2
    return root, ks_select(*tables)
