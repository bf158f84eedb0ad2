"""Training and moving single rows of an embedding table.

Rows are an overlay: the base table stays frozen and untouched, k trained rows are a small float32 parameter,
and a slot map says which token reads which row. Nothing of size [V, d] is ever made, neither copy, gradient
nor optimizer state. :func:`merge_rows` writes the rows into the table when it is time to save an ordinary
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model
from kslottery_fast.base.dtensors import is_partitioned
from kslottery_fast.base.errors import InputError

from .attachment import attach, attachment, detach, guard
from .overlay import RowEmbedding, RowHead, RowOutput, overlay
from .rowset import RowSets, check_name, new_row_set
from .tables import (
    active_token_ids,
    base_rows,
    check_finite,
    check_table,
    check_token_ids,
    check_writable,
    embedding_table,
    has_values,
    input_embedding,
    input_modules,
    is_quantized,
    is_tied,
    split_roles,
    table_copies,
    table_shape,
    table_users,
)
from .token_ids import TokenIds

__all__ = [
    "RowEmbedding",
    "active_token_ids",
    "attach_rows",
    "attached_model",
    "detach_rows",
    "embedding_table",
    "get_rows",
    "has_rows",
    "is_tied",
    "merge_rows",
    "output_role",
    "transfer_rows",
    "untie_output",
]


def attach_rows(
    model: nn.Module,
    token_ids: TokenIds,
    *,
    output: str = "auto",
    name: str = "default",
    freeze: bool = True,
    tokenizer: Any = None,
) -> nn.Module:
    """Freeze a model and make single rows of its input embedding trainable.

    Parameters
    ----------
    model : a transformers model, decoder-only or encoder-decoder, or an ``nn.Embedding``. Changed in place. Its
        table may be quantized, or offloaded by accelerate: it is only read.
    token_ids : k distinct token ids, or Tickets. k may be thousands (the active vocabulary of a corpus).
    output : what the head of a tied model does. "frozen": it keeps the original rows, only the input role
        trains. "tied": its k logit columns follow the rows. "auto" is "frozen": through a tied head every row
        gets a tiny gradient, which Adam turns into full-size steps.
    name : of this first set; :func:`kslottery_fast.rows.add_rows` puts others beside it. Without dots.
    freeze : False leaves the other parameters as they are, such as LoRA weights that train beside the rows. Attach
        the rows after ``get_peft_model``, which freezes all that it finds, rows too.

    Returns
    -------
    The model. Its only trainable parameter (with ``freeze``) is ``get_rows(model).rows``, [k, d] float32, equal to
    the base rows.

    Raises
    ------
    InputError : bad token ids, rows attached already, no input embedding, a sharded table or one without
        values, NaN in a row, an unknown ``output``, or "tied" for a model that is not. The model is then as it
        was.

    Warns
    -----
    RuntimeWarning : once, in the first training forward that reads rows with requires_grad False.

    Examples
    --------
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('row_sets.default.rows', [2, 4])]
    >>> model(torch.tensor([1, 7])).shape
    torch.Size([2, 4])
    """
    _check_output(output)
    if has_rows(model):
        raise InputError("rows are attached to this model already; call merge_rows or detach_rows first")
    check_name(name)
    embedding = input_embedding(model)
    weight = check_table(embedding)
    ids = check_token_ids(token_ids, table_shape(embedding)[0], tokenizer=tokenizer)
    modules = input_modules(model, ids)
    heads = table_users(model, weight)[1] if output == "tied" else []
    if output == "tied" and not heads:
        why = (
            "the table is offloaded, and its users cannot be told; attach the rows before accelerate offloads the model"
            if weight.is_meta
            else "this model is not tied"
        )
        raise InputError(f"output='tied' needs a head that shares the input table; {why}")
    for module in modules:
        check_table(module)
        if "forward" in vars(module) and "_old_forward" not in vars(module):
            raise InputError("the embedding's forward has been replaced on the instance; attach the rows first")
    sets = RowSets(name, new_row_set(embedding, ids))

    attach(model, modules, role="tied" if output == "tied" else "frozen", freeze=freeze)
    try:
        for module in modules:
            overlay(module, RowOutput if is_quantized(module) else RowEmbedding, sets)
        for head in heads:
            overlay(head, RowHead, sets)
        guard(model)
    except BaseException:
        detach(model)
        raise
    return model


def has_rows(model: nn.Module) -> bool:
    """Tell whether rows are attached to a model. Wrappers are looked through.

    Raises
    ------
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> model = torch.nn.Embedding(10, 4)
    >>> has_rows(model), has_rows(attach_rows(model, [7, 3]))
    (False, True)
    """
    return any(isinstance(module, RowEmbedding) for module in check_model(model).modules())


def get_rows(model: nn.Module) -> RowEmbedding:
    """Return the embedding that rows are attached to. Wrappers are looked through.

    Raises
    ------
    InputError
        No rows are attached; :func:`has_rows` asks.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> get_rows(model).token_ids, get_rows(model).rows.shape
    (tensor([7, 3]), torch.Size([2, 4]))
    """
    for module in check_model(model).modules():
        if isinstance(module, RowEmbedding):
            return module
    raise InputError("no rows are attached to this model; call attach_rows first, or ask has_rows(model)")


def attached_model(model: nn.Module) -> nn.Module:
    """Return the very model that was given to :func:`attach_rows`, without wrappers; InputError if none was."""
    return attachment(model)[0]


def output_role(model: nn.Module) -> str:
    """Return what the head does, "frozen" or "tied"; InputError if no rows are attached."""
    return attachment(model)[1].output


def detach_rows(model: nn.Module) -> nn.Module:
    """Take the rows off: the original model, bit for bit.

    What :func:`attach_rows` froze trains again, unless the model got other parameters since: then an adapter library
    (PEFT) wants the rest of it frozen, and no flag is touched.

    Raises
    ------
    InputError : no rows are attached.
    """
    detach(model)
    return model


@torch.no_grad()
def merge_rows(model: nn.Module) -> nn.Module:
    """Write the rows into the table: an ordinary model with the same logits, ready for save_pretrained.

    A tied model with a frozen head cannot keep one table for two roles: its head gets a copy of the old
    table, see :func:`untie_output`. What :func:`attach_rows` froze trains again, as after :func:`detach_rows`.

    Raises
    ------
    InputError : no rows are attached or in use, several sets are, a row holds NaN or Inf in the dtype of the
        table, the table is quantized, offloaded or sharded, or the architecture cannot be untied. The model is
        then as it was.
    """
    owner, kept = attachment(model)
    embeddings = [module for module in owner.modules() if isinstance(module, RowEmbedding)]
    sets, ids = embeddings[0].row_sets, embeddings[0].token_ids
    others = [repr(name) for name in sets if name != sets.active]
    if others:
        raise InputError(
            f"merging would lose the sets {', '.join(others)}; save them with save_adapter if they are needed, "
            "then drop them with remove_rows"
        )
    for module in embeddings:
        check_writable(module, "merge into")
    values = embeddings[0].rows.to(embeddings[0].weight.dtype)
    check_finite(values, ids, f"cannot merge into a {values.dtype} table")
    # All memory is asked for before the rows are taken off: if there is not enough, they are still attached.
    copies = table_copies(owner) if kept.output == "frozen" else []
    placed = _placed(embeddings, ids, values)
    detach(model)
    split_roles(owner, copies)
    _write(placed)
    return model


@torch.no_grad()
def transfer_rows(
    source: nn.Module | torch.Tensor,
    target: nn.Module | torch.Tensor,
    token_ids: Any,
    *,
    output: str = "auto",
) -> Any:
    """Partial Transfer: copy the rows ``token_ids`` of one table into another, in place, and nothing else.

    Parameters
    ----------
    source : the embed-tuned model, or its table [V, d]. Attached rows that are in use count. Accelerate may have
        offloaded it.
    target : the original model, or its table [V, d]. Only these rows are written.
    token_ids : distinct token ids, or Tickets of the target's table.
    output : for a tied target model. "frozen" (and "auto"): the head keeps the old rows, see
        :func:`untie_output`; "tied": the head sees the new rows too.

    Returns
    -------
    The target.

    Raises
    ------
    InputError : tables of different dimension or without values (device meta), bad ids, NaN or Inf in the rows, a
        target with attached rows. The target is then as it was.

    Examples
    --------
    >>> before, after = torch.zeros(4, 2), torch.ones(4, 2)
    >>> transfer_rows(after, before, [1, 2])
    tensor([[0., 0.],
            [1., 1.],
            [1., 1.],
            [0., 0.]])
    """
    _check_output(output)
    origin, table = _table(source, "source"), _table(target, "target")
    if isinstance(target, nn.Module) and has_rows(target):
        raise InputError("the target has attached rows; call merge_rows or detach_rows on it first")
    if origin.shape[1] != table.shape[1]:
        raise InputError(f"source has rows of dimension {origin.shape[1]}, target of {table.shape[1]}")
    ids = check_token_ids(token_ids, table.shape[0])
    check_token_ids(ids, origin.shape[0], "token_ids (in the source)")
    if isinstance(target, nn.Module):
        check_writable(input_embedding(target), "transfer rows into")
    values = _read(source, origin, ids).to(device=table.device, dtype=table.dtype)
    check_finite(values, ids, "cannot transfer")
    if not isinstance(target, nn.Module):
        return table.index_copy_(0, ids.to(table.device), values)
    modules = input_modules(target, ids)
    copies = [] if output == "tied" else table_copies(target)
    placed = _placed(modules, ids, values)
    split_roles(target, copies)
    _write(placed)
    return target


def untie_output(model: nn.Module) -> nn.Module:
    """Give the output head its own copy of the table; the logits stay as they are, bit for bit.

    In a model whose encoder and decoder share the table too, those get copies as well:
    ``tie_word_embeddings`` is one flag for all of them, and ``from_pretrained`` would otherwise find some of
    the tables missing.

    Parameters
    ----------
    model : a transformers model. One that is not tied is left alone.

    Returns
    -------
    The model, with ``config.tie_word_embeddings = False``.

    Raises
    ------
    InputError : rows are attached, or the architecture scales its logits by the same flag (UMT5, for one).
    """
    if has_rows(model):
        raise InputError("untie_output needs a model without attached rows; call it before attach_rows")
    return split_roles(model, table_copies(model))


def _check_output(output: str) -> None:
    if output not in ("auto", "frozen", "tied"):
        raise InputError(f"output must be 'auto', 'frozen' or 'tied', not {output!r}")


def _table(owner: nn.Module | torch.Tensor, name: str) -> torch.Tensor:
    table = embedding_table(owner) if isinstance(owner, nn.Module) else owner
    if not torch.is_tensor(table):
        raise TypeError(f"{name} must be a model or a tensor [V, d], not {type(owner).__name__}")
    if is_partitioned(table):
        raise InputError(
            f"{name} is partitioned by DeepSpeed ZeRO-3; save its rows by save_adapter on all processes "
            "(kslottery_fast.rows.save_adapter), and load them onto a model in memory"
        )
    if table.dim() != 2 or not table.dtype.is_floating_point:
        raise InputError(f"{name} must be a floating-point table [V, d], not {table.dtype} {list(table.shape)}")
    if not (has_values(input_embedding(owner)) if isinstance(owner, nn.Module) else not table.is_meta):
        raise InputError(f"{name} has no values (device meta); load it into memory, or let accelerate offload it")
    return table


def _read(owner: nn.Module | torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows [k, d] of a table, with attached rows that are in use in place of their base rows."""
    if not isinstance(owner, nn.Module):
        return table.index_select(0, ids.to(table.device))
    values, attached = base_rows(input_embedding(owner), ids), get_rows(owner) if has_rows(owner) else None
    if attached is None or attached.row_sets.active is None:
        return values
    slots = attached.slots[ids.to(attached.slots.device)].long().unsqueeze(1)
    return torch.where(slots >= 0, attached.rows[slots.squeeze(1).clamp(min=0)], values)


def _placed(
    modules: Sequence[nn.Module], ids: torch.Tensor, values: torch.Tensor
) -> list[tuple[Any, torch.Tensor, torch.Tensor]]:
    """Each module with the ids and values for its table, where the table is and of its dtype."""
    weights: list[Any] = [module.weight for module in modules]
    return [(m, ids.to(w.device), values.to(w)) for m, w in zip(modules, weights, strict=True)]


def _write(placed: list[tuple[Any, torch.Tensor, torch.Tensor]]) -> None:
    for module, ids, values in placed:
        module.weight.index_copy_(0, ids, values)
