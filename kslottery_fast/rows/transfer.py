"""Partial Transfer: copying single rows from one table into another."""

from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import M, shown
from kslottery_fast.base.dtensors import is_partitioned
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole, TableName
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import get_rows, has_rows
from .roles import check_output
from .tables import (
    base_rows,
    check_finite,
    check_writable,
    has_values,
    input_embedding,
    input_modules,
    is_tied,
    place_rows,
    write_rows,
)
from .token_ids import TokenIds, check_token_ids
from .untie import split_roles, table_copies

Source: TypeAlias = nn.Module | Tensor | np.ndarray
"""A model, or a table [V, d] of float64, float32, float16 or bfloat16."""


@overload
def transfer_rows(
    source: Source, target: M, token_ids: TokenIds, *, output: OutputRole = "auto", tokenizer: Tokenizer | None = None
) -> M: ...


@overload
def transfer_rows(
    source: Source, target: Tensor, token_ids: TokenIds, *, tokenizer: Tokenizer | None = None
) -> Tensor: ...


@overload
def transfer_rows(
    source: Source, target: np.ndarray, token_ids: TokenIds, *, tokenizer: Tokenizer | None = None
) -> np.ndarray: ...


def transfer_rows(
    source: Source,
    target: nn.Module | Tensor | np.ndarray,
    token_ids: TokenIds,
    *,
    output: OutputRole = "auto",
    tokenizer: Tokenizer | None = None,
) -> nn.Module | Tensor | np.ndarray:
    """Partial Transfer: copy the rows ``token_ids`` of one table into another, in place, and nothing else.

    Parameters
    ----------
    source : nn.Module, Tensor or array
        The embed-tuned model, or its table [V, d]. Attached rows that are in use count. Accelerate may have offloaded
        the model.
    target : nn.Module, Tensor or array
        The original model, or its table [V, d]. Only these rows are written. An array is written in place.
    token_ids : TokenIds
        Distinct token ids, Tickets of the target's table, or the path of a ticket file. With a ``tokenizer`` also
        strings, each of which is one token.
    output : {"auto", "frozen", "tied"}
        What happens to the head of a tied target model. With "frozen" and "auto" it keeps the old rows, as after
        :func:`kslottery_fast.untie_output`. With "tied" it sees the new rows too.
    tokenizer : transformers tokenizer, optional
        Looks up strings among ``token_ids``.

    Returns
    -------
    nn.Module, Tensor or array
        The target.

    Raises
    ------
    InputError
        The tables are of different dimension, or have no values (device meta). The ids are bad. A row holds NaN or Inf.
        The target has attached rows or cannot be written. ``output="tied"`` was given for a target that is not tied.
        The target is then as it was.
    TypeError
        Source or target is neither a model nor a table of floats.

    Examples
    --------
    >>> before, after = torch.zeros(4, 2), torch.ones(4, 2)
    >>> transfer_rows(after, before, [1, 2])
    tensor([[0., 0.],
            [1., 1.],
            [1., 1.],
            [0., 0.]])
    """
    check_output(output)
    origin, table = _table(source, "source"), _table(target, "target")
    if isinstance(target, nn.Module) and has_rows(target):
        raise InputError("the target has attached rows; call merge_rows or detach_rows on it first")
    if output == "tied" and not (isinstance(target, nn.Module) and is_tied(target)):
        raise InputError("output='tied' needs a target whose head shares the input table; this target is not tied")
    if origin.shape[1] != table.shape[1]:
        raise InputError(
            f"source has rows of dimension {origin.shape[1]}, but target has rows of dimension {table.shape[1]}"
        )
    either: TableName = "input" if isinstance(target, nn.Module) else "output"  # a tensor may be of either table
    ids = check_token_ids(token_ids, table.shape[0], tokenizer=tokenizer, table=either)
    check_token_ids(ids, origin.shape[0], "token_ids (in the source)")
    if isinstance(target, nn.Module):
        check_writable(input_embedding(target), "transfer rows into")
    with torch.no_grad():
        values = _read(source, origin, ids).to(device=table.device, dtype=table.dtype)
        check_finite(values, ids, "cannot transfer")
        if not isinstance(target, nn.Module):
            table.index_copy_(0, ids.to(table.device), values)
            return target
        modules = input_modules(target, ids)
        copies = [] if output == "tied" else table_copies(target)
        placed = place_rows(modules, ids, values)
        split_roles(target, copies)
        write_rows(placed)
    return target


def _table(owner: Any, name: str) -> Tensor:
    """The table [V, d] of a model, or over the memory of an array."""
    if isinstance(owner, np.ndarray):
        return _array_table(owner, name)
    table = input_embedding(owner, name).weight if isinstance(owner, nn.Module) else owner
    if not torch.is_tensor(table):
        raise TypeError(f"{name} is {shown(owner)}: expected a model, or a table [V, d] as a tensor or array")
    if is_partitioned(table):
        raise InputError(
            f"{name} is partitioned by DeepSpeed ZeRO-3; save its rows by save_adapter on all processes "
            "(kslottery_fast.save_adapter), and load them onto a model in memory"
        )
    if table.dim() != 2 or not table.dtype.is_floating_point:
        raise InputError(f"{name} must be a floating-point table [V, d], not {table.dtype} {list(table.shape)}")
    if not (has_values(input_embedding(owner)) if isinstance(owner, nn.Module) else not table.is_meta):
        raise InputError(f"{name} has no values (device meta); load it into memory, or let accelerate offload it")
    return table


def _array_table(array: np.ndarray, name: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: expected a plain one, {name}.filled(value)")
    if array.ndim != 2 or array.dtype.kind != "f" or array.itemsize > 8:
        raise InputError(f"{name} must be a floating-point table [V, d], not {array.dtype} {list(array.shape)}")
    if name == "source":
        return torch.empty(array.shape, device="meta")  # its shape is all that is asked; _read reads the array
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides) or not array.dtype.isnative
    if odd or not array.flags.writeable:
        raise InputError("target is an array that cannot be written in place; pass a copy of it, target.copy()")
    return torch.from_numpy(array)


def _read(owner: Any, table: Tensor, ids: Tensor) -> Tensor:
    """Rows [k, d] of a table, with attached rows that are in use in place of their base rows."""
    if isinstance(owner, np.ndarray):
        rows = owner[ids.numpy()]
        return torch.from_numpy(np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")))
    if not isinstance(owner, nn.Module):
        return table.index_select(0, ids.to(table.device))
    values = base_rows(input_embedding(owner), ids)
    if not has_rows(owner) or get_rows(owner).row_sets.active is None:
        return values
    attached = get_rows(owner)
    slots = attached.slots[ids.to(attached.slots.device)].long().unsqueeze(1)
    return torch.where(slots >= 0, attached.rows[slots.squeeze(1).clamp(min=0)], values)
