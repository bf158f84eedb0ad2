"""The files of an adapter of rows, as PEFT reads and writes them, without importing peft (checked against peft 0.21).

PEFT has one format for rows, TrainableTokens, and it follows ``config.tie_word_embeddings``: on a tied model the head
always changes with the rows. Rows for the input role alone (``output="frozen"``) need another form there. PEFT's LoRA
config can hold ``trainable_token_indices`` per module, and it keeps modules with *different* indices apart, tied or
not. Such a set is therefore written as a LoRA adapter without LoRA matrices. It has the rows for the input modules, and
for the head one row that is pinned to its own value, which changes nothing. PEFT then gives the logits of the merged
model on the tied base and on an untied copy of it. (PEFT's ``merge_and_unload`` cannot split a tied table: merge with
``merge_rows``.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors

from .token_ids import check_token_ids

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TOKENS_KEY, _LORA_KEY = ".trainable_tokens_delta", ".token_adapter.trainable_tokens_delta"
_ROLE, _VOCABULARY = "kslottery_output", "kslottery_vocab_size"


def adapter_content(
    ids: Sequence[int],
    values: torch.Tensor,
    input_modules: Sequence[str],
    head_modules: Sequence[str],
    pinned: tuple[int, torch.Tensor] | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What PEFT's config says of these rows, and the tensors by name."""
    if pinned is None:
        # On a tied model PEFT finds the modules that share the table, and fails if another one of them is named too.
        targets = list(input_modules[:1] if head_modules else input_modules)
        config: dict[str, Any] = {
            "peft_type": "TRAINABLE_TOKENS",
            "target_modules": targets,
            "token_indices": list(ids),
        }
        return config, {_PREFIX + name + _TOKENS_KEY: values.clone() for name in (*input_modules, *head_modules)}
    token, row = pinned
    about: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 1,
        "target_modules": "dummy-target-modules",  # PEFT's own name for "no LoRA matrices"
        "trainable_token_indices": {
            **{name: list(ids) for name in input_modules},
            **{name: [token] for name in head_modules},
        },
    }
    tensors = {_PREFIX + name + _LORA_KEY: values.clone() for name in input_modules}
    tensors |= {_PREFIX + name + _LORA_KEY: row.detach().float()[None].clone() for name in head_modules}
    return about, tensors


def metadata_of(role: str, vocab_size: int) -> dict[str, str]:
    """What PEFT's format has no place for; the weights file keeps it as metadata."""
    return {_ROLE: role, _VOCABULARY: str(vocab_size)}


@dataclass
class StoredRows:
    """The rows of an adapter directory.

    Attributes
    ----------
    ids : list of int
        The token ids of the input modules.
    values : torch.Tensor
        [k, d], the rows themselves.
    head_ids, head_values : list of int and torch.Tensor, or None
        Those of the output head, if the adapter names it.
    role : str or None
        "frozen" or "tied", if the adapter was saved by this package.
    vocab_size : int or None
        The number of rows of the table, if the adapter was saved by this package.
    """

    ids: list[int]
    values: torch.Tensor
    head_ids: list[int] | None
    head_values: torch.Tensor | None
    role: str | None
    vocab_size: int | None


def read_rows(folder: Path, head_name: str | None) -> StoredRows:
    """Read an adapter directory for a model whose output head has this name.

    Raises
    ------
    InputError
        A file is missing or damaged, the adapter holds more than rows, or it holds different rows for different
        embeddings.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_safetensors(folder / WEIGHTS_FILE, remedy="save the adapter again")
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG_FILE} is not the configuration of an adapter")
    kind = config.get("peft_type")
    indices: Any = config.get("token_indices" if kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
    suffix = _TOKENS_KEY if kind == "TRAINABLE_TOKENS" else _LORA_KEY
    known = kind in ("TRAINABLE_TOKENS", "LORA") and indices
    if not known or not all(key.startswith(_PREFIX) and key.endswith(suffix) for key in tensors):
        raise InputError(f"{folder} is a {kind} adapter with more than rows in it; load it with PEFT")
    rows = {key.removeprefix(_PREFIX).removesuffix(suffix): value for key, value in tensors.items()}
    head_values = rows.pop(head_name, None) if head_name is not None else None
    ids, head_ids = _indices(folder, indices, head_name)
    if not rows or ids is None:
        raise InputError(f"{folder} holds no rows of an input embedding")
    values = next(iter(rows.values()))
    if any(not torch.equal(other, values) for other in list(rows.values())[1:]):
        raise InputError(f"{folder} holds different rows for different embeddings; load it with PEFT")
    size = tensors.metadata.get(_VOCABULARY, "")
    role = tensors.metadata.get(_ROLE)
    return StoredRows(ids, values, head_ids, head_values, role, int(size) if size.isdecimal() else None)


def _indices(folder: Path, indices: Any, head_name: str | None) -> tuple[list[int] | None, list[int] | None]:
    """The token ids of the input modules and of the head, which the config may name apart."""
    per_module = indices if isinstance(indices, dict) else {"": indices}
    if not all(isinstance(ids, list) for ids in per_module.values()):
        raise InputError(f"{folder / CONFIG_FILE}: token indices must be lists of integers")
    head_ids = per_module.get(head_name)
    inputs = [ids for name, ids in per_module.items() if name != head_name]
    if any(ids != inputs[0] for ids in inputs):
        raise InputError(f"{folder} holds rows of different tokens for different embeddings; load it with PEFT")
    return inputs[0] if inputs else None, head_ids


def check_fits(folder: Path, stored: StoredRows, vocab_size: int, dimension: int) -> torch.Tensor:
    """Return the token ids of an adapter that fits a table [V, d], int64 [k].

    Raises
    ------
    InputError
        The adapter is of a table of another size, or its ids or rows are damaged.
    """
    if stored.vocab_size not in (None, vocab_size):
        raise InputError(
            f"{folder} is an adapter of a table with {stored.vocab_size} rows, but this model's table has "
            f"{vocab_size}; load the base model of the adapter, or, if it was trained on a resized copy of this model, "
            f"call model.resize_token_embeddings({stored.vocab_size}) first"
        )
    largest = max((token for token in stored.ids if isinstance(token, int)), default=0)
    if stored.vocab_size is None and largest >= vocab_size:
        raise InputError(
            f"{folder} has a row for token {largest}, and this model's table has {vocab_size} rows; load the base "
            "model of the adapter, or, if it was trained on a resized copy of this model, call "
            "model.resize_token_embeddings with the size of that copy first"
        )
    ids = check_token_ids(stored.ids, vocab_size, f"{folder / CONFIG_FILE}: token indices")
    if stored.values.shape != (len(ids), dimension):
        raise InputError(f"{folder} has rows {list(stored.values.shape)}, but the model needs {[len(ids), dimension]}")
    return ids
