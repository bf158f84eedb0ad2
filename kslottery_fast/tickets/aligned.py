"""Which tensor of one checkpoint is which of another, where wrappers and versions call them differently.

Wrapping, saving and loading change how names begin: "model.", "module.", "_orig_mod." and "language_model.model." come
and go. How they end stays. So names that only one checkpoint has are aligned by their longest common ending.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.checkpoints.checkpoint import Checkpoint

Parts: TypeAlias = tuple[str, ...]
Both: TypeAlias = tuple[Parts, Parts]
"""Two names, or how they begin, before and after."""

_STACKS = ("encoder", "decoder", "vision", "visual", "audio", "speech", "image")
"""Parts of models that may hold tensors of the same names and shapes. One of them is never taken for another."""


def check_name_map(name_map: Any) -> dict[str, str]:
    """Return a map of names as a dict.

    Raises
    ------
    InputError
        An entry has two empty sides or maps a name to itself.
    TypeError
        It is no mapping of str to str, or None.
    """
    if name_map is None:
        return {}
    if not isinstance(name_map, Mapping) or not all(
        isinstance(each, str) for pair in name_map.items() for each in pair
    ):
        raise TypeError(
            f"name_map is {shown(name_map)}: expected a dict of names, or of how names begin, in before to those in "
            "after, such as {'model': 'model.language_model'}, or None"
        )
    for old, new in name_map.items():
        if old.strip(".") == new.strip("."):
            raise InputError(f"name_map has {old!r} for {new!r}: expected two different names")
    return {old.strip("."): new.strip(".") for old, new in name_map.items()}


def aligned_names(before: Checkpoint, after: Checkpoint, name_map: Mapping[str, str]) -> dict[str, str]:
    """Find the tensor of ``after`` that each tensor of ``before`` is.

    Equal names come first, after ``name_map`` was applied. Of the others, two are one tensor if they have one shape
    and each is the best match of the other: no other name shares a longer ending with it, or one of the same length
    where more tensors begin so differently. Numbers, as those of layers, belong to the ending.

    Parameters
    ----------
    before, after : Checkpoint
    name_map : mapping of str to str
        What :func:`check_name_map` returned. A name of ``before``, or how names begin, and what it is in ``after``.

    Returns
    -------
    dict of str to str
        The name in ``after`` of each tensor that both have, in the order of ``before``. Shapes may differ.

    Raises
    ------
    InputError
        An entry of ``name_map`` fits no tensor, or gives two tensors one name.
    """
    called = _mapped(before, after, name_map)
    found = {name: new for name, new in called.items() if new in after}
    taken = set(found.values())
    alone = {new: name for name, new in called.items() if name not in found}
    others = [name for name in after if name not in taken]
    before.fetch(alone.values())
    after.fetch(others)
    left = {name: before[old].shape for name, old in alone.items()}
    right = {name: after[name].shape for name in others}
    matches = _matches(left, right)
    matches |= _of_other_shape(matches, left.keys() - matches.keys(), right.keys() - set(matches.values()))
    found |= {alone[name]: other for name, other in matches.items()}
    return {name: found[name] for name in before if name in found}


def beginnings(names: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Count how often names that differ begin in which two ways.

    >>> beginnings([("model.h.0.w", "h.0.w"), ("model.wte", "wte"), ("a", "a")])
    Counter({('model.', ''): 2})
    """
    found: Counter[tuple[str, str]] = Counter()
    for pair in names:
        if pair[0] != pair[1]:
            first, second = (tuple(name.split(".")) for name in pair)
            old, new = _beginnings(first, second)
            found["".join(f"{part}." for part in old), "".join(f"{part}." for part in new)] += 1
    return found


