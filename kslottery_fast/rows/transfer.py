"""Partial Transfer: copying single rows from one table into another."""

from typing import Any, TypeAlias, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import M, shown
from kslottery_fast.base.dtensors import is_partitioned
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole, TableName
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import get_rows, has_rows
from .heads import head_bias, head_rows, output_head, own_heads
from .new_token_marks import new_tokens
from .overlay import Overlay, RowHead
from .roles import check_output, check_output_ids, head_ids
from .tables import (
    PlacedRows,
    base_rows,
    check_finite,
    check_writable,
    has_values,
    input_embedding,
    input_modules,
    is_tied,
    place_rows,
    table_shape,
    write_rows,
)
from .token_ids import TokenIds, check_token_ids
from .untie import split_roles, table_copies

Source: TypeAlias = nn.Module | Tensor | np.ndarray
"""A model, or a table [V, d] of float64, float32, float16 or bfloat16."""


@overload
def transfer_rows(
    source: Source,
    target: M,
    token_ids: TokenIds,
    *,
    output: OutputRole = "auto",
    output_ids: TokenIds | None = None,
    tokenizer: Tokenizer | None = None,
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
    output_ids: TokenIds | None = None,
    tokenizer: Tokenizer | None = None,
) -> nn.Module | Tensor | np.ndarray:
    """Partial Transfer: copy the rows ``token_ids`` of one table into another, in place, and nothing else.

    With ``output="own"`` rows of the output head are copied from model to model too.

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
    output : {"auto", "frozen", "tied", "own"}
        What happens to the head of a target model. With "frozen" it keeps the old rows, and that of a tied model gets a
        table for them, as after :func:`kslottery_fast.untie_output`. With "tied" the head of a tied model sees the new
        rows too. With "own" the head gets the rows that the head of the source has, and if both heads have a bias,
        these entries of it; source and target have to be models. "auto" is "frozen", unless some of the tokens are from
        :func:`kslottery_fast.add_tokens`, so that no head has learned them. It is then "tied" for a tied target. For
        others it is "own" for these tokens, if the source has a head.
    output_ids : TokenIds, optional
        The tokens whose rows of the head are copied, where they differ from ``token_ids``. Needs ``output="own"``.
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
        ``output="own"`` was given for a table, or for a model without a head. The target is then as it was.
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
    check_output_ids(output_ids, output)
    origin, table = _table(source, "source"), _table(target, "target")
    if isinstance(target, nn.Module) and has_rows(target):
        raise InputError("the target has attached rows; call merge_rows or detach_rows on it first")
    if output == "own" and not isinstance(target, nn.Module):
        raise InputError("output='own' needs a target that is a model with an output head; this target is a table")
    if output == "tied" and not (isinstance(target, nn.Module) and is_tied(target)):
        raise InputError("output='tied' needs a target whose head shares the input table; this target is not tied")
    if origin.shape[1] != table.shape[1]:
        raise InputError(
            f"source has rows of dimension {origin.shape[1]}, but target has rows of dimension {table.shape[1]}"
        )
    either: TableName = "input" if isinstance(target, nn.Module) else "output"  # a tensor may be of either table
    added = _added_to(source, target)
    ids = check_token_ids(token_ids, table.shape[0], tokenizer=tokenizer, new_tokens=added, table=either)
    if output == "auto":
        output, output_ids = _role_of_added(source, target, ids, added)
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
        if output == "own":
            placed += _head_rows(source, target, ids, output_ids, tokenizer, added)
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
    return _with_attached(values, get_rows(owner), ids) if has_rows(owner) else values


def _with_attached(values: Tensor, module: Overlay, ids: Tensor) -> Tensor:
    """``values`` [k, d] with the rows in use that a module reads in place of those of its table."""
    if module.row_sets.active is None:
        return values
    slots = module.slots[ids.to(module.slots.device)].long()
    return torch.where((slots >= 0).unsqueeze(1), module.rows[slots.clamp(min=0)], values)


def _added_to(*owners: Any) -> list[int]:
    """The tokens that were added to one of two models."""
    return sorted({token for owner in owners if isinstance(owner, nn.Module) for token in new_tokens(owner)})


def _role_of_added(source: Any, target: Any, ids: Tensor, added: list[int]) -> tuple[OutputRole, TokenIds | None]:
    """What "auto" means, as for ``attach_rows``: the head gets what was learned of tokens that were added."""
    ours = [token for token in ids.tolist() if token in added]
    if not ours or not isinstance(target, nn.Module) or output_head(target) is None:
        return "frozen", None
    if is_tied(target):
        return "tied", None
    has_head = isinstance(source, nn.Module) and output_head(source) is not None
    return ("own", ours) if has_head else ("frozen", None)


def _head_rows(
    source: Any,
    target: nn.Module,
    ids: Tensor,
    output_ids: TokenIds | None,
    tokenizer: Tokenizer | None,
    added: list[int],
) -> list[PlacedRows]:
    """Rows of the source's head, and entries of its bias, to be written into the head of the target."""
    origin = output_head(source) if isinstance(source, nn.Module) else None
    if origin is None:
        raise InputError("output='own' needs a source that is a model with an output head; pass output='frozen'")
    heads = own_heads(target)
    own = head_ids(heads[0], ids, output_ids, tokenizer, added)
    height, dimension = table_shape(origin)
    check_token_ids(own, height, "output_ids (in the source)")
    if dimension != table_shape(heads[0])[1]:
        raise InputError(
            f"the head of source has rows of dimension {dimension}, but that of target has {table_shape(heads[0])[1]}"
        )
    for head in heads:
        check_writable(head, "transfer rows into")
    values, bias = head_rows(origin, own), head_bias(origin, own)
    if isinstance(origin, RowHead):
        values = _with_attached(values, origin, own)
        if bias is not None and origin.row_sets.active is not None and origin.row_bias is not None:
            slots = origin.slots[own.to(origin.slots.device)].long()
            bias = torch.where(slots >= 0, origin.row_bias[slots.clamp(min=0)], bias)
    values = values.to(cast(Tensor, heads[0].weight).dtype)
    check_finite(values, own, "cannot transfer into the head")
    placed = place_rows(heads, own, values)
    kept: Any = getattr(heads[0], "bias", None)
    if bias is not None and kept is not None:
        bias = bias.to(kept.dtype)
        check_finite(bias[:, None], own, "cannot transfer into the bias of the head")
        placed += place_rows(heads, own, bias, "bias")
    return placed
