"""The tokens of an adapter: which strings its rows belong to, and which of them were added to the base's tokenizer.

With them, :func:`kslottery_fast.load_adapter` adds the tokens to a fresh tokenizer and grows the tables of a fresh base
model, or says what differs.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .heads import output_head
from .new_token_rows import mean_row
from .tables import input_embedding, input_modules, table_shape

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenRecord:
    """What an adapter keeps of the tokenizer that its rows were trained with.

    Attributes
    ----------
    rows : dict of int to str
        The tokenizer's own spelling of each token that has a row.
    added : tuple of dict
        The tokens beyond the vocabulary that the tokenizer began with, by rising id: ``id``, ``content``, and the flags
        of an AddedToken.
    """

    rows: Mapping[int, str]
    added: tuple[Mapping[str, Any], ...]

    def text(self) -> str:
        """The record as JSON, for the metadata of the weights file."""
        return json.dumps({"rows": list(self.rows.items()), "added": list(self.added)})


def record_of(tokenizer: Tokenizer, token_ids: Iterable[int], vocab_size: int) -> TokenRecord:
    """Make the record of rows and of the tokens that were added to a tokenizer.

    Raises
    ------
    InputError
        A row is of a token that the tokenizer does not have.
    """
    rows = {token: tokenizer.convert_ids_to_tokens(token) for token in token_ids}
    for token, spelling in rows.items():
        if not isinstance(spelling, str):
            raise InputError(
                f"tokenizer has no token {token}, for which the model has a row; pass the tokenizer that the rows were "
                "trained with"
            )
    begins_at = getattr(tokenizer, "vocab_size", len(tokenizer))
    decoder: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    added = tuple(
        {"id": token, "content": str(each), **{flag: bool(getattr(each, flag, False)) for flag in _FLAGS}}
        for token, each in sorted(decoder.items())
        if begins_at <= token < vocab_size
    )
    return TokenRecord(rows, added)


def parsed_record(folder: Path, text: str | None) -> TokenRecord | None:
    """Read what :meth:`TokenRecord.text` wrote."""
    if text is None:
        return None
    try:
        data = json.loads(text)
        rows = {int(token): str(spelling) for token, spelling in data["rows"]}
        added = tuple(
            {"id": int(each["id"]), "content": str(each["content"]), **{flag: bool(each[flag]) for flag in _FLAGS}}
            for each in data["added"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{folder} has a damaged record of its tokens; save the adapter again") from None
    return TokenRecord(rows, added)


@dataclass
class Growth:
    """What a base model and a tokenizer lack of an adapter's tokens. Nothing is changed until :meth:`grow`.

    Attributes
    ----------
    missing : list of dict
        The tokens to add to the tokenizer.
    before, after : int
        The number of rows of the table, now and then.
    """

    missing: list[Mapping[str, Any]]
    before: int
    after: int

    def grow(self, model: nn.Module) -> None:
        """Grow the tables by transformers' own method. New rows are the mean of the table, which no seed changes."""
        if self.after == self.before:
            return
        owner, device = cast(Any, model), input_embedding(model).weight.device
        some = torch.arange(min(16, self.before))  # enough to recognize copies of the table
        copies = len(input_modules(model, some))
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # new rows are drawn, then overwritten
            owner.resize_token_embeddings(self.after, mean_resizing=False)
        modules: list[Any] = [*input_modules(model, some)]
        if len(modules) != copies:
            raise InputError(
                f"{type(owner).__name__} grew some of its tables, but left one with {self.before} rows; resize the "
                "base model yourself, with all of its tables, and load the adapter then"
            )
        with torch.no_grad():
            for module in (*modules, output_head(model)):
                if module is not None and len(module.weight) == self.after:
                    module.weight[self.before :] = mean_row(module.weight, self.before).to(module.weight.dtype)

    def teach(self, tokenizer: Tokenizer | None) -> None:
        """Add the missing tokens to the tokenizer, in their order."""
        if tokenizer is not None:
            _add(tokenizer, self.missing)


