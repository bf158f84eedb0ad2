"""LoRA and rows as one adapter of PEFT: LoRA matrices, and ``trainable_token_indices`` for the rows."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_flag, check_model, check_tokenizer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import (
    atomic_directory,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
    write_text,
)
from kslottery_fast.base.hub import found_folder
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.rows.adapter_card import card
from kslottery_fast.rows.adapter_format import CONFIG_FILE, ROWS_SUFFIX, WEIGHTS_FILE, apart
from kslottery_fast.rows.adapter_gather import rows_of
from kslottery_fast.rows.adapter_load import attach_stored, grown, planned
from kslottery_fast.rows.adapter_model import base_modules
from kslottery_fast.rows.adapter_rows import AdapterRows, card_facts, check_rows, check_target, file_metadata
from kslottery_fast.rows.attachment import get_rows, has_rows
from kslottery_fast.rows.rowset import check_name

from .adapter_kind import check_peft, installed_peft, quietly

if TYPE_CHECKING:
    from peft import PeftModel


def save_lora_and_rows(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write the active LoRA adapter of a PeftModel and the attached rows as one adapter, which PEFT loads.

    Parameters
    ----------
    model : peft.PeftModel
        A model with LoRA and attached rows. It is not changed.
    path : str or path
        The adapter directory. It is made, or replaced if it holds an adapter. It is written whole or not at all.
    base_model_name_or_path, tokenizer, metrics
        As for :func:`kslottery_fast.save_adapter`.

    Raises
    ------
    InputError
        The model has no LoRA adapter in use, or no rows. LoRA matrices are on a module whose rows the adapter has to
        name, such as the head of a tied model. The head has a bias and rows of its own. PEFT is not installed.
        Whatever else :func:`kslottery_fast.save_adapter` refuses.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> save_lora_and_rows(nn.Embedding(10, 4), "adapter")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: model is an Embedding: expected a PeftModel, as peft.get_peft_model makes it
    """
    wrapper, name = _lora_of(check_model(model))
    get_rows(model)
    folder = check_target(path)
    about = rows_of(model, "auto", base_model_name_or_path, tokenizer, metrics)
    if about is None:  # sharded, and another process writes
        return
    check_rows(about)
    _check_modules(wrapper, about)
    indices, tensors = _row_part(about)
    from peft import get_peft_model_state_dict

    tensors |= quietly(lambda: get_peft_model_state_dict(wrapper, adapter_name=name, save_embedding_layers=False))
    config = wrapper.peft_config[name]
    with atomic_directory(folder) as temporary:
        type(config).save_pretrained(config, temporary)
        settings = read_json(temporary / CONFIG_FILE)
        settings |= {"inference_mode": True, "trainable_token_indices": indices, "ensure_weight_tying": False}
        settings["base_model_name_or_path"] = about.base or settings["base_model_name_or_path"]
        if settings["task_type"] is None:
            settings |= dataclasses.replace(about.kind, task_type=None).mapping()
        write_json(temporary / CONFIG_FILE, settings)
        write_safetensors(temporary / WEIGHTS_FILE, tensors, file_metadata(about))
        write_text(temporary / "README.md", card(dataclasses.replace(card_facts(about), lora=True)))


