"""What an adapter of rows needs to know about its model: names of modules, tied heads, and the role of the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole

from .adapter_format import StoredRows
from .overlay import RowEmbedding
from .tables import is_tied, table_users
from .token_ids import check_token_ids


def head_role(folder: Path, stored: StoredRows, model: nn.Module, head: Any) -> OutputRole:
    """What the head is to do about the rows of an adapter."""
    if head is not None and stored.head_ids is not None and stored.head_ids != stored.ids:
        # The head has rows of its own. In the adapters of this package they are pinned to the base. Any others are no
        # set of rows for the input.
        own = head.weight.detach()[check_token_ids(stored.head_ids, len(head.weight), f"{folder}: indices of the head")]
        if stored.head_values is None or not torch.equal(stored.head_values.to(own), own):
            raise InputError(f"{folder} has other rows for the head than the base model; load it with PEFT")
        return "frozen"
    output = stored.role or ("tied" if is_tied(model) else "frozen")
    if stored.head_values is not None and not torch.equal(stored.head_values, stored.values):
        raise InputError(f"{folder} holds different rows for the head; load it with PEFT")
    if (output == "tied" or stored.head_values is not None) and not is_tied(model):
        raise InputError(f"{folder} changes the head too, but this model is not tied; load it onto the tied base")
    return cast(OutputRole, output)


def tied_heads(owner: Any, embedding: RowEmbedding, names: dict[int, str], role: str, base: str) -> list[Any]:
    """The heads that the adapter has to name, since PEFT takes them for tied."""
    if base == "untied":
        if role == "tied":
            raise InputError("base='untied' does not fit rows that the head follows; save them with base='auto'")
        return []
    heads: list[Any] = list(table_users(owner, embedding.weight)[1])
    if not heads and getattr(getattr(owner, "config", None), "tie_word_embeddings", False):
        heads = [owner.get_output_embeddings()]  # not tied, but PEFT goes by the config
    for head in heads:
        if getattr(head, "bias", None) is not None:
            raise InputError(
                f"the head {names[id(head)]} has a bias, which PEFT drops when it wraps a tied head; "
                "attach the rows with output='frozen', save with base='untied', load onto untie_output(base model)"
            )
    return heads


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the model that PEFT may have wrapped, with their names in the unwrapped model."""
    base = next(module for module in model.modules() if not type(module).__module__.startswith("peft."))
    return [(name.replace(".base_layer", ""), module) for name, module in base.named_modules()]


def task_type_of(model: Any) -> str | None:
    """PEFT's name for the kind of model, which AutoPeftModel needs."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if hasattr(model, "generate") else None


def token_outside(token_ids: list[int], vocab_size: int) -> int:
    """A token whose index list differs from ``token_ids``, since PEFT ties modules with equal lists."""
    taken = set(token_ids)
    return next((token for token in range(vocab_size) if token not in taken), token_ids[0])
