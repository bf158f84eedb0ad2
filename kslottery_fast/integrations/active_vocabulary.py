"""``tickets="active"`` of a TicketTrainer: the rows that a dataset reads, and the check that batches read no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attached_model, get_rows
from kslottery_fast.rows.tables import active_token_ids


def active_vocabulary(dataset: Any, model: nn.Module) -> torch.Tensor:
    """Sorted distinct token ids, int64, that the embeddings of ``model`` read over one pass of ``dataset``.

    Raises
    ------
    InputError : a dataset that streams, or one without token ids.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            "tickets='active' reads all of train_dataset beforehand, and this one streams: load it whole, or pass the "
            "token ids in place of 'active' (active_token_ids finds them in one pass over the data)"
        )
    config: Any = getattr(model, "config", None)
    decodes = getattr(config, "is_encoder_decoder", False)
    keys = ("input_ids", "decoder_input_ids", "labels") if decodes else ("input_ids",)
    first: Mapping[str, Any] = next(iter(dataset), {})
    if not any(key in first for key in keys):
        raise InputError(
            f"tickets='active' reads {' or '.join(keys)}, and train_dataset has {', '.join(first) or 'no example'}: "
            "tokenise it before the Trainer is built, or pass the token ids in place of 'active'"
        )
    ids = active_token_ids(dataset, keys=keys)
    if not decodes:
        return ids
    # A decoder reads the labels shifted by one: its start token first, and the padding token in place of -100.
    special = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    extra = [token for token in special if token is not None]
    return torch.cat([ids, torch.tensor(extra, dtype=torch.int64)]).unique()


def check_batch(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a batch that reads a row which does not train.

    Raises
    ------
    InputError : names the first such token.
    """
    embedding = get_rows(model)
    config: Any = getattr(attached_model(model), "config", None)
    read = {"input_ids": inputs.get("attention_mask"), "decoder_input_ids": None}
    if getattr(config, "is_encoder_decoder", False) and inputs.get("decoder_input_ids") is None:
        # The model makes them of the labels. All labels count: most models leave the last one out, mBART moves it to
        # the front. What stands in for -100, and the start token, are in the active vocabulary anyway.
        read["labels"] = inputs["labels"] >= 0 if inputs.get("labels") is not None else None
    for key, counted in read.items():
        ids = inputs.get(key)
        if ids is None:
            continue
        seen = ids if counted is None or counted.shape != ids.shape else ids[counted.bool()]
        outside = seen[embedding.slots[seen] < 0]
        if len(outside):
            raise InputError(
                f"{key} holds token {outside[0].item()}, which is not in the active vocabulary that trains: leave the "
                "example out, or build the Trainer with a train_dataset that has it"
            )
