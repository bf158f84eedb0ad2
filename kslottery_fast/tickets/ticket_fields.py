"""The attributes of tickets: what may be given for them, and what must hold between them."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_choice, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TicketTable
from kslottery_fast.base.ticket_ids import check_other_size, is_int
from kslottery_fast.ks.corrections import CORRECTIONS
from kslottery_fast.ks.null import METHODS
from kslottery_fast.ks.significance import check_alpha

SETTINGS = (
    "vocab_size",
    "dimension",
    "method",
    "correction",
    "selected_by",
    "alpha",
    "threshold_count",
    "table",
    "vocab_size_after",
)
"""The attributes that say how rows were selected."""


def integers(values: Any, name: str) -> Tensor:
    """Return integers of a sequence, array or tensor as int64 on the CPU. Nothing is rounded."""
    try:
        # A copy of an array: torch warns of one that is read-only, as pandas gives them.
        tensor = torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} is {shown(values)}: expected integers in a list, array or tensor") from None
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise InputError(f"{name} has dtype {tensor.dtype}: expected integers")
    return tensor.to(torch.int64)


def tuple_of_texts(values: Any) -> tuple[str, ...]:
    """Return the texts of tokens as a tuple."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"token_texts is {shown(values)}: expected a list of strings, or None")
    return tuple(values)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check all that must hold between the arguments of the constructor. Each fault has its own message."""
    _check_settings(fields)
    ids, h, texts = fields["token_ids"], fields["counts"], fields["token_texts"]
    for name, values in (("token_ids", ids), ("counts", h)):
        if not isinstance(values, Tensor) or values.dtype != torch.int64 or values.ndim != 1 or not values.is_cpu:
            raise InputError(f"{name} must be an int64 tensor [k] on the CPU; Tickets.from_counts takes other integers")
    if len(ids) != len(h):
        raise InputError(f"counts has {len(h)} entries, token_ids {len(ids)}: expected one count per row")
    if texts is not None and len(tuple_of_texts(texts)) != len(ids):
        raise InputError(f"token_texts has {len(texts)} entries, token_ids {len(ids)}: expected one text per row")
    if len(ids):
        V, other = fields["vocab_size"], fields["vocab_size_after"]
        _check_rows(ids, h, V if other is None else min(V, other), fields["dimension"], fields["threshold_count"])


def _check_settings(fields: Mapping[str, Any]) -> None:
    for name in ("vocab_size", "dimension", "threshold_count"):
        value, least = fields[name], 0 if name == "vocab_size" else 1
        if not is_int(value) or value < least:
            raise InputError(f"{name} is {shown(value)}: expected an integer of at least {least}")
    check_other_size(fields["vocab_size_after"], fields["vocab_size"])
    d, threshold = fields["dimension"], fields["threshold_count"]
    if threshold > d + 1:
        rows = f"rows of {d} number{'' if d == 1 else 's'}"
        raise InputError(f"threshold_count is {threshold}: expected 1..{d + 1} for {rows}")
    check_choice(fields["method"], METHODS, "method")
    check_choice(fields["correction"], CORRECTIONS, "correction")
    check_choice(fields["selected_by"], ("alpha", "top_k"), "selected_by")
    check_choice(fields["table"], get_args(TicketTable), "table")
    if fields["alpha"] is not None:
        try:
            check_alpha(fields["alpha"])
        except TypeError as error:
            raise InputError(str(error)) from None
    elif fields["selected_by"] == "alpha":
        raise InputError("alpha is None, but selected_by is 'alpha'")


def _check_rows(ids: Tensor, h: Tensor, V: int, d: int, threshold: int) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= V:
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise InputError(f"token_ids holds {bad}, outside a table of {V} rows")
    if len(torch.unique(ids)) != len(ids):
        raise InputError("token_ids holds a row twice")
    if int(h.min()) < threshold or int(h.max()) > d:
        bad = int(h.max()) if int(h.max()) > d else int(h.min())
        raise InputError(f"counts holds {bad}: expected {threshold} to {d}")
    falling = (h[:-1] > h[1:]) | ((h[:-1] == h[1:]) & (ids[:-1] < ids[1:]))
    if not bool(falling.all()):
        raise InputError("token_ids must be sorted by falling count, then rising id")
