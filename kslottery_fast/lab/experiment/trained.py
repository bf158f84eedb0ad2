"""Trained rows, and how a stage keeps them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.content import check_tensors
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors


@dataclass(frozen=True)
class TrainedRows:
    """Rows after training.

    Parameters
    ----------
    token_ids : int64 tensor [k]
        The rows, in ascending order.
    rows : float32 tensor [k, d]
        Their values.
    losses : list of float
        The loss of every step, in nats per target token.
    """

    token_ids: Tensor
    rows: Tensor
    losses: list[float]

    def only(self, token_ids: Tensor) -> Self:
        """Some of the rows, in the order of ``token_ids``. The rows themselves must be in ascending order."""
        return type(self)(token_ids, self.rows[torch.searchsorted(self.token_ids, token_ids)], [])

    def save(self, folder: Path) -> None:
        """Write ``rows.safetensors`` and ``losses.json`` into the folder of a stage."""
        write_safetensors(folder / "rows.safetensors", {"token_ids": self.token_ids, "rows": self.rows})
        write_json(folder / "losses.json", self.losses)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            A file is missing or damaged.
        """
        path, losses = folder / "rows.safetensors", read_json(folder / "losses.json")
        tensors = read_safetensors(path)
        check_tensors(path, tensors, {"token_ids": "int k", "rows": "float k d"})
        if not isinstance(losses, list) or not all(type(loss) in (int, float) for loss in losses):
            raise InputError(f"{folder / 'losses.json'} is damaged: expected a list of numbers; create it again")
        return cls(tensors["token_ids"], tensors["rows"], losses)
