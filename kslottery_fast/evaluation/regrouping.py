"""Batches taken apart into examples, and examples dealt out and put together into other batches."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from kslottery_fast.base.errors import InputError

from .logits import IGNORE_INDEX

Batch: TypeAlias = Mapping[str, torch.Tensor]
"""What a model is called with: ``input_ids`` and ``labels``, usually ``attention_mask``, each with B examples."""


def take_apart(batches: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
    """Return every example as a batch of its own, in order, without the padding at its right end.

    Parameters
    ----------
    batches : sequence of mapping
        Batches with the same keys.

    Returns
    -------
    list of dict
        Each has the keys of the batches. The tensors are views of those given.

    Raises
    ------
    InputError
        Batches differ in their keys, or a tensor does not have an entry for each example.

    Examples
    --------
    >>> ids, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    >>> labels = torch.tensor([[-100, 6], [7, -100]])
    >>> first, second = take_apart([{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    >>> second["input_ids"].tolist(), second["labels"].tolist()
    ([[7]], [[7]])
    """
    examples: list[dict[str, torch.Tensor]] = []
    for i, batch in enumerate(batches):
        if set(batch) != set(batches[0]):
            raise InputError(f"batches[{i}] has the keys {sorted(batch)}: expected {sorted(batches[0])}, as batches[0]")
        size = len(batch["input_ids"]) if batch["input_ids"].ndim else 0
        for name, tensor in batch.items():
            _check_shape(tensor, size, f"batches[{i}][{name!r}]", batches[0][name])
        alone = ({name: tensor[j : j + 1] for name, tensor in batch.items()} for j in range(size))
        examples += [_without_padding(example) for example in alone]
    return examples


def _check_shape(tensor: torch.Tensor, size: int, name: str, model: torch.Tensor) -> None:
    if not tensor.ndim or len(tensor) != size:
        raise InputError(f"{name} has the shape {list(tensor.shape)}: expected {size} examples, as in input_ids")
    if tensor.ndim != model.ndim or (tensor.ndim != 2 and tensor.shape[1:] != model.shape[1:]):
        raise InputError(
            f"{name} has the shape {list(tensor.shape)} and that of batches[0] {list(model.shape)}: expected shapes "
            "that fit each other, since examples of different batches are put together"
        )


def _without_padding(example: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the last columns if they are masked and not supervised. Padding on the left keeps positions in place."""
    mask, labels = example.get("attention_mask"), example["labels"]
    if mask is None or mask.ndim != 2:
        return example
    width = mask.shape[1]
    used = mask != 0
    if labels.shape == mask.shape:
        used = used | (labels != IGNORE_INDEX)
    last = int(used.nonzero()[:, 1].max()) + 1 if used.any() else 0
    return {
        name: tensor[:, :last] if tensor.ndim == 2 and tensor.shape[1] == width else tensor
        for name, tensor in example.items()
    }


def deal(lengths: Sequence[int], hands: int, seed: int) -> list[list[int]]:
    """Deal out examples at random, so that every hand gets about as many of each length.

    The examples are sorted by length, and each run of ``hands`` examples goes to all hands in a random order.

    Parameters
    ----------
    lengths : sequence of int
        The length of each example.
    hands : int
        The number of parts.
    seed : int
        Where the random order starts from.

    Returns
    -------
    list of list of int
        The indices of the examples in each hand, by length. The sizes of any two hands differ by at most one.

    Examples
    --------
    >>> hands = deal([3, 9, 3, 9], 2, seed=0)
    >>> [sorted(hand) for hand in sorted(hands, key=min)] in ([[0, 1], [2, 3]], [[0, 3], [1, 2]])
    True
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order = sorted(shuffled, key=lambda i: lengths[i])
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for start in range(0, len(order), hands):
        turn = torch.randperm(hands, generator=generator).tolist()
        for hand, example in zip(turn, order[start : start + hands], strict=False):
            dealt[hand].append(example)
    return dealt


def put_together(examples: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Return one batch made from examples of :func:`take_apart`. Shorter ones are padded on the right.

    Parameters
    ----------
    examples : sequence of mapping
        At least one. If they differ in length and have no ``attention_mask``, they get one.

    Returns
    -------
    dict
        Labels are padded with -100, and all other tensors with 0.

    Examples
    --------
    >>> short, long = ({"input_ids": torch.ones(1, n), "labels": torch.ones(1, n)} for n in (1, 2))
    >>> batch = put_together([short, long])
    >>> batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[1.0, 0.0], [1.0, 1.0]], [[1.0, -100.0], [1.0, 1.0]])
    """
    if len({example["input_ids"].shape for example in examples}) > 1:
        examples = [{"attention_mask": torch.ones_like(example["input_ids"]), **example} for example in examples]
    return {name: _joined([example[name] for example in examples], name) for name in examples[0]}


def _joined(parts: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    if parts[0].ndim != 2:
        return torch.cat(list(parts))
    width, fill = max(part.shape[1] for part in parts), IGNORE_INDEX if name == "labels" else 0
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])
