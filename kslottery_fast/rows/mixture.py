"""Which example of a batch reads which set of rows."""

from collections.abc import Sequence

import torch

from kslottery_fast.base.errors import InputError


class Mixture:
    """Which examples of a batch read which set.

    Parameters
    ----------
    names : sequence of str or None
        The set of each example, None for the base rows.
    copies : int
        How many sequences ``generate`` makes of one example (beams, returned sequences), one after the other.
    """

    def __init__(self, names: Sequence[str | None], copies: int) -> None:
        self.names, self.copies = tuple(names), copies
        self.outer: Mixture | None = None  # that of the block around this one
        self._groups: dict[tuple[int, torch.device], list[tuple[str | None, torch.Tensor]]] = {}

    def groups(self, batch_size: int, device: torch.device) -> list[tuple[str | None, torch.Tensor]]:
        """Pairs of a set and the int64 indices of its examples, for a batch of the given size on that device."""
        key = batch_size, device
        if key not in self._groups:
            if batch_size not in (len(self.names), len(self.names) * self.copies):
                many = f" or {len(self.names) * self.copies} (copies={self.copies})" if self.copies > 1 else ""
                raise InputError(
                    f"the batch has {batch_size} examples, but the names given to mixed_rows are for {len(self.names)}"
                    f"{many}; give one name for each example, and with beams or several returned sequences pass copies="
                )
            names = [name for name in self.names for _ in range(batch_size // len(self.names))]
            self._groups[key] = [
                (name, torch.tensor([i for i, other in enumerate(names) if other == name], device=device))
                for name in dict.fromkeys(names)
            ]
        return self._groups[key]
