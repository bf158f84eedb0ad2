"""Saving rows as a PEFT adapter on disk, and loading them onto a model from disk or from the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from torch import nn

from kslottery_fast.base.arguments import M, check_flag, check_model, check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.hub import found_folder
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_format import CONFIG_FILE, WEIGHTS_FILE
from .adapter_gather import rows_of
from .adapter_load import attach_stored, grown, planned
from .adapter_rows import check_target, save_rows_adapter, write_adapter
from .attachment import get_rows
from .padding import check_train_padding
from .rowset import check_name
from .tables import input_embedding

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "load_adapter", "save_adapter", "save_rows_adapter"]


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

    Rows of the head's own (``output="own"``) are written with those of the input. LoRA beside the rows is left out:
    :func:`kslottery_fast.integrations.lora_rows.save_lora_and_rows` writes both.

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
        No rows are attached. A row holds NaN. The head shares the table and has a bias (PEFT drops it).
        ``base="untied"`` was given for rows that the head follows. The directory holds something else. The tokenizer
        has no token for a row.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        The head has rows and bias entries of its own. PEFT has no place for the latter and would drop the whole bias.
        Such an adapter is written in a form that PEFT refuses and :func:`load_adapter` loads.

    Examples
    --------
    >>> import tempfile
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(nn.Embedding(10, 4), [7, 3])
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


def load_adapter(
    model: M,
    path: str | os.PathLike[str],
    *,
    name: str = "default",
    freeze: bool = True,
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
    train_padding: bool | None = None,
) -> M:
    """Attach the rows of an adapter, written by this package or by PEFT, to a model.

    The head gets the role that the adapter was saved with. An adapter that PEFT wrote gets PEFT's: the head of a tied
    model follows the rows, and has rows of its own if the adapter holds other rows for it.

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
    train_padding : bool, optional
        As for :func:`kslottery_fast.attach_rows`.

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
        The table grew by rows that the adapter does not hold. They are the mean of the other rows. Or the row of
        ``padding_idx`` will not train.

    Examples
    --------
    >>> import tempfile
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(nn.Embedding(10, 4), [7, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, f"{folder}/adapter")
    ...     load_adapter(nn.Embedding(10, 4), f"{folder}/adapter", name="en-de")
    RowEmbedding(10, 4, rows={'en-de': 2}, in_use='en-de')
    """
    input_embedding(check_model(model))
    check_name(name)
    check_flag(freeze, "freeze")
    check_train_padding(train_padding)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    folder = found_folder(path, (CONFIG_FILE, WEIGHTS_FILE), revision)
    if not folder.is_dir():
        raise InputError(f"path {folder} is not a directory; expected one that save_adapter or PEFT wrote")
    plan = planned(folder, model, tokenizer)
    with grown(model, plan, tokenizer):
        attach_stored(model, plan, name, freeze=freeze, train_padding=train_padding)
    return model
