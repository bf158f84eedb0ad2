"""What an adapter of the rows attached to a model holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn

from kslottery_fast.base.arguments import check_choice, check_model, check_path, check_tokenizer, shown
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_card import portable_name
from .adapter_format import HeadRows
from .adapter_model import base_modules, kind_of, says_tied
from .adapter_rows import AdapterRows
from .adapter_tokens import record_of
from .attachment import attached_model, get_output_rows, output_role, row_heads
from .heads import head_rows, output_head
from .overlay import RowEmbedding, RowHead
from .tables import base_rows, input_embedding, input_modules, is_tied, table_shape, table_users


def rows_of(
    model: nn.Module,
    base: Literal["auto", "untied"] = "auto",
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: Mapping[str, float] | None = None,
) -> AdapterRows | None:
    """Gather what an adapter of a model's rows holds; :func:`save_adapter` explains the arguments.

    Returns
    -------
    AdapterRows or None
        None on all processes but the first, if the model is sharded.
    """
    role, owner = output_role(check_model(model)), cast(Any, attached_model(model))
    check_choice(base, ("auto", "untied"), "base")
    _check_metrics(metrics)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    name = _base_name(owner, base_model_name_or_path)
    embedding = cast(RowEmbedding, input_embedding(owner))
    V, ids = table_shape(embedding)[0], embedding.token_ids.tolist()
    names = {id(module): name for name, module in base_modules(owner)}
    # If the model is sharded, these gather on every process. Then the first process writes.
    rows, modules = whole(embedding.rows), input_modules(owner, embedding.token_ids)
    own: list[int] | None = None
    heads = [] if role == "own" else _named_heads(owner, embedding, names, role, base)
    head = _pinned(embedding, heads, ids, V) if heads and role == "frozen" else None
    if role == "own":
        overlaid = get_output_rows(owner)
        own, heads = overlaid.token_ids.tolist(), list(row_heads(owner))
        head = _own(overlaid, ids, own, apart=base == "auto" and (is_tied(owner) or says_tied(owner)))
    tokens = record_of(tokenizer, dict.fromkeys([*ids, *(own or [])]), V) if tokenizer is not None else None
    if any(is_sharded(each) for each in (embedding.rows, embedding.weight)) and dist.get_rank() != 0:
        return None
    return AdapterRows(
        ids=ids,
        rows=rows,
        vocab_size=V,
        input_modules=[names[id(module)] for module in modules],
        head_modules=[names[id(each)] for each in heads],
        head=head,
        kind=kind_of(owner),
        base=name,
        own=own,
        tokens=tokens,
        metrics=metrics or {},
        shared=base == "auto" and says_tied(owner) and output_head(owner) is None,
    )


def _named_heads(owner: Any, embedding: RowEmbedding, names: dict[int, str], role: str, base: str) -> list[Any]:
    """The heads that the adapter has to name, since PEFT takes them for tied."""
    if base == "untied":
        if role == "tied":
            raise InputError("base='untied' does not fit rows that the head follows; save them with base='auto'")
        return []
    heads: list[Any] = list(table_users(owner, embedding.weight)[1])
    if not heads and says_tied(owner):
        # Not tied, but PEFT goes by the config. A model without a head, such as BertModel, has the same config.
        heads = [head for head in (output_head(owner),) if head is not None]
    for head in heads:
        if getattr(head, "bias", None) is not None:
            raise InputError(
                f"the head {names[id(head)]} has a bias, which PEFT drops when it wraps a tied head; "
                "attach the rows with output='frozen', save with base='untied', load onto untie_output(base model)"
            )
    return heads


def _pinned(embedding: RowEmbedding, heads: Sequence[Any], ids: list[int], vocab_size: int) -> HeadRows:
    """A row of the head that stays as it is, which keeps the head of a tied model apart in PEFT."""
    token = token_outside(ids, vocab_size)
    # Tied or not by now: accelerate gives the modules that it offloads weights of their own.
    pinned_to = embedding if heads[0].weight is embedding.weight else heads[0]
    return HeadRows([token], base_rows(pinned_to, torch.tensor([token])))


def _own(head: RowHead, input_ids: list[int], ids: list[int], *, apart: bool) -> HeadRows:
    """The head's own rows. Where PEFT would tie equal lists of tokens, theirs becomes another one."""
    rows, bias = whole(head.rows).detach(), head.row_bias
    entries = None if bias is None else whole(bias).detach()
    if apart and ids == input_ids and len(ids) > 1:
        order = [*range(1, len(ids)), 0]
        return HeadRows([ids[i] for i in order], rows[order], None if entries is None else entries[order])
    if apart and ids == input_ids and bias is None:
        token = token_outside(ids, table_shape(cast(Any, head))[0])
        pinned = head_rows(head, torch.tensor([token])).to(rows)
        return HeadRows([*ids, token], torch.cat([rows, pinned]))
    return HeadRows(ids, rows, entries)


def token_outside(token_ids: list[int], vocab_size: int) -> int:
    """A token whose index list differs from ``token_ids``, since PEFT ties modules with equal lists."""
    taken = set(token_ids)
    return next((token for token in range(vocab_size) if token not in taken), token_ids[0])


def _base_name(owner: Any, given: str | os.PathLike[str] | None) -> str | None:
    if given is not None:
        check_path(given, "base_model_name_or_path")
        return os.fspath(given)
    return portable_name(getattr(getattr(owner, "config", None), "_name_or_path", None))


def _check_metrics(metrics: Any) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is {shown(metrics)}: expected a dict of names and numbers, such as {{'NLL': 1.23}}")
    for name, value in metrics.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"metrics has {shown(name)}: {shown(value)}: expected a str and a number")
