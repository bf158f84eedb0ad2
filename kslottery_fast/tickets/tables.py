"""Tables of tokens: the KS counts of two."""

from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows, TableName
from kslottery_fast.ks.tables import counts_in_memory

from .model_tables import numbers_of

Table: TypeAlias = Tensor | nn.Module | np.ndarray
"""A [V, d] table of floats: a tensor, a Parameter, an array, an nn.Embedding, or a model with an input embedding."""

Heights: TypeAlias = tuple[int, int]
"""The numbers of rows of two tables."""


def ks_statistics(before: Table, after: Table) -> Tensor:
    """Compute h = d * D, the exact two-sided KS count of every row of two tables.

    Parameters
    ----------
    before, after : Tensor, array, nn.Embedding or model
        [V, d] tables, as for :func:`kslottery_fast.ks_select`. ``after`` is moved to the device of ``before``. V may
        be 0.

    Returns
    -------
    Tensor
        int64 [V]. ``D = h / d``. A count of 0 says that the two rows hold the same values, in whatever order.

    Raises
    ------
    InputError
        The shapes differ or are not [V, d]. A table has NaN; the message names the table and its rows. Inf is a value
        like any other.
    TypeError
        A table does not hold floats.

    Examples
    --------
    >>> import torch
    >>> before = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    >>> after = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 5.0, 6.0]])
    >>> ks_statistics(before, after)
    tensor([0, 2])
    """
    names = ("before", "after")
    return counts_in_memory(*numbers_of_both(before, after, names), names)


def numbers_of_both(
    before: Any, after: Any, names: tuple[str, str], table: TableName = "input", rows: ComparedRows = "all"
) -> tuple[Any, Any]:
    """The tables of two modules, tensors or arrays. Anything else is returned as it is.

    Raises
    ------
    InputError
        A model has no such table, or rows that cannot be read as part of a table. Two models have different numbers of
        tokens.
    TypeError
        A path, or a module that is neither a model nor an embedding.
    """
    tables = numbers_of(before, names[0], table), numbers_of(after, names[1], table)
    if isinstance(before, nn.Module) and isinstance(after, nn.Module):
        (V, d), (other_V, other_d) = tables[0].shape, tables[1].shape
        if d == other_d and other_V != V and rows == "all":
            of_table = "" if table == "input" else f", table={table!r}"
            raise InputError(
                f"{names[0]} has {V} rows and {names[1]} has {other_V}: was the vocabulary resized between them? "
                f"ks_select(before, after{of_table}, rows='shared') compares the {min(V, other_V)} rows that both have"
            )
    return tables


def shared_rows(before: Any, after: Any, names: tuple[str, str], rows: ComparedRows) -> tuple[Any, Any, Heights | None]:
    """The rows that two tables both have, and the heights of the tables where these differ.

    What are no two tables of one width is returned as it is, for :func:`kslottery_fast.ks.tables.table_pair` to refuse.

    Raises
    ------
    InputError
        The heights differ, and all rows are to be compared.
    """
    plain = all(isinstance(each, (Tensor, np.ndarray)) and each.ndim == 2 for each in (before, after))
    if not plain or any(isinstance(each, Tensor) and is_dtensor(each) for each in (before, after)):
        return before, after, None
    V, other = len(before), len(after)
    if other == V or before.shape[1] != after.shape[1]:
        return before, after, None
    shared = min(V, other)
    if rows == "all":
        raise InputError(
            f"{names[0]} is {list(before.shape)} and {names[1]} is {list(after.shape)}: was the vocabulary resized "
            f"between them? rows='shared' compares the {shared} rows that both have"
        )
    return before[:shared], after[:shared], (V, other)
