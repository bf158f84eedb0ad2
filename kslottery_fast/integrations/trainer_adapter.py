"""From the checkpoints of a TicketTrainer to a model with rows, and to an adapter; what a Trainer uploads."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import nn

from kslottery_fast.base.arguments import M, check_model, check_path, check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.rows.adapter_file import save_adapter
from kslottery_fast.rows.attach import attach_rows, detach_rows, has_rows
from kslottery_fast.rows.sets import add_rows, use_rows

from .lora_rows import save_lora_and_rows
from .trainer_arguments import has_adapters
from .trainer_checkpoint import StoredCheckpoint, load_checkpoint, read_checkpoint

__all__ = ["attach_checkpoint", "checkpoint_to_adapter"]


def attach_checkpoint(model: M, checkpoint: str | os.PathLike[str]) -> M:
    """Attach the rows of a TicketTrainer's checkpoint to the model that the training started from.

    Parameters
    ----------
    model : nn.Module
        The model that the training started from, without attached rows. If LoRA weights or other parameters trained
        too, it must have them under the same names: they get their values from the checkpoint.
    checkpoint : str or path
        A folder ``checkpoint-N``, or what ``save_model`` wrote.

    Returns
    -------
    nn.Module
        The model with every set of rows of the checkpoint attached. What trained, trains again.
        :func:`kslottery_fast.merge_rows` makes an ordinary model of it.

    Raises
    ------
    InputError
        The folder is no such checkpoint. The model has rows already, another vocabulary, or lacks a parameter of the
        checkpoint. The checkpoint holds NaN or Inf. The model is then as it was.
    TypeError
        ``model`` is not a model, or ``checkpoint`` is not a str or path.

    Examples
    --------
    >>> from kslottery_fast.integrations.trainer_checkpoint import save_checkpoint
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(attach_rows(nn.Embedding(10, 4), [7, 3]), folder)
    >>> attach_checkpoint(nn.Embedding(10, 4), folder)
    RowEmbedding(10, 4, rows={'default': 2}, in_use='default')
    """
    stored = read_checkpoint(check_path(checkpoint, "checkpoint"))
    _attach(check_model(model), stored)
    return model


def checkpoint_to_adapter(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write the rows of a TicketTrainer's checkpoint as an adapter that PEFT loads.

    Parameters
    ----------
    model : nn.Module
        The model that the training started from, without attached rows. It is not changed.
    checkpoint : str or path
        A folder ``checkpoint-N``, or what ``save_model`` wrote.
    path : str or path
        The adapter directory, as for :func:`kslottery_fast.save_adapter`.
    base_model_name_or_path : str or path, optional
        The name of the base model, as for :func:`kslottery_fast.save_adapter`.
    tokenizer : transformers tokenizer, optional
        The adapter keeps its strings of the tokens, as for :func:`kslottery_fast.save_adapter`.

    Raises
    ------
    InputError
        As for :func:`attach_checkpoint` and :func:`kslottery_fast.save_adapter`. The checkpoint has no set of rows in
        use, or holds trained parameters that are not rows.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.integrations.trainer_checkpoint import save_checkpoint
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(attach_rows(nn.Embedding(10, 4), [7, 3]), folder)
    >>> checkpoint_to_adapter(nn.Embedding(10, 4), folder, f"{folder}/adapter")
    >>> sorted(os.listdir(f"{folder}/adapter"))
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    stored = read_checkpoint(check_path(checkpoint, "checkpoint"))
    check_path(path)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if stored.others:
        raise InputError(
            f"{stored.path} holds trained parameters that are not rows ({stored.others[0]}, ...), which an adapter of "
            "rows cannot hold; load all of it with attach_checkpoint, and save LoRA and rows with save_lora_and_rows"
        )
    _attach(check_model(model), stored)
    try:
        save_adapter(model, path, base_model_name_or_path=base_model_name_or_path, tokenizer=tokenizer)
    finally:
        detach_rows(model)


def _attach(model: nn.Module, stored: StoredCheckpoint) -> None:
    if has_rows(model):
        raise InputError("model has attached rows already; pass the model without rows, or use load_checkpoint")
    parameters = dict(model.named_parameters())
    lacking = [name for name in stored.others if name not in parameters]
    if lacking:
        raise InputError(
            f"{stored.path} holds trained parameters that the model lacks ({lacking[0]}, ...); pass the model that the "
            "training started from, with the same adapters of PEFT"
        )
    # With adapters, what trains stays as PEFT set it, as in a TicketTrainer.
    target: Any = getattr(model, "get_base_model", lambda: model)()
    flags = {name: parameters[name].requires_grad for name in stored.others}
    first, *rest = stored.sets
    attach_rows(
        target,
        stored.sets[first],
        output=stored.output,
        name=first,
        freeze=not has_adapters(model),
        **stored.how(first),
    )
    try:
        for name in rest:
            add_rows(target, name, stored.sets[name], **stored.how(name))
        use_rows(target, stored.in_use)
        for name in stored.others:
            parameters[name].requires_grad_(True)
        load_checkpoint(model, stored.path.parent)
    except BaseException:
        detach_rows(model)
        for name, flag in flags.items():
            parameters[name].requires_grad_(flag)
        raise


def write_adapter(
    model: nn.Module, folder: Path, tokenizer: Tokenizer | None = None, metrics: Mapping[str, float] | None = None
) -> None:
    """Put the files of an adapter into a folder that may hold other files, such as checkpoints.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows. If PEFT put LoRA into it, LoRA and rows become one adapter.
    folder : Path
        It is made if it does not exist.
    tokenizer : transformers tokenizer, optional
        The adapter keeps its strings of the tokens.
    metrics : mapping of str to float, optional
        Numbers for the card.

    Raises
    ------
    InputError
        What trained cannot be written as an adapter.
    """
    save: Any = save_lora_and_rows if has_adapters(model) else save_adapter
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="_adapter") as temporary:
        save(model, Path(temporary) / "adapter", tokenizer=tokenizer, metrics=metrics)
        for file in (Path(temporary) / "adapter").iterdir():
            file.replace(folder / file.name)


def complete_card(path: Path, **facts: str | list[str] | None) -> None:
    """Add facts that the Hub reads to the card of an adapter.

    Parameters
    ----------
    path : Path
        Its README.md.
    **facts : str or list of str
        ``language``, ``license``, ``tags``, ``datasets``. Tags are added to those of the card.
    """
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    tags = facts.pop("tags", None) or []
    facts["tags"] = [*card.data.to_dict().get("tags", ()), *([tags] if isinstance(tags, str) else tags)]
    for name, value in facts.items():
        if value is not None:
            card.data[name] = value
    card.save(path)
