"""Checkpoints of a TicketTrainer, which hold what trains and not the model."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import Tensors, read_safetensors, write_safetensors
from kslottery_fast.rows.attach import get_rows, output_role
from kslottery_fast.rows.tables import check_finite, embedding_table

ROWS_FILE = "ticket_rows.safetensors"
"""The file in every checkpoint. It has ``rows`` [k, d] and ``token_ids`` [k] of the set in use, ``ids.<set>`` for every
other set that trains, ``ids.<set>.output`` where the head has rows of its own, and ``other.<name>`` for all other
trained parameters, which include the rows of those sets and of the head."""


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
    sets = get_rows(model).row_sets
    if sets.active is not None:
        metadata["in_use"] = sets.active
    # The padding row of a set trains if the set knows of no padding.
    metadata["train_padding"] = json.dumps([name for name, row_set in sets.items() if row_set.padding_idx is None])
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
    path, saved = _read(check_path(folder, "folder"))
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


@dataclass(frozen=True)
class StoredCheckpoint:
    """What a checkpoint says of the rows and parameters that trained.

    Attributes
    ----------
    path : Path
        Its ``ROWS_FILE``.
    sets : dict of str to torch.Tensor
        The token ids of each set.
    output : str
        What the head did.
    in_use : str or None
        The set in use.
    others : list of str
        The names of the trained parameters that are not rows.
    output_ids : dict of str to torch.Tensor
        The token ids of the head's own rows, by the name of the set.
    train_padding : list of str
        The sets whose padding row trains.
    """

    path: Path
    sets: dict[str, torch.Tensor]
    output: Any
    in_use: str | None
    others: list[str]
    output_ids: dict[str, torch.Tensor]
    train_padding: list[str]

    def how(self, name: str) -> dict[str, Any]:
        """Return how ``attach_rows`` and ``add_rows`` are to attach a set, as arguments."""
        return {"output_ids": self.output_ids.get(name), "train_padding": name in self.train_padding}


def read_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read what a checkpoint holds.

    Raises
    ------
    InputError
        The folder is no checkpoint of a TicketTrainer, or its file is damaged or holds no rows.
    """
    path, saved = _read(folder)
    sets, in_use = dict[str, torch.Tensor](), None
    if "token_ids" in saved:
        in_use = saved.metadata.get("in_use", "default")
        sets[in_use] = saved["token_ids"]
    named = {name.removeprefix("ids."): ids for name, ids in saved.items() if name.startswith("ids.")}
    output_ids = {name.removesuffix(_OUTPUT): ids for name, ids in named.items() if name.endswith(_OUTPUT)}
    sets |= {name: ids for name, ids in named.items() if not name.endswith(_OUTPUT)}  # a name has no dots
    if not sets:
        raise InputError(f"{path} holds no rows; it is not a checkpoint of a training of rows")
    parameters = [name.removeprefix("other.") for name in saved if name.startswith("other.")]
    others = [name for name in parameters if ".row_sets." not in f".{name}"]
    output, padding = saved.metadata.get("output", "frozen"), json.loads(saved.metadata.get("train_padding", "[]"))
    return StoredCheckpoint(path, sets, output, in_use, others, output_ids, padding)


_OUTPUT = ".output"


def _read(folder: Path) -> tuple[Path, Tensors]:
    path = folder / ROWS_FILE
    if not path.is_file():
        inside = sorted(each.name for each in folder.glob("checkpoint-*")) if folder.is_dir() else []
        those = f"; it holds {_shown(inside)}, pass one of these" if inside else ""
        raise InputError(f"{folder} has no {ROWS_FILE}: it is not a checkpoint of a TicketTrainer{those}")
    return path, read_safetensors(path, remedy="resume from an earlier checkpoint")


def _trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds, by its name there. The tensors are the model's own."""
    sets, tensors = get_rows(model).row_sets, dict[str, torch.Tensor]()
    in_use = None if sets.active is None else sets.current()  # mixed batches may have none
    if in_use is not None:
        tensors = {"rows": in_use.rows, "token_ids": in_use.token_ids}
    for name, row_set in sets.items():
        if row_set is not in_use and row_set.rows.requires_grad:
            tensors[f"ids.{name}"] = row_set.token_ids
        if row_set.output is not None and row_set.output.rows.requires_grad:
            tensors[f"ids.{name}{_OUTPUT}"] = row_set.output.token_ids
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
