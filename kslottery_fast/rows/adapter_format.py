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

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors

from .adapter_tokens import TokenRecord, parsed_record
from .token_ids import check_token_ids

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TOKENS_KEY, ROWS_SUFFIX = ".trainable_tokens_delta", ".token_adapter.trainable_tokens_delta"
_ROLE, _VOCABULARY, _TOKENS = "kslottery_output", "kslottery_vocab_size", "kslottery_tokens"
_HEAD_IDS, _BIAS_KEY = "kslottery_output_token_ids", ".trained_bias"
OWN_TYPE = "KSLOTTERY_ROWS"
"""The peft_type of an adapter that PEFT cannot load, since it has bias entries of the head."""


@dataclass(frozen=True)
class HeadRows:
    """Rows of the output head apart from those of the input: its own trained rows, or one that is pinned to the base.

    Attributes
    ----------
    ids : list of int
        The token ids. On a tied model PEFT keeps the roles apart only if this list differs from that of the input.
    values : torch.Tensor
        float32 [k, d].
    bias : torch.Tensor or None
        [k], the trained bias entries of these tokens. PEFT has no place for them.
    """

    ids: list[int]
    values: torch.Tensor
    bias: torch.Tensor | None = None


def adapter_content(
    ids: Sequence[int],
    values: torch.Tensor,
    input_modules: Sequence[str],
    head_modules: Sequence[str],
    head: HeadRows | None,
    *,
    shared: bool = False,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What PEFT's config says of these rows, and the tensors by name."""
    if head is None:
        # In a model that shares its table, as ``shared`` or a tied head says, PEFT finds the other modules that hold
        # it, and fails if another one of them is named too.
        targets = list(input_modules[:1] if head_modules or shared else input_modules)
        config: dict[str, Any] = {
            "peft_type": "TRAINABLE_TOKENS",
            "target_modules": targets,
            "token_indices": list(ids),
        }
        return config, {_PREFIX + name + _TOKENS_KEY: values.clone() for name in (*input_modules, *head_modules)}
    indices, tensors = apart(ids, values, input_modules, head_modules, head)
    if head.bias is not None:
        # PEFT drops the bias of a head that it wraps, so the file is of a type that PEFT refuses.
        tensors |= {_PREFIX + name + _BIAS_KEY: head.bias.float().clone() for name in head_modules}
        return {"peft_type": OWN_TYPE, "trainable_token_indices": indices}, tensors
    # The target is PEFT's own name for "no LoRA matrices".
    about = {"peft_type": "LORA", "r": 1, "target_modules": "dummy-target-modules"}
    return {**about, "trainable_token_indices": indices}, tensors


def apart(
    ids: Sequence[int],
    values: torch.Tensor,
    input_modules: Sequence[str],
    head_modules: Sequence[str],
    head: HeadRows | None,
) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    """``trainable_token_indices`` of a LoRA config, and the tensors by name."""
    indices = {name: list(ids) for name in input_modules}
    tensors = {_PREFIX + name + ROWS_SUFFIX: values.clone() for name in input_modules}
    if head is not None:
        indices |= {name: list(head.ids) for name in head_modules}
        tensors |= {_PREFIX + name + ROWS_SUFFIX: head.values.detach().float().clone() for name in head_modules}
    return indices, tensors


def metadata_of(
    role: str, vocab_size: int, tokens: TokenRecord | None = None, head_ids: Sequence[int] | None = None
) -> dict[str, str]:
    """What PEFT's format has no place for; the weights file keeps it as metadata."""
    metadata = {_ROLE: role, _VOCABULARY: str(vocab_size)}
    if tokens is not None:
        metadata[_TOKENS] = tokens.text()
    if head_ids is not None:
        metadata[_HEAD_IDS] = json.dumps(list(head_ids))
    return metadata


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
        "frozen", "tied" or "own", if the adapter was saved by this package.
    vocab_size : int or None
        The number of rows of the table, if the adapter was saved by this package.
    tokens : TokenRecord or None
        The strings of the tokens, if the adapter was saved with a tokenizer.
    head_bias : torch.Tensor or None
        [k], the head's bias entries.
    has_lora : bool
        Whether the adapter holds other tensors too.
    """

    ids: list[int]
    values: torch.Tensor
    head_ids: list[int] | None
    head_values: torch.Tensor | None
    role: str | None
    vocab_size: int | None
    tokens: TokenRecord | None = None
    head_bias: torch.Tensor | None = None
    has_lora: bool = False


def read_rows(folder: Path, head_name: str | None, *, beside_lora: bool = False) -> StoredRows:
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
    suffix = _TOKENS_KEY if kind == "TRAINABLE_TOKENS" else ROWS_SUFFIX
    known = kind in ("TRAINABLE_TOKENS", "LORA", OWN_TYPE) and indices
    biases = [tensors.pop(key) for key in list(tensors) if kind == OWN_TYPE and key.endswith(_BIAS_KEY)]
    others = [key for key in tensors if not key.startswith(_PREFIX) or not key.endswith(suffix)]
    if not known or (others and not beside_lora):
        raise InputError(f"{folder} is a {kind} adapter with more than rows in it; {_elsewhere(kind, bool(indices))}")
    rows = {
        key.removeprefix(_PREFIX).removesuffix(suffix): value for key, value in tensors.items() if key not in others
    }
    head_values = rows.pop(head_name, None) if head_name is not None else None
    if tensors.metadata.get(_ROLE) == "own" and head_values is None:
        raise InputError(f"{folder} has rows of an output head, and this model has none of that name")
    ids, head_ids = _indices(folder, indices, head_name)
    if not rows or ids is None:
        raise InputError(f"{folder} holds no rows of an input embedding")
    values = next(iter(rows.values()))
    if any(not torch.equal(other, values) for other in list(rows.values())[1:]):
        raise InputError(f"{folder} holds different rows for different embeddings; load it with PEFT")
    if kind == "TRAINABLE_TOKENS" and head_values is not None and _names_head(config.get("target_modules"), head_name):
        head_ids = ids
    wanted = tensors.metadata.get(_HEAD_IDS)
    if wanted is not None and head_ids is not None and head_values is not None:
        try:
            own = [int(token) for token in json.loads(wanted)]
            places = [head_ids.index(token) for token in own]
            head_ids, head_values, biases = own, head_values[places], [bias[places] for bias in biases]
        except (ValueError, TypeError, IndexError, RecursionError):
            raise InputError(f"{folder} has a damaged list of the head's tokens; save the adapter again") from None
    size = tensors.metadata.get(_VOCABULARY, "")
    return StoredRows(
        ids,
        values,
        head_ids,
        head_values,
        tensors.metadata.get(_ROLE),
        int(size) if size.isdecimal() else None,
        parsed_record(folder, tensors.metadata.get(_TOKENS)),
        biases[0] if biases else None,
        bool(others),
    )


def _elsewhere(kind: Any, has_rows: bool) -> str:
    if kind == "LORA" and has_rows:
        return "load both by kslottery_fast.integrations.lora_rows.load_lora_and_rows, or load it with PEFT"
    return "load it with PEFT"


def _indices(folder: Path, indices: Any, head_name: str | None) -> tuple[list[int] | None, list[int] | None]:
    """The token ids of the input modules and of the head, which the config may name apart.

    A name in a config of PEFT may be the end of the module's name.
    """
    per_module = indices if isinstance(indices, dict) else {"": indices}
    if not all(isinstance(ids, list) for ids in per_module.values()):
        raise InputError(f"{folder / CONFIG_FILE}: token indices must be lists of integers")
    heads = [name for name in per_module if name and _names_head([name], head_name)]
    inputs = [ids for name, ids in per_module.items() if name not in heads]
    if any(ids != inputs[0] for ids in inputs):
        raise InputError(f"{folder} holds rows of different tokens for different embeddings; load it with PEFT")
    return inputs[0] if inputs else None, per_module[heads[0]] if heads else None


def _names_head(names: Any, head_name: str | None) -> bool:
    """Whether one of the modules that a config of PEFT names is the head. A name may be the end of the head's name."""
    return head_name is not None and isinstance(names, list) and any(head_name.endswith(str(name)) for name in names)


def check_fits(folder: Path, stored: StoredRows, vocab_size: int, dimension: int) -> torch.Tensor:
    """Return the token ids of an adapter that fits a table [V, d], int64 [k].

    Raises
    ------
    InputError
        The adapter is of a table of another size, or its ids or rows are damaged.
    """
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
