"""Batches of examples of similar lengths, in an order that follows from seed and epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch


class GroupedBatches(torch.utils.data.Sampler[int]):
    """Random order in which the examples of a batch have similar lengths: less padding, the same examples.

    Every epoch shuffles the examples, cuts them into groups of ``group`` batches, sorts each group by length, and
    shuffles the batches.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of every example.
    batch_size, seed, group : int

    Examples
    --------
    >>> list(GroupedBatches([1, 9, 1, 9], 2, seed=0)) in ([0, 2, 1, 3], [1, 3, 0, 2])
    True
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, group: int = 16) -> None:
        self.lengths, self.batch_size, self.seed, self.group = lengths, batch_size, seed, group
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        numbers = random.Random(self.seed)
        for _ in range(self.epoch):
            self._draw(numbers)
        for batch in self._draw(numbers):
            yield from batch

    def _draw(self, numbers: random.Random) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        numbers.shuffle(order)
        size = self.group * self.batch_size
        batches = []
        for start in range(0, len(order), size):
            part = sorted(order[start : start + size], key=lambda i: (self.lengths[i], i))
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        numbers.shuffle(batches)
        # A short batch anywhere but at the end would shift the borders of all that follow it.
        return sorted(batches, key=lambda batch: len(batch) < self.batch_size)
