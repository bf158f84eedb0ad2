"""Batches of examples of similar lengths, in an order that follows from seed and epoch alone."""

import random
from collections.abc import Iterator, Sequence

import torch

from kslottery_fast.base.arguments import check_integer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import is_int


class GroupedBatches(torch.utils.data.Sampler[int]):
    """A random order in which the examples of a batch have similar lengths, which saves padding.

    Every epoch shuffles the examples, cuts them into groups of ``group`` batches, sorts each group by length, and
    shuffles the batches.

    Parameters
    ----------
    lengths : sequence of int
        The number of tokens of every example.
    batch_size : int
        The number of examples of a batch.
    seed : int
        Where the random order starts from.
    group : int
        The number of batches that are sorted together.

    Raises
    ------
    InputError
        ``lengths`` is not a sequence of integers, or ``batch_size`` or ``group`` is below 1.
    TypeError
        ``batch_size``, ``seed`` or ``group`` is not an integer.

    Examples
    --------
    >>> list(GroupedBatches([1, 9, 1, 9], 2, seed=0)) in ([0, 2, 1, 3], [1, 3, 0, 2])
    True
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, group: int = 16) -> None:
        if not isinstance(lengths, Sequence) or not all(map(is_int, lengths)):
            raise InputError(
                f"lengths is {shown(lengths)}: expected a list of integers, which every epoch reads again; "
                "put what a generator gives into a list"
            )
        check_integer(batch_size, "batch_size", 1)
        check_integer(group, "group", 1)
        check_integer(seed, "seed")
        self.lengths, self.batch_size, self.seed, self.group = lengths, batch_size, seed, group
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take note of the next epoch. The Trainer calls this.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        """
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
        # A short batch anywhere but at the end would shift the borders of all batches after it.
        return sorted(batches, key=lambda batch: len(batch) < self.batch_size)
