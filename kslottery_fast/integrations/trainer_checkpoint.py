"""Checkpoints of a TicketTrainer, which hold what trains and not the model."""

import os
from pathlib import Path

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors
from kslottery_fast.rows.attach import get_rows, output_role
from kslottery_fast.rows.tables import check_finite, embedding_table

ROWS_FILE = "ticket_rows.safetensors"
"""The file in every checkpoint. It has ``rows`` [k, d] and ``token_ids`` [k] of the set in use, ``ids.<set>`` for every
other set that trains, and ``other.<name>`` for all other trained parameters, which include the rows of those sets."""


def save_checkpoint(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write ``ROWS_FILE`` for a model with attached rows.

    Parameters
    ----------
    model : nn.Module
        The model.
    folder : str or path
        The folder of the checkpoint.

    Raises
    ------
    InputError
        The model has no attached rows.
    TypeError
        ``model`` is not a model, or ``folder`` is not a str or path.
    """
    folder = check_path(folder, "folder")
    metadata = {"vocab_size": str(len(embedding_table(model))), "output": output_role(model)}
    write_safetensors(folder / ROWS_FILE, _trained_tensors(model), metadata)


def load_checkpoint(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Load the trained tensors of a TicketTrainer checkpoint into a model with the same rows attached.

    Parameters
    ----------
    model : nn.Module
        The model, with the rows of the checkpoint attached in the same order.
    folder : str or path
        A folder ``checkpoint-N``, or what ``save_model`` wrote.

    Raises
    ------
    InputError
        The folder is no such checkpoint. The checkpoint has other rows, another vocabulary, another role of the head,
        other parameters, sets or shapes, or NaN or Inf. The model has no attached rows. It is then as it was.
    TypeError
        ``model`` is not a model, or ``folder`` is not a str or path.

    Examples
    --------
    >>> import tempfile
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(nn.Embedding(10, 4), [7, 3])
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(model, folder)
    >>> load_checkpoint(model, folder)
    """
    check_model(model)
    path = check_path(folder, "folder") / ROWS_FILE
    if not path.is_file():
        raise InputError(f"{path.parent} has no {ROWS_FILE}: it is not a checkpoint of a TicketTrainer")
    saved = read_safetensors(path, remedy="resume from an earlier checkpoint")
    trained = _trained_tensors(model)
    for name, ours in (("vocab_size", str(len(embedding_table(model)))), ("output", output_role(model))):
        if saved.metadata.get(name) != ours:
            raise InputError(f"{path} was saved with {name} {saved.metadata.get(name)}, but the model has {ours}")
    _check_tokens(path, saved, trained)
    _check_names(path, saved, trained)
    _check_values(path, saved)
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(saved[name])


def _trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds, by its name there. The tensors are the model's own."""
    sets, tensors = get_rows(model).row_sets, dict[str, torch.Tensor]()
    in_use = None if sets.active is None else sets.current()  # mixed batches may have none
    if in_use is not None:
        tensors = {"rows": in_use.rows, "token_ids": in_use.token_ids}
    for name, row_set in sets.items():
        if row_set is not in_use and row_set.rows.requires_grad:
            tensors[f"ids.{name}"] = row_set.token_ids
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (in_use is None or parameter is not in_use.rows):
            tensors[f"other.{name}"] = parameter
    return tensors


def _check_tokens(path: Path, saved: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    """Refuse the rows of other tokens, whose shape may be right."""
    for name in saved.keys() & trained.keys():
        if name != "token_ids" and not name.startswith("ids."):
            continue
        theirs, ours = saved[name].reshape(-1).tolist(), trained[name].tolist()
        if theirs != ours:
            which = "" if name == "token_ids" else f" in the set {name.removeprefix('ids.')!r}"
            raise InputError(
                f"{path} holds the rows of other tokens than those attached to the model{which}: {_shown(theirs)} "
                f"there, {_shown(ours)} here; attach the tokens of the checkpoint, in its order"
            )


def _check_names(path: Path, saved: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    missing, unknown = sorted(trained.keys() - saved.keys()), sorted(saved.keys() - trained.keys())
    if missing or unknown:
        raise InputError(
            f"{path} does not hold the tensors that the model trains (missing: {_shown(missing) or 'none'}; not in the "
            f"model: {_shown(unknown) or 'none'}); attach the same sets, use the same one, and let the same parameters "
            "train"
        )
    for name, tensor in trained.items():
        if saved[name].shape != tensor.shape:
            raise InputError(
                f"{path} does not hold the tensors that the model trains: {name} is {list(saved[name].shape)} there, "
                f"{list(tensor.shape)} here"
            )


def _check_values(path: Path, saved: dict[str, torch.Tensor]) -> None:
    if "rows" in saved:
        check_finite(saved["rows"], saved["token_ids"], f"cannot load {path}")
    for name, tensor in saved.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"cannot load {path}: {name} holds NaN or Inf; resume from an earlier checkpoint")


def _shown(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
