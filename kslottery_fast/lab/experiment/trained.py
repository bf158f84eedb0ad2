"""Rows after training, as a stage keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors


@dataclass(frozen=True)
class TrainedRows:
    """``token_ids`` int64 [k], their trained ``rows`` float32 [k, d], and the loss of every step in nats per token."""

    token_ids: Tensor
    rows: Tensor
    losses: list[float]

    def only(self, token_ids: Tensor) -> TrainedRows:
        """The rows of some of the tokens, in the order of ``token_ids``; ours must be ascending."""
        return TrainedRows(token_ids, self.rows[torch.searchsorted(self.token_ids, token_ids)], [])

    def save(self, folder: Path) -> None:
        """Write ``rows.safetensors`` and ``losses.json`` into a stage's folder."""
        write_safetensors(folder / "rows.safetensors", {"token_ids": self.token_ids, "rows": self.rows})
        write_json(folder / "losses.json", self.losses)

    @classmethod
    def load(cls, folder: Path) -> TrainedRows:
        """Read what :meth:`save` wrote."""
        tensors = read_safetensors(folder / "rows.safetensors")
        return cls(tensors["token_ids"], tensors["rows"], read_json(folder / "losses.json"))