def planned_growth(
    folder: Path, model: nn.Module, vocab_size: int | None, record: TokenRecord | None, tokenizer: Tokenizer | None
) -> Growth:
    """What has to grow so that an adapter of a table with ``vocab_size`` rows fits. It changes nothing.

    Raises
    ------
    InputError
        The tokens of the tokenizer are others than those of the adapter, the heights differ and nothing says which
        tokens were added, or the table cannot grow.
    """
    V = table_shape(input_embedding(model))[0]
    missing = _missing(folder, record, tokenizer) if record is not None and tokenizer is not None else []
    if vocab_size is None or vocab_size == V:
        return Growth(missing, V, V)
    _check_height(folder, vocab_size, V, record, tokenizer)
    if not hasattr(model, "resize_token_embeddings"):
        raise InputError(f"model is a {type(model).__name__}, which cannot grow to the {vocab_size} rows of {folder}")
    embedding = input_embedding(model)
    if not embedding.weight.is_floating_point() or embedding.weight.is_meta:
        raise InputError(
            f"{folder} needs a table with {vocab_size} rows, and this one, with {V}, is quantized or offloaded and "
            "cannot grow; resize the base model, save it, and load that"
        )
    return Growth(missing, V, vocab_size)


def _check_height(
    folder: Path, vocab_size: int, V: int, record: TokenRecord | None, tokenizer: Tokenizer | None
) -> None:
    """Refuse a table of another height, unless the adapter says which tokens it gained."""
    resize = f"call model.resize_token_embeddings({vocab_size}) first"
    if record is not None and record.added and vocab_size > V:
        if tokenizer is not None:
            return
        strings = ", ".join(repr(each["content"]) for each in record.added[-3:])
        resize = (
            f"pass tokenizer=, and load_adapter adds the tokens ({strings}) to it and grows the table; without a "
            f"tokenizer {resize}"
        )
    raise InputError(
        f"{folder} is an adapter of a table with {vocab_size} rows, but this model's table has {V}; load the base "
        f"model of the adapter, or, if it was trained on a resized copy of this model, {resize}"
    )


def _missing(folder: Path, record: TokenRecord, tokenizer: Tokenizer) -> list[Mapping[str, Any]]:
    """The recorded tokens that a tokenizer lacks, if they get the recorded ids there."""
    missing = []
    for each in record.added:
        there = _id_of(tokenizer, each["content"])
        if there is None:
            missing.append(each)
        elif there != each["id"]:
            raise InputError(
                f"tokenizer has the token {each['content']!r} already, as {there}, but in {folder} it is {each['id']}; "
                "pass the tokenizer of the base model, as it was before tokens were added, or that of the training"
            )
    grown = tokenizer
    if missing:
        grown = copy.deepcopy(tokenizer)
        _add(grown, missing)
    for each in missing:
        there = _id_of(grown, each["content"])
        if there != each["id"]:
            raise InputError(
                f"tokenizer would give the token {each['content']!r} the id {there}, but in {folder} it is "
                f"{each['id']}; pass the tokenizer of the base model, which had {missing[0]['id']} tokens"
            )
    for token, spelling in record.rows.items():
        found = grown.convert_ids_to_tokens(token) if token < len(grown) else None
        if found != spelling:
            raise InputError(
                f"tokenizer has {found!r} as token {token}, but {folder} has a row for {spelling!r} there; pass the "
                "tokenizer of the adapter's base model"
            )
    return missing


def _id_of(tokenizer: Tokenizer, content: str) -> int | None:
    token = tokenizer.convert_tokens_to_ids(content)
    known = isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == content
    return token if known else None


def _add(tokenizer: Tokenizer, tokens: Iterable[Mapping[str, Any]]) -> None:
    if not tokens:
        return
    from tokenizers import AddedToken

    for special, group in itertools.groupby(tokens, key=lambda each: each["special"]):
        new = [AddedToken(each["content"], **{flag: each[flag] for flag in _FLAGS}) for each in group]
        cast(Any, tokenizer).add_tokens(new, special_tokens=special)


def unknown_rows(growth: Growth, input_ids: Iterable[int], head_ids: Iterable[int] | None) -> str | None:
    """Say which of the new rows the adapter does not hold. ``head_ids`` is None where no head keeps rows of its own."""
    new = set(range(growth.before, growth.after))
    lost = {"input table": new - set(input_ids), "output head": set() if head_ids is None else new - set(head_ids)}
    parts = [f"{len(rows)} of the {len(new)} new rows of the {what}" for what, rows in lost.items() if rows]
    if not parts:
        return None
    return (
        f"the adapter does not hold {' and '.join(parts)}; they are the mean of the other rows now, and the logits of "
        "these tokens may differ from those of the training"
    )
