"""Taking rows off a model: back to the original, or written into its tables."""

from collections.abc import Sequence
from typing import Any

import torch

from kslottery_fast.base.arguments import M, check_model
from kslottery_fast.base.errors import InputError

from .attachment import all_attachments, attachment, detach, own_row_heads
from .overlay import RowEmbedding
from .rowset import RowSet
from .tables import PlacedRows, check_finite, check_writable, place_rows, write_rows
from .untie import split_roles, table_copies


def detach_rows(model: M) -> M:
    """Take the rows off, which gives back the original model bit for bit.

    What :func:`attach_rows` froze trains again, unless the model got other parameters since. In that case an adapter
    library such as PEFT wants the rest of it frozen, and no flag is touched.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows, or a module that holds several of them: the rows of all are taken off.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No rows are attached.

    Examples
    --------
    >>> from kslottery_fast import attach_rows, has_rows
    >>> model = detach_rows(attach_rows(torch.nn.Embedding(10, 4), [7, 3]))
    >>> has_rows(model), model.weight.requires_grad
    (False, True)
    """
    owners = all_attachments(check_model(model))
    for owner, _ in owners:
        # A module that holds several models is not a wrapper that an adapter library put around one of them.
        detach(model if len(owners) == 1 else owner)
    return model


def merge_rows(model: M) -> M:
    """Write the rows into the table: an ordinary model with the same logits, ready for ``save_pretrained``.

    A tied model whose head does not follow cannot keep one table for two roles: its head gets a copy of the old table,
    as after :func:`untie_output`. Rows and bias entries of the head's own are written into the head. What
    :func:`attach_rows` froze trains again, as after :func:`detach_rows`.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No rows are attached or in use, or several sets are attached. A row holds NaN or Inf in the dtype of the table.
        A table is quantized, offloaded or sharded, or the architecture cannot be untied. The model is then as it was.

    Examples
    --------
    >>> from kslottery_fast import attach_rows, get_rows
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> _ = get_rows(model).rows.data.fill_(1.0)
    >>> merge_rows(model).weight[7]
    tensor([1., 1., 1., 1.], grad_fn=<SelectBackward0>)
    """
    owner, kept = attachment(check_model(model))
    embeddings = [module for module in owner.modules() if isinstance(module, RowEmbedding)]
    if not embeddings:
        raise InputError(
            "the embedding that the rows were attached to is no longer in the model, so there is nothing to merge; "
            "call detach_rows, which restores the rest of the model"
        )
    heads = own_row_heads(owner) if kept.output == "own" else []
    sets, row_set = embeddings[0].row_sets, embeddings[0].row_sets.current()
    others = [repr(name) for name in sets if name != sets.active]
    if others:
        raise InputError(
            f"merging would lose the sets {', '.join(others)}; save them with save_adapter if they are needed, "
            "then drop them with remove_rows"
        )
    modules: list[Any] = [*embeddings, *heads]
    for module in modules:
        check_writable(module, "merge into")
    with torch.no_grad():
        # All memory is asked for before the rows are taken off: if there is not enough, they are still attached.
        placed = _placed(embeddings, row_set)
        copies = [] if kept.output == "tied" else table_copies(owner)
        if row_set.output is not None:
            placed += _placed(heads, row_set.output)
        detach(model)
        split_roles(owner, copies)
        write_rows(placed)
    return model


def _placed(modules: Sequence[Any], row_set: RowSet) -> list[PlacedRows]:
    """What is to be written into these modules."""
    ids, dtype = row_set.token_ids, modules[0].weight.dtype
    values = row_set.rows.to(dtype)
    check_finite(values, ids, f"cannot merge into a {dtype} table")
    placed = place_rows(modules, ids, values)
    if row_set.bias is not None:
        entries = row_set.bias.to(modules[0].bias.dtype)
        check_finite(entries[:, None], ids, f"cannot merge into a {entries.dtype} bias")
        placed += place_rows(modules, ids, entries, "bias")
    return placed
