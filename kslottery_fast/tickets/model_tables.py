"""The two tables of a model as it reads them: the input embedding and the output head, each with its rows in use."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TableName, TicketTable
from kslottery_fast.rows.attach import attached_model, get_rows, has_rows, is_tied, output_role
from kslottery_fast.rows.heads import output_head
from kslottery_fast.rows.overlay import Overlay, RowHead
from kslottery_fast.rows.tables import base_rows, input_embedding, is_quantized, table_shape


def numbers_of(value: Any, name: str, table: TableName) -> Any:
    """The table of a module. Anything else is returned as it is.

    Raises
    ------
    InputError
        A model has no such table, or rows that cannot be read as part of a table.
    TypeError
        A path, or a module that is neither a model, nor an embedding, nor, for "output", a head.
    """
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {shown(value)}: expected a table or a model; ks_select_checkpoints takes paths")
    if not isinstance(value, nn.Module):
        return value
    return _input_table(value, name) if table == "input" else _output_table(value, name)


def table_of_both(before: Any, after: Any, table: TableName) -> TicketTable:
    """What tickets say of the table that was asked for: "shared" if the head of both models has no other."""
    shared = table == "output" and all(isinstance(each, nn.Module) and _head_shares(each) for each in (before, after))
    return "shared" if shared else table


def rows_in_memory(module: Overlay) -> Tensor:
    """The rows in use. Rows that were offloaded together with the model are an InputError."""
    if module.rows.is_meta:
        raise InputError("model has attached rows without values (device meta): offload it first, then attach rows")
    return module.rows


def _input_table(value: nn.Module, name: str) -> Tensor:
    if has_rows(value):
        return _with_rows(get_rows(value), name)
    if isinstance(getattr(value, "weight", None), Tensor) and not (
        isinstance(value, nn.Embedding) or hasattr(value, "get_input_embeddings")
    ):
        raise TypeError(
            f"{name} is {shown(value)}: expected a model, an nn.Embedding or a [V, d] table; table='output' compares "
            "output heads; to compare other matrices row by row, pass their weights, such as model.lm_head.weight"
        )
    return _table_of(input_embedding(value, name))


def _output_table(value: nn.Module, name: str) -> Tensor:
    if not has_rows(value):
        return _table_of(_head_of(value, name))
    head = _head_of(attached_model(value), name)
    return _with_rows(head, name) if isinstance(head, RowHead) else _table_of(head)


def _head_of(model: nn.Module, name: str) -> nn.Module:
    """The module that turns hidden states into logits. A linear layer is its own."""
    head = model if isinstance(model, nn.Linear) else output_head(model)
    weight = getattr(head, "weight", None)
    if head is None or not isinstance(weight, Tensor) or weight.dim() != 2:
        found = "none" if head is None else shown(head)
        raise InputError(
            f"{name}, {shown(model)}, has no output head: expected a module with a weight [V, d], found {found}; "
            "table='input' compares the input embeddings"
        )
    return head


def _head_shares(model: nn.Module) -> bool:
    """Tell whether the head of a model reads the input table, and the rows that are in use there."""
    if has_rows(model) and get_rows(model).row_sets.active is not None and output_role(model) != "tied":
        return False
    owner = attached_model(model) if has_rows(model) else model
    if isinstance(owner, nn.Linear):
        return False
    if input_embedding(owner).weight.is_meta:  # accelerate gives every user of an offloaded table another weight
        config: Any = getattr(owner, "config", None)
        return config is not None and bool(config.get_text_config(decoder=True).tie_word_embeddings)
    return is_tied(owner)


def _table_of(module: Any) -> Tensor:
    """The weight of an embedding or a head. One that accelerate offloaded is fetched."""
    weight: Tensor = module.weight
    return base_rows(module, torch.arange(table_shape(module)[0])) if weight.is_meta else weight


def _with_rows(module: Any, name: str) -> Tensor:
    """The table as the model reads it: a copy with the rows in use, in its dtype, as a merge would write it."""
    if module.row_sets.active is None:
        return _table_of(module)
    if is_sharded(module.weight) or is_quantized(module):
        raise InputError(
            f"{name} has attached rows over a table that is sharded or quantized: use ks_select_rows(model), which "
            "compares them with their table"
        )
    rows = whole(rows_in_memory(module))
    with torch.no_grad():
        table = _table_of(module).clone()
        return table.index_copy_(0, module.token_ids.to(table.device), rows.to(table))
