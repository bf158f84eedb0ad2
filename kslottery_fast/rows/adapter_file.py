"""Saving rows as a PEFT adapter on disk, and loading them onto a model."""

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn

from kslottery_fast.base.arguments import M, check_choice, check_flag, check_integer, check_model, check_path, shown
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory, write_json, write_safetensors, write_text

from .adapter_card import card, portable_name
from .adapter_format import CONFIG_FILE, WEIGHTS_FILE, adapter_content, check_fits, metadata_of, read_rows
from .adapter_model import base_modules, head_role, task_type_of, tied_heads, token_outside
from .attach import attach_rows
from .attachment import attached_model, get_rows, has_rows, output_role
from .overlay import RowEmbedding
from .rowset import check_name
from .sets import add_rows
from .tables import base_rows, check_finite, input_embedding, input_modules, table_shape
from .token_ids import TokenIds, check_token_ids

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "load_adapter", "save_adapter", "save_rows_adapter"]


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: Literal["auto", "untied"] = "auto",
    base_model_name_or_path: str | os.PathLike[str] | None = None,
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

    Raises
    ------
    InputError
        No rows are attached. A row holds NaN. A tied head has a bias (PEFT drops it). ``base="untied"`` was given for
        rows that the head follows. The directory holds something else.
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
    role, owner = output_role(check_model(model)), cast(Any, attached_model(model))
    folder = check_path(path)
    check_choice(base, ("auto", "untied"), "base")
    config = getattr(owner, "config", None)
    if base_model_name_or_path is None:
        name = portable_name(getattr(config, "_name_or_path", None))
    else:
        check_path(base_model_name_or_path, "base_model_name_or_path")
        name = os.fspath(base_model_name_or_path)
    embedding = cast(RowEmbedding, input_embedding(owner))
    names = {id(module): name for name, module in base_modules(owner)}
    heads = tied_heads(owner, embedding, names, role, base)
    pin = None
    if heads and role == "frozen":
        token = token_outside(embedding.token_ids.tolist(), table_shape(embedding)[0])
        # Tied or not by now: accelerate gives the modules that it offloads weights of their own.
        pinned_to = embedding if heads[0].weight is embedding.weight else heads[0]
        pin = token, base_rows(pinned_to, torch.tensor([token]))[0]
    # If the model is sharded, these two gather on every process. Then the first process writes.
    rows, modules = whole(embedding.rows), input_modules(owner, embedding.token_ids)
    if (is_sharded(embedding.rows) or is_sharded(embedding.weight)) and dist.get_rank() != 0:
        return
    save_rows_adapter(
        embedding.token_ids,
        rows,
        folder,
        vocab_size=table_shape(embedding)[0],
        input_modules=[names[id(module)] for module in modules],
        head_modules=[names[id(head)] for head in heads],
        pinned=pin,
        task_type=task_type_of(owner),
        base_model_name_or_path=name,
    )


