"""Counting the partitions of Dask collections where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .accumulator import KsAccumulator
from .bucket_counts import X

_FAN_IN = 8  # how many counts are merged by one task


def is_dask(value: Any) -> bool:
    """Tell whether a value is a Dask collection, without importing Dask."""
    return not isinstance(value, type) and hasattr(value, "__dask_graph__")


def count_partitions(seen: KsAccumulator, side: int, collection: Any, name: str) -> None:
    """Count all partitions of one sample by one task each, merge the counts in a tree, and add them to ``seen``.

    Raises
    ------
    InputError
        A dataframe of several columns.
    TypeError
        A Dask collection that is not an array, a column or a dataframe.
    """
    from dask import compute, delayed

    # The tasks share one accumulator, which goes to each worker once. It is not in the graph of every task.
    empty = delayed(seen.empty(), pure=False, traverse=False)
    count = delayed(_count, pure=False)
    parts = [count(empty, side, part, name) for part in _partitions(collection, name)]
    for counted in compute(*merged_in_tree(parts, _merge)):
        seen.merge(counted)


def merged_in_tree(level: list[Any], merge: Callable[[list[Any]], Any]) -> list[Any]:
    """Merge delayed counts in a tree of tasks. Without any there is none, otherwise one is left."""
    from dask import delayed

    task = delayed(merge, pure=False)
    while len(level) > 1:
        level = [task(level[start : start + _FAN_IN]) for start in range(0, len(level), _FAN_IN)]
    return level


def _partitions(collection: Any, name: str) -> list[Any]:
    from dask.delayed import Delayed

    if isinstance(collection, Delayed) or not hasattr(collection, "to_delayed"):  # a Delayed has every attribute
        raise TypeError(f"{name} is {shown(collection)}: expected a Dask array, or a column of a Dask dataframe")
    columns = getattr(collection, "columns", None)
    if columns is not None and getattr(collection, "ndim", 1) == 2 and len(columns) != 1:
        listed = ", ".join(map(repr, list(columns)[:5]))
        raise InputError(f"{name} is a dataframe of {len(columns)} columns ({listed}): choose one of them")
    parts = collection.to_delayed()
    return list(parts.ravel() if hasattr(parts, "ravel") else parts)


def count_chunk(seen: KsAccumulator, side: int, chunk: Any, name: str) -> KsAccumulator:
    """Count a chunk of one sample. An error names it."""
    if chunk is None:
        raise TypeError(f"{name} is None: expected an array or a list of numbers")
    try:
        return seen.update(x=chunk) if side == X else seen.update(y=chunk)
    except (InputError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from None


def _count(empty: KsAccumulator, side: int, part: Any, name: str) -> KsAccumulator:
    return count_chunk(empty.empty(), side, part, name)


def _merge(counted: list[KsAccumulator]) -> KsAccumulator:
    total = counted[0].empty()  # a task must not change its input, which Dask may use again
    for other in counted:
        total.merge(other)
    return total
