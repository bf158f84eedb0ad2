"""Saving rows as a PEFT adapter on disk, and loading them onto a model from disk or from the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn

from kslottery_fast.base.arguments import (
    M,
    check_choice,
    check_flag,
    check_model,
    check_path,
    check_tokenizer,
    shown,
)
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.hub import found_folder
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_card import portable_name
from .adapter_format import CONFIG_FILE, WEIGHTS_FILE, HeadRows, StoredRows, check_fits, read_rows
from .adapter_model import base_modules, head_role, kind_of, output_head, says_tied, tied_heads, token_outside
from .adapter_rows import AdapterRows, check_target, save_rows_adapter, write_adapter
from .adapter_tokens import planned_growth, record_of, unknown_rows
from .attach import attach_rows
from .attachment import attached_model, get_rows, has_rows, output_role
from .overlay import RowEmbedding
from .rowset import check_name
from .sets import add_rows
from .tables import base_rows, check_finite, input_embedding, input_modules, is_tied, table_shape

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "load_adapter", "rows_of", "save_adapter", "save_rows_adapter"]


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: Literal["auto", "untied"] = "auto",
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write the rows attached to a model as an adapter that PEFT loads.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows. It is not changed. If it is sharded (FSDP2, DeepSpeed ZeRO-3), all processes have to
        call this: they gather the rows, and the first process writes.
    path : str or path
        The adapter directory. It is made, or replaced if it holds an adapter. It is written whole or not at all.
    base : {"auto", "untied"}
        The model that PEFT will load the adapter onto. "auto" is the model that the rows are attached to, tied or not.
        "untied" is that model after :func:`kslottery_fast.untie_output`: the plainest format, for input-only rows of a
        tied model.
    base_model_name_or_path : str or path, optional
        The name of the base model, which AutoPeftModel loads. By default it is the name that the model was loaded by,
        unless that is a path: a path of this machine would be of no use on another one.
    tokenizer : transformers tokenizer, optional
        The adapter keeps its strings of the tokens, and all tokens that were added to it, in their order.
        :func:`load_adapter` then checks a tokenizer against them, and adds what a fresh base and tokenizer lack.
    metrics : mapping of str to float, optional
        Numbers for the card, such as ``{"NLL": 1.23}``.

    Raises
    ------
    InputError
        No rows are attached. A row holds NaN. A head that PEFT would wrap has a bias (PEFT drops it). ``base="untied"``
        was given for rows that the head follows. The directory holds something else. The tokenizer has no token for a
        row.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import tempfile
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, f"{folder}/adapter", base_model_name_or_path="org/model")
    ...     sorted(os.listdir(f"{folder}/adapter"))
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    get_rows(model)
    folder = check_target(path)
    about = rows_of(model, base, base_model_name_or_path, tokenizer, metrics)
    if about is not None:
        write_adapter(folder, about)


def rows_of(
    model: nn.Module,
    base: Literal["auto", "untied"] = "auto",
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: Mapping[str, float] | None = None,
) -> AdapterRows | None:
    """Gather what an adapter of a model's rows holds; :func:`save_adapter` explains the arguments.

    Returns
    -------
    AdapterRows or None
        None on all processes but the first, if the model is sharded.
    """
    role, owner = output_role(check_model(model)), cast(Any, attached_model(model))
    check_choice(base, ("auto", "untied"), "base")
    _check_metrics(metrics)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    name = _base_name(owner, base_model_name_or_path)
    embedding = cast(RowEmbedding, input_embedding(owner))
    V, ids = table_shape(embedding)[0], embedding.token_ids.tolist()
    tokens = record_of(tokenizer, ids, V) if tokenizer is not None else None
    names = {id(module): name for name, module in base_modules(owner)}
    heads = tied_heads(owner, embedding, names, role, base)
    head = None
    if heads and role == "frozen":
        token = token_outside(ids, V)
        # Tied or not by now: accelerate gives the modules that it offloads weights of their own.
        pinned_to = embedding if heads[0].weight is embedding.weight else heads[0]
        head = HeadRows([token], base_rows(pinned_to, torch.tensor([token])))
    # If the model is sharded, these two gather on every process. Then the first process writes.
    rows, modules = whole(embedding.rows), input_modules(owner, embedding.token_ids)
    if (is_sharded(embedding.rows) or is_sharded(embedding.weight)) and dist.get_rank() != 0:
        return None
    return AdapterRows(
        ids=ids,
        rows=rows,
        vocab_size=V,
        input_modules=[names[id(module)] for module in modules],
        head_modules=[names[id(each)] for each in heads],
        head=head,
        kind=kind_of(owner),
        base=name,
        tokens=tokens,
        metrics=metrics or {},
        shared=base == "auto" and says_tied(owner) and output_head(owner) is None,
    )


def load_adapter(
    model: M,
    path: str | os.PathLike[str],
    *,
    name: str = "default",
    freeze: bool = True,
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> M:
    """Attach the rows of an adapter, written by this package or by PEFT, to a model.

    The head gets the role that the adapter was saved with. An adapter that PEFT wrote gets PEFT's: the head of a tied
    model follows the rows.

    Parameters
    ----------
    model : nn.Module
        The base model of the adapter. Rows that are attached already stay, and stay in use: the adapter then becomes
        another set (:func:`kslottery_fast.rows.add_rows`), and the head must have the same role for both.
    path : str or path
        The directory of a TrainableTokens adapter, or of a LoRA adapter with ``trainable_token_indices`` and no LoRA
        matrices. Or the id of a repository on the Hub, "org/name", which huggingface_hub fetches or finds in its cache.
    name : str
        The name of the set that the rows become.
    freeze : bool
        As for :func:`kslottery_fast.attach_rows`: False leaves the other parameters of the model as they are. It has no
        effect where rows are attached already.
    revision : str, optional
        A branch, tag or commit of the repository.
    tokenizer : transformers tokenizer, optional
        The tokenizer of the base model. It is checked against the strings that the adapter keeps. Tokens that were
        added in the training are added to it, in the same order, and the tables of the model grow to the height of the
        training, by transformers' ``resize_token_embeddings``.

    Returns
    -------
    nn.Module
        The model with its rows attached, as after :func:`kslottery_fast.attach_rows`.

    Raises
    ------
    InputError
        A file is missing or damaged. The adapter is of another kind. Its rows do not fit the model, or its table had
        another number of rows. Tokens of the tokenizer differ from those of the adapter. It changes a head that the
        model has untied. The name is taken. The Hub does not give the repository. Model and tokenizer are then as they
        were.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        The table grew by rows that the adapter does not hold. They are the mean of the other rows.

    Examples
    --------
    >>> import tempfile
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, f"{folder}/adapter")
    ...     load_adapter(torch.nn.Embedding(10, 4), f"{folder}/adapter", name="en-de")
    RowEmbedding(10, 4, rows={'en-de': 2}, in_use='en-de')
    """
    embedding = input_embedding(check_model(model))
    check_name(name)
    check_flag(freeze, "freeze")
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    folder = found_folder(path, (CONFIG_FILE, WEIGHTS_FILE), revision)
    if not folder.is_dir():
        raise InputError(f"path {folder} is not a directory; expected one that save_adapter or PEFT wrote")
    head = output_head(model)
    head_name = next((name for name, module in base_modules(model) if head is not None and module is head), None)
    stored = read_rows(folder, head_name)
    growth = planned_growth(folder, model, stored.vocab_size, stored.tokens, tokenizer)
    ids = check_fits(folder, stored, growth.after, table_shape(embedding)[1])
    check_finite(stored.values, ids, f"cannot load {folder}")
    output = head_role(folder, stored, model, head)
    if growth.after > growth.before and has_rows(model):
        raise InputError(
            f"{folder} needs a table with {growth.after} rows, and the table of a model with attached rows cannot "
            "grow; detach_rows or merge_rows first"
        )
    growth.grow(model)
    try:
        _place(model, folder, stored, ids, output, name, freeze)
    except BaseException:
        growth.shrink(model)
        raise
    growth.teach(tokenizer)
    apart = (head is not None and not is_tied(model)) or output == "frozen"
    if warning := unknown_rows(growth, stored.ids, (stored.head_ids or []) if apart and head is not None else None):
        warn_caller(warning)
    return model


def _place(
    model: nn.Module, folder: Path, stored: StoredRows, ids: torch.Tensor, output: Any, name: str, freeze: bool
) -> None:
    """Attach the rows of an adapter, or add them to those that are attached."""
    if not has_rows(model):
        attach_rows(model, ids, output=output, name=name, freeze=freeze)
    elif output_role(model) != output:
        raise InputError(
            f"{folder} has rows with output={output!r}, but the attached rows have output={output_role(model)!r}: the "
            "head cannot play both roles; detach_rows first"
        )
    else:
        add_rows(model, name, ids)
    with torch.no_grad():
        get_rows(model).row_sets[name].rows.copy_(stored.values)


def _base_name(owner: Any, given: str | os.PathLike[str] | None) -> str | None:
    if given is not None:
        check_path(given, "base_model_name_or_path")
        return os.fspath(given)
    return portable_name(getattr(getattr(owner, "config", None), "_name_or_path", None))


def _check_metrics(metrics: Any) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is {shown(metrics)}: expected a dict of names and numbers, such as {{'NLL': 1.23}}")
    for name, value in metrics.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"metrics has {shown(name)}: {shown(value)}: expected a str and a number")