def load_lora_and_rows(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str = "default",
    is_trainable: bool = False,
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> PeftModel:
    """Load an adapter with LoRA and rows, written by :func:`save_lora_and_rows` or by PEFT.

    PEFT gets the LoRA matrices, and the rows are attached, so that no forward copies the table.

    Parameters
    ----------
    model : nn.Module
        The base model, without adapters and rows. It is changed in place, as PEFT does it.
    path : str or path
        The adapter directory, or the id of a repository on the Hub, "org/name".
    name : str
        The name that the LoRA adapter and the set of rows get.
    is_trainable : bool
        Whether LoRA and rows train.
    revision, tokenizer
        As for :func:`kslottery_fast.load_adapter`.

    Returns
    -------
    peft.PeftModel
        The model in PEFT's wrapper, with rows attached inside.

    Raises
    ------
    InputError
        The adapter has no LoRA matrices (:func:`kslottery_fast.load_adapter` loads rows alone) or no rows. The model
        has adapters or rows. PEFT is not installed. Whatever else :func:`kslottery_fast.load_adapter` refuses. Model
        and tokenizer are then as they were.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> load_lora_and_rows(nn.Embedding(10, 4), "nowhere")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: path nowhere is not a directory; expected one with an adapter in it
    """
    check_name(name)
    check_flag(is_trainable, "is_trainable")
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if has_rows(check_model(model)) or any(getattr(each, "peft_config", None) for each in model.modules()):
        raise InputError("model has adapters or rows already; pass the base model (unload() and detach_rows take off)")
    folder = found_folder(path, (CONFIG_FILE, WEIGHTS_FILE), revision)
    if not folder.is_dir():
        raise InputError(f"path {folder} is not a directory; expected one with an adapter in it")
    peft = _peft()
    plan = planned(folder, model, tokenizer, beside_lora=True)
    if not plan.stored.has_lora:
        raise InputError(f"{folder} holds rows and no LoRA matrices; load it by kslottery_fast.load_adapter")
    with tempfile.TemporaryDirectory() as temporary, grown(model, plan, tokenizer):
        _write_lora_part(folder, Path(temporary))
        adapter = quietly(lambda: peft.PeftModel.from_pretrained(model, temporary, name, is_trainable=is_trainable))
        try:
            attach_stored(model, plan, name, freeze=False, train_padding=None if is_trainable else False)
        except BaseException:
            adapter.unload()
            raise
    get_rows(model).row_sets[name].requires_grad_(is_trainable)
    loaded: PeftModel = adapter
    return loaded


def _peft() -> Any:
    check_peft("LoRA and rows as one adapter")
    return installed_peft()


def _lora_of(model: nn.Module) -> tuple[Any, str]:
    """The PeftModel and the name of its LoRA adapter in use."""
    wrapper: Any = model
    if not isinstance(model, _peft().PeftModel):
        raise InputError(f"model is {shown(model)}: expected a PeftModel, as peft.get_peft_model makes it")
    names = wrapper.active_adapters
    if len(names) != 1 or str(wrapper.peft_config[names[0]].peft_type.value) != "LORA":
        raise InputError(
            f"model has {', '.join(map(repr, names)) or 'no adapter'} in use: expected one LoRA adapter; choose it "
            "with model.set_adapter(name)"
        )
    if getattr(wrapper.peft_config[names[0]], "trainable_token_indices", None):
        raise InputError(
            "the LoRA adapter has trainable_token_indices of its own, which the rows would replace; leave them out of "
            "the LoraConfig"
        )
    return wrapper, names[0]


def _check_modules(wrapper: Any, about: AdapterRows) -> None:
    """Refuse LoRA matrices on a module that PEFT would also wrap for its rows."""
    if about.head is not None and about.head.bias is not None:
        raise InputError(
            "the output head has trained bias entries, for which PEFT has no place; save the rows alone with "
            "kslottery_fast.save_adapter, and LoRA with the PeftModel's save_pretrained"
        )
    inside = dict(base_modules(wrapper))
    for name in about.head_modules:
        if hasattr(inside.get(name), "lora_A") or hasattr(_parent(wrapper, inside[name]), "lora_A"):
            raise InputError(
                f"LoRA is on {name}, whose rows the adapter has to name, and PEFT cannot have both on one module; take "
                f"{name} out of target_modules, or save the rows alone with kslottery_fast.save_adapter"
            )


def _parent(model: nn.Module, child: nn.Module) -> nn.Module | None:
    return next((each for each in model.modules() if any(part is child for part in each.children())), None)


def _row_part(about: AdapterRows) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    """``trainable_token_indices``, and the tensors of the rows by name."""
    tied = about.role == "tied" or about.shared
    modules = list(about.input_modules[:1] if tied else about.input_modules)  # PEFT ties the others itself
    return apart(about.ids, about.rows.detach().float(), modules, about.head_modules, about.head)


def _write_lora_part(folder: Path, target: Path) -> None:
    """Write an adapter directory without its rows, as PEFT would have written the LoRA matrices alone."""
    settings = read_json(folder / CONFIG_FILE)
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    write_json(target / CONFIG_FILE, {**settings, "trainable_token_indices": None})
    write_safetensors(target / WEIGHTS_FILE, {k: v for k, v in tensors.items() if not k.endswith(ROWS_SUFFIX)})
