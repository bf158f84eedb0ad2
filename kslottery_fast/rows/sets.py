"""Several ticket sets on one model: added to each other, switched without copying, mixed in one batch.

``attach_rows`` makes the first set. Each further set costs its k rows and a slot map, int32 [V]; the sets share the
model and its table. (PEFT copies the table for each forward, and ignores ``adapter_names`` for trainable tokens.)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import M, check_integer, check_model, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import attached_model, get_rows, has_rows, output_role, own_row_heads
from .new_set import new_row_set
from .new_token_marks import new_tokens
from .overlay import RowEmbedding
from .padding import check_train_padding, warn_padding
from .roles import check_output_ids, head_ids
from .rowset import Mixture, RowSets, check_name
from .tables import base_rows, table_shape
from .token_ids import TokenIds, check_token_ids


def row_sets(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the attached sets, in the order in which they came. Without rows it is empty.

    Raises
    ------
    InputError
        The module holds several models with rows.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> row_sets(attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de"))
    ('en-de',)
    """
    return tuple(get_rows(model).row_sets) if has_rows(model) else ()


def add_rows(
    model: M,
    name: str,
    token_ids: TokenIds,
    *,
    output_ids: TokenIds | None = None,
    train_padding: bool | None = None,
    tokenizer: Tokenizer | None = None,
) -> M:
    """Add another set of rows to those that are attached. The set in use stays in use.

    The new rows start at the values of the table, and they train: pass ``model.parameters()`` to the optimizer
    afterwards. A set that no batch reads gets no gradient.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows. The head keeps the role that :func:`attach_rows` gave it.
    name : str
        The name of the new set, without dots.
    token_ids : TokenIds
        Distinct token ids, Tickets, or the path of a ticket file. They may overlap with those of other sets. With a
        ``tokenizer`` also strings, each of which is one token.
    output_ids : TokenIds, optional
        The tokens of the head's own rows, if the sets have such rows and the tokens differ from ``token_ids``.
    train_padding : bool, optional
        Whether the input row of ``padding_idx`` trains, as for :func:`attach_rows`.
    tokenizer : transformers tokenizer, optional
        Looks up strings among ``token_ids``.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No rows are attached, the name is taken or is not a legal name, the token ids are bad, or ``output_ids`` was
        given and the head has no rows of its own. The model is then as it was.
    TypeError
        An argument has the wrong type. The model is then as it was.

    Warns
    -----
    RuntimeWarning
        The row of ``padding_idx`` will not train, and ``train_padding`` is None.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de")
    >>> row_sets(add_rows(model, "en-fr", [3, 5]))
    ('en-de', 'en-fr')
    """
    embeddings, sets = _embeddings(model)
    role = output_role(model)
    check_name(name)
    check_output_ids(output_ids, role)
    check_train_padding(train_padding)
    if name in sets:
        raise InputError(f"a set named {name!r} is attached already; choose another name, or remove_rows it")
    height = table_shape(embeddings[0])[0]
    ids = check_token_ids(token_ids, height, tokenizer=tokenizer, new_tokens=new_tokens(model))
    primary, *others = embeddings
    values = base_rows(primary, ids)
    for other in others:  # an untied encoder-decoder model has copies of the table
        if not torch.equal(base_rows(other, ids).to(values), values):
            raise InputError("the embeddings of encoder and decoder differ in these rows; they cannot share a set")
    head, own_ids = None, None
    if role == "own":
        head = own_row_heads(attached_model(model))[0]
        own_ids = head_ids(head, ids, output_ids, tokenizer, new_tokens(model))
    made = new_row_set(primary, ids, head=head, output_ids=own_ids, train_padding=train_padding is True)
    warn_padding(primary, ids, role, train_padding, tokenizer)
    sets[name] = made
    return model


def use_rows(model: M, name: str | None) -> M:
    """Switch to another set. From now on get_rows, merge_rows and save_adapter mean it too. Nothing is copied.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    name : str or None
        The set, or None for the base model's own rows.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No set has this name. The set in use is then as before.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = add_rows(attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de"), "en-fr", [3, 5])
    >>> get_rows(use_rows(model, "en-fr"))
    RowEmbedding(10, 4, rows={'en-de': 2, 'en-fr': 2}, in_use='en-fr')
    """
    _, sets = _embeddings(model)
    _check_known(sets, name, "name", base=True)
    sets.active = name
    return model


def remove_rows(model: M, name: str) -> M:
    """Drop one set.

    The only set is taken off by :func:`kslottery_fast.rows.detach_rows`. The set in use cannot be dropped: switch to
    another one first.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    name : str
        The set.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No set has this name, it is in use, it is the only one, or the running :func:`mixed_rows` block reads it. The
        model is then as it was.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = add_rows(attach_rows(torch.nn.Embedding(10, 4), [7, 3], name="en-de"), "en-fr", [3, 5])
    >>> row_sets(remove_rows(model, "en-fr"))
    ('en-de',)
    """
    _, sets = _embeddings(model)
    _check_known(sets, name, "name")
    if len(sets) == 1:
        raise InputError(f"{name!r} is the only set; call detach_rows to take it off")
    if sets.active == name:
        raise InputError(f"{name!r} is in use; switch to another set with use_rows first")
    mixture = sets.mixture
    while mixture is not None:  # also in the blocks around the innermost one
        if name in mixture.names:
            raise InputError(f"{name!r} is read by the mixed_rows block that is running; remove it after the block")
        mixture = mixture.outer
    del sets[name]
    return model


def mixed_rows(model: M, names: Sequence[str | None], *, copies: int = 1) -> AbstractContextManager[M]:
    """Let every example of a batch read its own set, in forward, backward and ``generate``.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    names : sequence of str or None
        The set of each example, in the order of the batch. None stands for the base model's own rows.
    copies : int
        How many sequences ``generate`` makes of one example: the number of beams or of returned sequences, whichever
        is larger.

    Returns
    -------
    context manager
        It yields the model. After the block the set in use is what it was before.

    Raises
    ------
    InputError
        A name does not belong to an attached set, ``names`` is empty, or ``copies`` is below 1. A batch of another size
        raises it when it reaches the model.
    TypeError
        An argument has the wrong type.

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
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise InputError(f"names is {shown(names)}: expected one name (or None) for each example of the batch")
    check_integer(copies, "copies", 1)
    for name in names:
        _check_known(sets, name, "names", base=True)
    return _mixing(model, sets, Mixture(names, copies))


@contextmanager
def _mixing(model: M, sets: RowSets, mixture: Mixture) -> Iterator[M]:
    for name in mixture.names:  # a set may have been removed since mixed_rows was called
        _check_known(sets, name, "names", base=True)
    mixture.outer = sets.mixture
    sets.mixture = mixture
    try:
        yield model
    finally:
        sets.mixture = mixture.outer


def _embeddings(model: nn.Module) -> tuple[list[RowEmbedding], RowSets]:
    embeddings = [module for module in attached_model(check_model(model)).modules() if isinstance(module, RowEmbedding)]
    return embeddings, embeddings[0].row_sets


def _check_known(sets: RowSets, name: Any, argument: str, *, base: bool = False) -> None:
    if name is None and base:
        return
    attached = ", ".join(map(repr, sets))
    if not isinstance(name, str):
        verb = "has" if argument == "names" else "is"
        raise TypeError(f"{argument} {verb} {shown(name)}: expected the name of an attached set, {attached}")
    if name not in sets:
        raise InputError(f"{argument}: no set is named {name!r}; attached are {attached}")
