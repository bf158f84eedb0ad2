"""Dask dataframes as sources of columns: their partitions are counted by the workers, and the values do not travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kslottery_fast.base.arguments import shown

from .dask_stream import merged_in_tree
from .frame_files import common_types
from .frame_tables import Countable, column_arrays, memory_table


@dataclass
class DaskTable:
    """A Dask dataframe. See :class:`~.frame_tables.Source`. A column of Python objects has no type before ``settle``.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    labels : dict of str to label
        The labels of the columns, which need not be texts.
    """

    label: str
    types: dict[str, Any]
    frame: Any
    labels: dict[str, Any]
    rows: int | None = None
    on_disk: bool = True

    def settle(self, names: Sequence[str]) -> None:
        """Find the types of those of these columns that hold Python objects. The partitions alone tell them."""
        unknown = [
            name
            for name in names
            if not isinstance(self.types[name], str) and self.frame._meta[self.labels[name]].dtype == object
        ]
        if unknown:
            self.types.update(_types_of_objects(self, unknown))

    def count(self, columns: Mapping[str, Countable], side: int) -> None:
        """Count all partitions, one task each, merge the counts in a tree, and add them to ``columns``."""
        from dask import compute, delayed

        # The tasks share the columns of this pass, which go to each worker once.
        empty = delayed({name: column.empty() for name, column in columns.items()}, pure=False, traverse=False)
        count = delayed(_count_partition, pure=False)
        counted = merged_in_tree([count(empty, side, part) for part in self._partitions(list(columns))], _merged)
        for found in compute(*counted):
            for name, column in columns.items():
                column.merge(found[name])

    def _partitions(self, names: Sequence[str]) -> list[Any]:
        return list(self.frame[[self.labels[name] for name in names]].to_delayed())


def dask_table(frame: Any, name: str) -> DaskTable:
    """Return the source of a Dask dataframe.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        The dataframe.
    name : str
        The name of the argument.

    Raises
    ------
    TypeError
        Another Dask collection.
    """
    from dask.delayed import Delayed

    if isinstance(frame, Delayed) or not hasattr(frame, "columns") or getattr(frame, "ndim", 0) != 2:
        raise TypeError(
            f"{name} is {shown(frame)}: expected a Dask dataframe, such as column.to_frame(), or "
            "dask.dataframe.from_dask_array(array)"
        )
    types = dict(memory_table(frame._meta, name).types)
    labels = {str(label): label for label in frame.columns}
    return DaskTable(name, types, frame, labels)


def _types_of_objects(table: DaskTable, names: list[str]) -> dict[str, Any]:
    """Ask all partitions for the types of these columns."""
    from dask import compute, delayed

    of_partition = delayed(_types_of_partition, pure=False)
    found = compute(*(of_partition(part) for part in table._partitions(names)))
    types: dict[str, Any] = {}
    for at, name in enumerate(names):
        own = [each[at] for each in found]
        failed = next((each for each in own if isinstance(each, str)), None)
        types[name] = failed or common_types([[(name, each)] for each in own], "partitions")[name]
    return types


def _types_of_partition(part: Any) -> list[Any]:
    return [each if isinstance(each, str) else each.type for each in column_arrays(part)]


def _count_partition(empty: Mapping[str, Countable], side: int, part: Any) -> dict[str, Countable]:
    columns = {name: column.empty() for name, column in empty.items()}
    for column, piece in zip(columns.values(), column_arrays(part), strict=True):
        column.add(side, piece)
    return columns


def _merged(counted: list[dict[str, Countable]]) -> dict[str, Countable]:
    total = {name: column.empty() for name, column in counted[0].items()}  # a task must not change its input
    for other in counted:
        for name, column in total.items():
            column.merge(other[name])
    return total
