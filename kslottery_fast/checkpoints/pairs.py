"""Two checkpoints to compare: opening both, and what makes their comparison less than exact."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from kslottery_fast.base.errors import InputError

from .adapter import apply_adapter
from .adapter_parts import OLD_WEIGHTS, WEIGHTS, is_adapter
from .checkpoint import Checkpoint
from .hub_repository import Repository
from .opening import located, open_located
from .tensors import StoredTensor

_SHARED_SCALES = ("with one scale", "for each block", "for each matrix")


def open_pair(
    before: str | os.PathLike[str], after: str | os.PathLike[str], *, every: bool = False
) -> tuple[Checkpoint, Checkpoint]:
    """Open the two checkpoints of a comparison.

    Parameters
    ----------
    before, after : str or path
        Whatever :func:`kslottery_fast.checkpoints.opening.open_checkpoint` opens. ``after`` may also be a PEFT adapter,
        whose base model is ``before``: its directory, or a repository of the Hub, which is downloaded.
    every : bool
        Whether all tensors are wanted. Then files that can only be downloaded whole are downloaded now.

    Raises
    ------
    InputError
        As :func:`open_checkpoint`. Or ``before`` is an adapter, or ``after`` is one that does not fit ``before``.
    TypeError
        An argument is not a path.
    """
    place = located(before, "before")
    if _is_adapter(place):
        raise InputError(
            f"before is {place}, an adapter: give the base model that it was trained on as BEFORE, and the adapter as "
            "AFTER"
        )
    first = open_located(place)
    place = located(after, "after")
    if not _is_adapter(place):
        second = open_located(place)
        for each in (first, second) if every else ():
            each.fetch(each)
        return first, second
    folder = place.adapter() if isinstance(place, Repository) else _folder(place)
    if every:
        first.fetch(first)
    return first, apply_adapter(folder, first, str(place) if isinstance(place, Repository) else None)


def _is_adapter(place: Path | Repository) -> bool:
    """Tell whether a place is an adapter: its directory, or the weights in it."""
    return place.holds_adapter() if isinstance(place, Repository) else is_adapter(_folder(place))


def _folder(place: Path) -> Path:
    return place.parent if place.name in (WEIGHTS, OLD_WEIGHTS) else place


def rounding_warning(before: StoredTensor, after: StoredTensor) -> str | None:
    """Say what the quantization of one or both of two tensors does to a comparison. None if neither is quantized."""
    if after.derived_from(before):
        return None
    notes = [(tensor, tensor.note) for tensor in (before, after) if tensor.note]
    if not notes:
        return None
    if len(notes) == 1:
        tensor, note = notes[0]
        return (
            f"{tensor} was quantized ({note}) and the other table was not: rounding moves every row, also those that "
            "training never touched; compare two checkpoints of one precision if you can"
        )
    if before.note != after.note:
        return (
            f"the tables were quantized in two ways ({before.note}; {after.note}): rounding moves every row, also "
            "those that training never touched; compare two checkpoints of one precision if you can"
        )
    if any(form in before.note for form in _SHARED_SCALES):
        return (
            f"both tables were quantized ({before.note}): a row that training never touched moves if a row that shares "
            "its scale did"
        )
    return None


def rounding_notes(pairs: Iterable[tuple[StoredTensor, StoredTensor]]) -> list[str]:
    """Say in a line for each kind of pair what quantization does to the comparison of many matrices."""
    kinds = Counter((x.note, y.note) for x, y in pairs if rounding_warning(x, y) is not None)
    return [_rounding_note(before, after, count) for (before, after), count in kinds.most_common()]


def _rounding_note(before: str, after: str, count: int) -> str:
    what = f"{count:,} {'matrix is' if count == 1 else 'matrices are'} quantized in "
    if before == after:
        return f"{what}both ({before}): a row that training never touched moves if a row that shares its scale did"
    sides = [f"{name} ({note})" for name, note in (("BEFORE", before), ("AFTER", after)) if note]
    return f"{what}{' and '.join(sides)}: rounding moves every row, also those that training never touched"