def _mapped(before: Checkpoint, after: Checkpoint, name_map: Mapping[str, str]) -> dict[str, str]:
    """What each tensor of ``before`` is called in ``after``, as far as the map says."""
    called: dict[str, str] = {}
    used: dict[str, list[str]] = {}
    for name in before:
        fitting = [old for old in name_map if not old or name == old or name.startswith(f"{old}.")]
        called[name] = name
        if fitting:
            old = max(fitting, key=len)
            rest = name if not old else name[len(old) + 1 :]
            called[name] = ".".join(part for part in (name_map[old], rest) if part)
            used.setdefault(old, []).append(called[name])
    for old, new in name_map.items():
        entry = f"{old}={new}"
        if old not in used:
            raise InputError(f"name_map {entry}: {before.source} has no tensor {old} and none that begins with {old}.")
        if not any(name in after for name in used[old]):
            raise InputError(f"name_map {entry}: {after.source} has no tensor {used[old][0]}")
    names: dict[str, str] = {}
    for name, new in called.items():
        if names.setdefault(new, name) != name:
            raise InputError(f"name_map gives {names[new]} and {name} of {before.source} one name, {new}")
    return called


def _matches(left: Mapping[str, Sequence[int]], right: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Match names of two groups one to one. Only those of one shape are matched."""
    groups: dict[tuple[Parts, Sequence[int]], list[Parts]] = {}
    for name, shape in right.items():
        parts = tuple(name.split("."))
        groups.setdefault((_end(parts), shape), []).append(parts)
    candidates = [
        (parts, other)
        for name, shape in left.items()
        for parts in [tuple(name.split("."))]
        for other in groups.get((_end(parts), shape), ())
        if _may_be_one(parts, other)
    ]
    votes = Counter(_beginnings(*pair) for pair in candidates)
    found: dict[Parts, Parts] = {}
    while candidates:
        best = _best_of_both(candidates, votes)
        if not best:
            break
        found |= best
        taken = set(best.values())
        candidates = [pair for pair in candidates if pair[0] not in best and pair[1] not in taken]
    return {".".join(name): ".".join(other) for name, other in found.items()}


def _best_of_both(candidates: Sequence[Both], votes: Mapping[Both, int]) -> dict[Parts, Parts]:
    """The pairs of which each is the only best match of the other."""
    ranks = {pair: _rank(pair, votes) for pair in candidates}
    best: list[dict[Parts, list[Both]]] = [{}, {}]
    for pair, rank in ranks.items():
        for side in (0, 1):
            first = best[side].setdefault(pair[side], [pair])
            if rank > ranks[first[0]]:
                best[side][pair[side]] = [pair]
            elif rank == ranks[first[0]] and first[0] != pair:
                first.append(pair)
    return {a: b for a, b in candidates if best[0][a] == [(a, b)] == best[1][b]}


def _rank(pair: Both, votes: Mapping[Both, int]) -> tuple[int, int, bool]:
    """The longest ending decides, then what most tensors show, then whether both belong to one stack."""
    old, new = _beginnings(*pair)
    return len(pair[0]) - len(old), votes[old, new], _stacks(old) == _stacks(new)


def _of_other_shape(matches: Mapping[str, str], left: Iterable[str], right: Collection[str]) -> dict[str, str]:
    """Tensors whose shapes differ, with names that differ as those of the matched tensors do."""
    known = beginnings(matches.items())
    found: dict[str, str] = {}
    for name in sorted(left):
        for old, new in known:
            other = new + name.removeprefix(old)
            if name.startswith(old) and other in right and other not in found.values():
                found[name] = other
                break
    return found


def _end(parts: Parts) -> Parts:
    """The part of a name that is never renamed: all from its first number on, or its last word."""
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return parts[numbers[0] :] if numbers else parts[-1:]


def _may_be_one(a: Parts, b: Parts) -> bool:
    """Whether two names with one end may be those of one tensor."""
    old, new = _beginnings(a, b)
    if not old or not new:  # one of them is how the other ends
        return True
    # The word before the end has to be the same too: "lm_head.weight" is not "score.weight".
    return len(a) - len(old) > len(_end(a)) and _stacks(old) == _stacks(new)


def _stacks(parts: Parts) -> set[str]:
    return {stack for stack in _STACKS for part in parts if part.startswith(stack)}


def _beginnings(a: Parts, b: Parts) -> Both:
    """What precedes the longest common ending of two names."""
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    return a[: len(a) - shared], b[: len(b) - shared]
