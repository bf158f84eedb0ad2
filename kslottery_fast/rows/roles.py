"""Which role the output head gets: it keeps its rows, it follows the rows of the input, or it has rows of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import HeadRole
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.base.tokenizer import Tokenizer

from .heads import output_head, own_heads, tied_heads
from .new_token_marks import new_tokens
from .tables import base_rows, is_quantized, is_tied, table_shape
from .token_ids import TokenIds, check_token_ids

_LOOKED_AT, _SAMPLED = 256, 1024
_NEAR = 0.1
"""A mean of 1,024 rows is within 3% of their spread, and any other row hardly ever within 10%."""


class Head(NamedTuple):
    """What the output head is to do."""

    role: HeadRole
    modules: list[nn.Module]  # that read rows
    token_ids: torch.Tensor | None  # of rows of its own


def check_output(output: Any) -> None:
    """Refuse what is not one of the choices of :data:`~kslottery_fast.base.options.OutputRole`."""
    check_choice(output, ("auto", "frozen", "tied", "own"), "output")


def check_output_ids(output_ids: TokenIds | None, output: str) -> None:
    """Refuse ids for a head that has no rows of its own."""
    if output_ids is not None and output != "own":
        raise InputError(
            f"output_ids are the tokens of the head's own rows, and output is {output!r}; pass output='own', or leave "
            "output_ids out"
        )


def choose_head(
    model: nn.Module,
    embedding: nn.Embedding,
    ids: torch.Tensor,
    output: str,
    output_ids: TokenIds | None,
    tokenizer: Tokenizer | None,
) -> Head:
    """Return what the head does about rows of the tokens ``ids``.

    Raises
    ------
    InputError
        The model has no head that can do it, or ``output_ids`` are bad.
    """
    check_output_ids(output_ids, output)
    own_ids: TokenIds | None = output_ids
    if output == "auto":
        output, own_ids = _role_of_new_tokens(model, embedding, ids, tokenizer)
    if output == "tied":
        return Head("tied", tied_heads(model, embedding, ids), None)
    if output == "own":
        heads = own_heads(model)
        return Head("own", heads, head_ids(heads[0], ids, own_ids, tokenizer, new_tokens(model)))
    return Head("frozen", [], None)


def head_ids(
    head: nn.Module,
    ids: torch.Tensor,
    output_ids: TokenIds | None,
    tokenizer: Tokenizer | None,
    added: Sequence[int] = (),
) -> torch.Tensor:
    """Return the tokens of the head's own rows, which are those of the input unless others are given.

    ``added`` are the tokens that were added to the model.
    """
    height = table_shape(head)[0]
    if output_ids is not None:
        return check_token_ids(output_ids, height, "output_ids", tokenizer=tokenizer, new_tokens=added, table="output")
    return check_token_ids(ids, height, "token_ids (for the output head; output_ids= gives it others)")


def _role_of_new_tokens(
    model: nn.Module, embedding: nn.Embedding, ids: torch.Tensor, tokenizer: Tokenizer | None
) -> tuple[HeadRole, list[int] | None]:
    """What "auto" means: rows that no training has seen are trained as outputs too, and others as inputs alone."""
    added = new_tokens(model)
    ours = [token for token in ids.tolist() if token in added]
    if output_head(model) is None:
        return "frozen", None
    if ours:
        return ("tied", None) if is_tied(model) else ("own", ours)
    tied = is_tied(model)
    if tokenizer is None or not _warn_unlearnable(ids, tokenizer, tied=tied):
        _warn_untrained(embedding, ids, tied=tied)
    return "frozen", None


def _warn_unlearnable(ids: torch.Tensor, tokenizer: Any, *, tied: bool) -> bool:
    """Warn of tokens that were added to a tokenizer since it was loaded: a frozen head never learns to predict them."""
    added: dict[str, int] = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else {}
    loaded = getattr(tokenizer, "init_kwargs", {}).get("added_tokens_decoder", {})
    special = {
        getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    }
    new = set(added.values()) - {int(token) for token in loaded} - special
    ours = [token for token in ids.tolist() if token in new]
    if ours:
        first = ", ".join(f"{token_text(tokenizer, token)!r} ({token})" for token in ours[:3])
        role = "tied" if tied else "own"
        warn_caller(
            f"output='auto' keeps the rows of the output head, and {len(ours)} of the token ids were added to the "
            f"tokenizer since it was loaded ({first}{', ...' if len(ours) > 3 else ''}): the model can read such "
            f"tokens but does not learn to predict them. Pass output={role!r} so that it does, or output='frozen' if "
            "it need not. Tokens that kslottery_fast.add_tokens adds need neither"
        )
    return bool(ours)


def _warn_untrained(embedding: nn.Embedding, ids: torch.Tensor, *, tied: bool) -> None:
    """Warn of rows at the mean of the table, where ``resize_token_embeddings`` puts the rows of new tokens."""
    if embedding.weight.is_meta or is_quantized(embedding):
        return
    V = table_shape(embedding)[0]
    last = ids[ids != embedding.padding_idx] if embedding.padding_idx is not None else ids
    last = last.sort().values[-_LOOKED_AT:]  # new rows are at the end of a table
    some = base_rows(embedding, torch.arange(0, V, max(1, V // _SAMPLED))).float()
    mean, spread = some.mean(dim=0), some.std(dim=0, correction=0).norm()
    near = (base_rows(embedding, last).float() - mean).norm(dim=1) < _NEAR * spread
    untrained = last[near.cpu()].tolist()
    if untrained:
        first, role = ", ".join(map(str, untrained[:3])), "tied" if tied else "own"
        warn_caller(
            f"output='auto' keeps the rows of the output head, and {len(untrained)} of the token ids "
            f"({first}{', ...' if len(untrained) > 3 else ''}) have rows at the mean of the table, as "
            "resize_token_embeddings makes them for new tokens: the model can read such tokens but does not learn to "
            f"predict them. Pass output={role!r} so that it does, or output='frozen' if it need not"
        )
