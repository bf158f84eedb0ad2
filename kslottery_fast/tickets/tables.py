"""Tables of tokens: recognizing one, and the KS counts of two."""

import os
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.tables import counts_in_memory
from kslottery_fast.rows.attach import get_rows, has_rows
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.rows.tables import base_rows, input_embedding, is_quantized, table_shape

Table: TypeAlias = Tensor | nn.Module | np.ndarray
"""A [V, d] table of floats: a tensor, a Parameter, an array, an nn.Embedding, or a model with an input embedding."""


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
    >>> before = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    >>> after = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 5.0, 6.0]])
    >>> ks_statistics(before, after)
    tensor([0, 2])
    """
    names = ("before", "after")
    return counts_in_memory(*numbers_of_both(before, after, names), names)


def numbers_of_both(before: Any, after: Any, names: tuple[str, str]) -> tuple[Any, Any]:
    """The tables of two modules, tensors or arrays. Anything else is returned as it is.

    Raises
    ------
    InputError
        A model has no input embedding, or rows that cannot be read as part of a table. Two models have different
        numbers of tokens.
    TypeError
        A path, or a module that is neither a model nor an embedding.
    """
    tables = _numbers_of(before, names[0]), _numbers_of(after, names[1])
    if isinstance(before, nn.Module) and isinstance(after, nn.Module):
        (V, d), (other_V, other_d) = tables[0].shape, tables[1].shape
        if d == other_d and other_V != V:
            shared = min(V, other_V)
            raise InputError(
                f"{names[0]} has {V} rows and {names[1]} has {other_V}: was the vocabulary resized between them? "
                "Compare the rows that they share: "
                f"ks_select(embedding_table(before)[:{shared}], embedding_table(after)[:{shared}])"
            )
    return tables


def _numbers_of(value: Any, name: str) -> Any:
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {shown(value)}: expected a table or a model; ks_select_checkpoints takes paths")
    if not isinstance(value, nn.Module):
        return value
    if has_rows(value):
        return _with_rows(get_rows(value), name)
    weight = getattr(value, "weight", None)
    if (
        isinstance(weight, Tensor)
        and not isinstance(value, nn.Embedding)
        and not hasattr(value, "get_input_embeddings")
    ):
        raise TypeError(
            f"{name} is {shown(value)}: expected a model, an nn.Embedding or a [V, d] table; to compare output heads "
            "or other matrices row by row, pass their weights, such as model.lm_head.weight"
        )
    return _table_of(input_embedding(value, name))


def _table_of(embedding: nn.Embedding) -> Tensor:
    """The weight of an embedding. One that accelerate offloaded is fetched."""
    if embedding.weight.is_meta:
        return base_rows(embedding, torch.arange(table_shape(embedding)[0]))
    return embedding.weight


def _with_rows(embedding: RowEmbedding, name: str) -> Tensor:
    """The table as the model reads it: a copy with the rows in use, in its dtype, as a merge would write it."""
    if embedding.row_sets.active is None:
        return _table_of(embedding)
    if is_sharded(embedding.weight) or is_quantized(embedding):
        raise InputError(
            f"{name} has attached rows over a table that is sharded or quantized: use ks_select_rows(model), which "
            "compares them with their table"
        )
    rows = whole(rows_in_memory(embedding))
    with torch.no_grad():
        table = _table_of(embedding).clone()
        return table.index_copy_(0, embedding.token_ids.to(table.device), rows.to(table))


def rows_in_memory(embedding: RowEmbedding) -> Tensor:
    """The rows in use. Rows that were offloaded together with the model are an InputError."""
    if embedding.rows.is_meta:
        raise InputError("model has attached rows without values (device meta): offload it first, then attach rows")
    return embedding.rows