def save_rows_adapter(
    token_ids: TokenIds,
    rows: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    input_modules: Sequence[str] = ("model.embed_tokens",),
    head_modules: Sequence[str] = (),
    pinned: tuple[int, torch.Tensor] | None = None,
    task_type: str | None = "CAUSAL_LM",
    base_model_name_or_path: str | None = None,
) -> None:
    """Write rows as a PEFT adapter without a model at hand.

    Parameters
    ----------
    token_ids : TokenIds
        k distinct token ids, Tickets, or the path of a ticket file.
    rows : torch.Tensor
        [k, d], the rows themselves, not differences.
    path : str or path
        The adapter directory.
    vocab_size : int
        The number of rows of the table.
    input_modules : sequence of str
        The names of the embedding modules in the base model. That of get_input_embeddings comes first.
    head_modules : sequence of str
        The names of its tied heads. An untied base has none.
    pinned : tuple of int and torch.Tensor, optional
        For input-only rows on a tied base: some token id and its base row [d]. Without it the head follows the rows.
    task_type : str, optional
        PEFT's name for the kind of model, "CAUSAL_LM", "SEQ_2_SEQ_LM" or None. AutoPeftModel needs it.
    base_model_name_or_path : str, optional
        The name of the base model, which AutoPeftModel loads.

    Raises
    ------
    InputError
        The ids are bad. The rows have another shape, NaN or no values. The directory holds something else.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_rows_adapter([7, 3], torch.ones(2, 4), f"{folder}/adapter", vocab_size=10)
    ...     load_adapter(torch.nn.Embedding(10, 4), f"{folder}/adapter").rows.sum()
    tensor(8., grad_fn=<SumBackward0>)
    """
    check_integer(vocab_size, "vocab_size", 1)
    ids = check_token_ids(token_ids, vocab_size)
    if not torch.is_tensor(rows):
        raise TypeError(f"rows is {shown(rows)}: expected a tensor [k, d]")
    if rows.dim() != 2 or len(rows) != len(ids):
        raise InputError(f"rows has the shape {list(rows.shape)}, expected [{len(ids)}, d], one row per token id")
    if rows.is_meta:
        raise InputError(
            "rows have no values (device meta): they were offloaded; save them before, or attach them after"
        )
    check_finite(rows.detach(), ids, "cannot save the adapter")
    folder = check_path(path)
    _check_names(input_modules, "input_modules", least=1)
    _check_names(head_modules, "head_modules", least=0)
    _check_pinned(pinned, rows.shape[1])
    for text, name in ((task_type, "task_type"), (base_model_name_or_path, "base_model_name_or_path")):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} is {shown(text)}: expected a str or None")
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"path {folder} exists and is not an adapter directory; choose another path")
    about, tensors = adapter_content(ids.tolist(), rows.detach().float(), input_modules, head_modules, pinned)
    config = {
        "base_model_name_or_path": base_model_name_or_path,
        "task_type": task_type,
        "inference_mode": True,
        **about,
    }
    role = "tied" if head_modules and pinned is None else "frozen"
    text = card(len(ids), role, base_model_name_or_path, task_type, names_head=bool(head_modules))
    with atomic_directory(folder) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        write_safetensors(temporary / WEIGHTS_FILE, tensors, metadata_of(role, vocab_size))
        write_text(temporary / "README.md", text)


def load_adapter(model: M, path: str | os.PathLike[str], *, name: str = "default", freeze: bool = True) -> M:
    """Attach the rows of an adapter directory, written by this package or by PEFT, to a model.

    The head gets the role that the adapter was saved with. An adapter that PEFT wrote gets PEFT's: the head of a tied
    model follows the rows.

    Parameters
    ----------
    model : nn.Module
        The base model of the adapter. Rows that are attached already stay, and stay in use: the adapter then becomes
        another set (:func:`kslottery_fast.rows.add_rows`), and the head must have the same role for both.
    path : str or path
        The directory of a TrainableTokens adapter, or of a LoRA adapter with ``trainable_token_indices`` and no LoRA
        matrices.
    name : str
        The name of the set that the rows become.
    freeze : bool
        As for :func:`kslottery_fast.attach_rows`: False leaves the other parameters of the model as they are. It has no
        effect where rows are attached already.

    Returns
    -------
    nn.Module
        The model with its rows attached, as after :func:`kslottery_fast.attach_rows`.

    Raises
    ------
    InputError
        A file is missing or damaged. The adapter is of another kind. Its rows do not fit the model, or its table had
        another number of rows. It changes a head that the model has untied. The name is taken. The model is then as it
        was.
    TypeError
        An argument has the wrong type.

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
    folder = check_path(path)
    if not folder.is_dir():
        raise InputError(f"path {folder} is not a directory; expected one that save_adapter or PEFT wrote")
    head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head_name = next((name for name, module in base_modules(model) if head is not None and module is head), None)
    stored = read_rows(folder, head_name)
    V, d = table_shape(embedding)
    ids = check_fits(folder, stored, V, d)
    check_finite(stored.values, ids, f"cannot load {folder}")
    output = head_role(folder, stored, model, head)
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
    return model


def _check_names(names: Any, argument: str, *, least: int) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{argument} is {shown(names)}: expected a list of module names")
    if len(names) < least:
        raise InputError(f"{argument} is empty: expected the name of an embedding, such as 'model.embed_tokens'")


def _check_pinned(pinned: Any, dimension: int) -> None:
    if pinned is None:
        return
    pair = isinstance(pinned, tuple) and len(pinned) == 2
    if not pair or not isinstance(pinned[0], int) or not torch.is_tensor(pinned[1]) or pinned[1].shape != (dimension,):
        raise TypeError(f"pinned is {shown(pinned)}: expected None, or a token id and its row, a tensor [{dimension}]")
