"""Tables on disk for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import InputError
from kslottery_fast.tickets.stored import ks_select_checkpoints

V, D = 203, 64
NAME = "model.embed_tokens.weight"
BLOCKS = [1, 3 * 2 * D * 4, 1 << 20]
"""block_bytes for one row a block, blocks that end within the table, one block."""


def write(path: Path, table: torch.Tensor, name: str = NAME, **others: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: table, **others}, path)
    return path


def refused(before: Path, after: Path, *parts: str, **options: object) -> None:
    """Expect an error of one line that holds all parts."""
    with pytest.raises(InputError) as caught:
        ks_select_checkpoints(before, after, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
