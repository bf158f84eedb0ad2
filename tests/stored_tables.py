"""Tables on disk for the tests of checkpoints, and pairs of checkpoints as fixtures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import InputError, ks_select
from kslottery_fast.tickets.stored import ks_select_checkpoints

V, D = 203, 64
NAME = "model.embed_tokens.weight"
BLOCKS = [1, 3 * 2 * D * 4, 1 << 20]
"""block_bytes for one row a block, blocks that end within the table, one block."""


def write(path: Path, table: torch.Tensor, name: str = NAME, **others: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: table, **others}, path)
    return path


def saved(content: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def refused(before: Path, after: Path, *parts: str, **options: object) -> None:
    """Expect an error of one line that holds all parts."""
    with pytest.raises(InputError) as caught:
        ks_select_checkpoints(before, after, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


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
