"""Several ticket sets on one model: added beside each other, switched without copying, mixed in one batch.

``attach_rows`` makes the first set. Each further one costs its k rows and a slot map, int32 [V]; the model and
its table are shared. (PEFT copies the table for each forward, and ignores ``adapter_names`` for trainable
tokens.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.errors import InputError

from .attach import attached_model, get_rows, has_rows
from .overlay import RowEmbedding
from .rowset import Mixture, RowSets, check_name, new_row_set
from .tables import base_rows, check_token_ids


def row_sets(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the attached sets, in the order in which they came; none for a model without rows.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> row_sets(attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de"))
    ('en-de',)
    """
    return tuple(get_rows(model).row_sets) if has_rows(model) else ()


def add_rows(model: nn.Module, name: str, token_ids: Any) -> nn.Module:
    """Put another set of rows beside those that are attached; the set in use stays in use.

    The new rows start at the values of the table, and train: pass ``model.parameters()`` to the optimizer
    afterwards. A set that no batch reads gets no gradient.

    Parameters
    ----------
    model : a model with attached rows. The head keeps the role that :func:`attach_rows` gave it.
    name : not taken yet, without dots.
    token_ids : distinct token ids, or Tickets; they may overlap with those of other sets.

    Returns
    -------
    The model.

    Raises
    ------
    InputError : no rows are attached, the name is taken or no name, bad token ids. The model is then as it was.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de")
    >>> row_sets(add_rows(model, "en-fr", [3, 5]))
    ('en-de', 'en-fr')
    """
    embeddings, sets = _embeddings(model)
    check_name(name)
    if name in sets:
        raise InputError(f"a set named {name!r} is attached already; choose another name, or remove_rows it")
    ids = check_token_ids(token_ids, sets[next(iter(sets))].vocab_size)  # type: ignore[arg-type]
    primary, *others = embeddings
    values = base_rows(primary, ids)
    for other in others:  # an untied encoder-decoder model has copies of the table
        if not torch.equal(base_rows(other, ids).to(values), values):
            raise InputError("the embeddings of encoder and decoder differ in these rows; they cannot share a set")
    sets[name] = new_row_set(primary, ids)
    return model


def use_rows(model: nn.Module, name: str | None) -> nn.Module:
    """Switch to another set: from now on get_rows, merge_rows and save_adapter mean it too. Copies nothing.

    Parameters
    ----------
    model : a model with attached rows.
    name : the set, or None for the base model's own rows.

    Returns
    -------
    The model.

    Raises
    ------
    InputError : no such set. The set in use is then as before.
    """
    _, sets = _embeddings(model)
    _check_known(sets, [name])
    sets.active = name
    return model


def remove_rows(model: nn.Module, name: str) -> nn.Module:
    """Drop one set. The last one goes with detach_rows, and the one in use not at all: switch first.

    Raises
    ------
    InputError : no such set, the set in use, or the only one. The model is then as it was.
    """
    _, sets = _embeddings(model)
    _check_known(sets, [name])
    if len(sets) == 1:
        raise InputError(f"{name!r} is the only set; call detach_rows to take it off")
    if sets.active == name:
        raise InputError(f"{name!r} is in use; switch to another set with use_rows first")
    del sets[name]
    return model


@contextmanager
def mixed_rows(model: nn.Module, names: Sequence[str | None], *, copies: int = 1) -> Iterator[nn.Module]:
    """Let every example of a batch read its own set, in forward, backward and ``generate``.

    Parameters
    ----------
    model : a model with attached rows.
    names : the set of each example, in the order of the batch; None for the base model's own rows.
    copies : how many sequences ``generate`` makes of one example: the number of beams or of returned sequences,
        whichever is larger.

    Yields
    ------
    The model. Afterwards the set in use is what it was before.

    Raises
    ------
    InputError : no such set, no names, ``copies`` below 1; a batch of another size, when it reaches the model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(torch.nn.Embedding.from_pretrained(torch.zeros(10, 1)), [7], name="en-de")
    >>> _ = get_rows(model).rows.data.fill_(1.0)
    >>> with mixed_rows(model, ["en-de", None]):
    ...     model(torch.tensor([[7, 3], [7, 3]])).squeeze(-1).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    _, sets = _embeddings(model)
    if isinstance(names, str) or not names:
        raise InputError(f"names is {names!r}: expected one name (or None) for each example of the batch")
    if copies < 1:
        raise InputError(f"copies is {copies}, expected at least 1")
    _check_known(sets, names)
    before = sets.mixture
    sets.mixture = Mixture(names, copies)
    try:
        yield model
    finally:
        sets.mixture = before


def _embeddings(model: nn.Module) -> tuple[list[RowEmbedding], RowSets]:
    embeddings = [module for module in attached_model(model).modules() if isinstance(module, RowEmbedding)]
    return embeddings, embeddings[0].row_sets


def _check_known(sets: RowSets, names: Sequence[str | None]) -> None:
    for name in names:
        if name is not None and name not in sets:
            raise InputError(f"no set is named {name!r}; attached are {', '.join(map(repr, sets))}")
