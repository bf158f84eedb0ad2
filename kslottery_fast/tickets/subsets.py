"""Parts and unions of tickets, and what must hold for two tickets to be compared."""

import dataclasses
import operator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

if TYPE_CHECKING:
    from .tickets import Tickets

T = TypeVar("T", bound="Tickets")


def place_of(index: Any, k: int) -> int | None:
    """The place in 0..k-1 that an index means. None for a slice, a mask, or a value that is not an index.

    Raises
    ------
    IndexError
        The place is outside.
    """
    if isinstance(index, (Tensor, np.ndarray)) and index.ndim:
        return None
    try:
        place = operator.index(index)
    except TypeError:
        return None
    if not -k <= place < k:
        raise IndexError(f"index is {place}, but there are {k} tickets")
    return place % k


def places_of(index: Any, k: int) -> Tensor:
    """The places that a slice or a mask of k bools means, ascending, int64."""
    if isinstance(index, slice):
        places = range(k)[index]
        if places.step < 0:
            raise InputError(
                "index has a negative step, but tickets are always sorted by falling D; reversed(tickets) gives the "
                "token ids by rising D"
            )
        return torch.tensor(places, dtype=torch.int64)
    try:
        mask = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        mask = None
    if mask is None or mask.dtype != torch.bool:
        raise TypeError(
            f"index is {shown(index)}: expected an int, a slice, or a mask of {k} bools, such as "
            "tickets.statistic > 0.5"
        )
    if mask.shape != (k,):
        raise InputError(f"index is a mask of shape {list(mask.shape)}: expected [{k}], one bool per ticket")
    return torch.nonzero(mask)[:, 0].cpu()


def subset(tickets: T, places: Tensor) -> T:
    """Tickets at some places, given in ascending order, with their evidence and the settings of the selection."""
    counts, texts = tickets.counts[places], tickets.token_texts
    threshold = tickets.threshold_count
    if tickets.selected_by == "top_k":  # then it is the smallest h, and ks_select reports 1 if there is none
        threshold = int(counts[-1]) if len(counts) else 1
    return dataclasses.replace(
        tickets,
        token_ids=tickets.token_ids[places],
        counts=counts,
        threshold_count=threshold,
        token_texts=None if texts is None else tuple(texts[place] for place in places.tolist()),
    )


def check_same_vocabulary(tickets: "Tickets", other: "Tickets") -> None:
    """Refuse tickets whose token ids mean other tokens.

    Raises
    ------
    InputError
        The tables have different numbers of rows, or a shared token has another text.
    """
    if tickets.vocab_size != other.vocab_size:
        raise InputError(
            f"other is of a table of {other.vocab_size} rows, but these tickets are of one of {tickets.vocab_size}: "
            "their token ids do not mean the same tokens"
        )
    theirs = dict(zip(other.token_ids.tolist(), other.token_texts or (), strict=False))
    for token, text in zip(tickets.token_ids.tolist(), tickets.token_texts or (), strict=False):
        if theirs.get(token, text) != text:
            raise InputError(
                f"other is of another tokenizer: token {token} is {theirs[token]!r} there and {text!r} here"
            )


def union(tickets: T, other: "Tickets") -> T:
    """Tickets of both, with the evidence of the first if a row is in both.

    Raises
    ------
    InputError
        The two were selected with different settings.
    """
    names = ["table", "vocab_size_after", "dimension", "method", "correction", "selected_by"]
    names += ["alpha"] if tickets.selected_by == "alpha" else []
    for name in names:
        ours, theirs = getattr(tickets, name), getattr(other, name)
        if ours != theirs:
            raise InputError(
                f"other has {name} {theirs!r}, but these tickets have {ours!r}, so no single test would select both; "
                "select them with the same settings, or take the token ids alone: sorted({*tickets, *other})"
            )
    new = torch.nonzero(~torch.isin(other.token_ids, tickets.token_ids))[:, 0]
    ids = torch.cat([tickets.token_ids, other.token_ids[new]])
    counts = torch.cat([tickets.counts, other.counts[new]])
    order = by_falling_count(ids, counts)
    texts = None
    if tickets.token_texts is not None and other.token_texts is not None:
        both = [*tickets.token_texts, *(other.token_texts[place] for place in new.tolist())]
        texts = tuple(both[place] for place in order.tolist())
    threshold = min(tickets.threshold_count, other.threshold_count)
    if tickets.selected_by == "top_k":
        threshold = int(counts.min()) if len(counts) else 1
    return dataclasses.replace(
        tickets,
        token_ids=ids[order],
        counts=counts[order],
        threshold_count=threshold,
        alpha=tickets.alpha if tickets.alpha == other.alpha else None,
        token_texts=texts,
    )


def by_falling_count(ids: Tensor, counts: Tensor) -> Tensor:
    """The order of tickets: by falling count, then by rising id."""
    order = torch.argsort(ids)
    return order[torch.sort(counts[order], descending=True, stable=True).indices]
