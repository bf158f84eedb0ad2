"""Reading the token ids of a ticket file without its statistics, and the text of a token.

:meth:`kslottery_fast.Tickets.load` reads and checks the rest of the file.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from .arguments import check_choice, check_tokenizer
from .errors import InputError
from .files import read_json
from .options import TicketTable

FORMAT = "kslottery-tickets/1"
ROWS_FORMAT = "kslottery-rows/1"
"""The format of rows that another selector than the KS test chose."""


@dataclass(frozen=True)
class TicketIds:
    """The token ids of a ticket file.

    Attributes
    ----------
    token_ids : torch.Tensor
        int64 [k], in the order of the file.
    vocab_size : int
        The number of rows of the table that they were selected from.
    token_texts : tuple of str, or None
        The text of each token, if the tickets were saved with a tokenizer.
    table : {"input", "output", "shared"}
        Which table of a model the rows are of.
    vocab_size_after : int, or None
        The number of rows of the tuned table, if that is another one. The tickets are among the rows that both have.
    """

    token_ids: torch.Tensor
    vocab_size: int
    token_texts: tuple[str, ...] | None
    table: TicketTable = "input"
    vocab_size_after: int | None = None


def read_ticket_ids(path: str | os.PathLike[str]) -> TicketIds:
    """Read the token ids of a ticket file.

    Raises
    ------
    InputError
        There is no such file, it is not a ticket file, or it was changed after it was written.
    """
    data = read_json(path)
    try:
        check_format(data, (FORMAT, ROWS_FORMAT))
        if missing := [key for key in ("token_ids", "vocab_size", "digest") if key not in data]:
            raise InputError(f"missing {', '.join(missing)}")
        if not is_int(data["vocab_size"]):
            raise InputError(f"vocab_size is {data['vocab_size']!r}: expected an integer")
        ids, texts, table = integers_of(data, "token_ids"), texts_of(data), table_of(data)
        check_other_size(data.get("vocab_size_after"), data["vocab_size"])
        check_digest(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return TicketIds(ids, data["vocab_size"], texts, table, data.get("vocab_size_after"))


def check_format(data: Any, formats: Sequence[str] = (FORMAT,)) -> None:
    """Refuse parsed JSON that is not a file of one of these formats."""
    if not isinstance(data, dict) or "format" not in data:
        raise InputError("not a tickets file: expected a JSON object with the key 'format'")
    if data["format"] == ROWS_FORMAT and ROWS_FORMAT not in formats:
        raise InputError(
            f"the rows were selected by {data.get('selected_by')!r} and have no KS statistics, which Tickets need; "
            "read them with kslottery_fast.tickets.SelectedRows.load, or give the path where token ids are expected"
        )
    if data["format"] not in formats:
        raise InputError(f"format is {data['format']!r}: expected {formats[0]!r}; a newer version may have made it")


def integers_of(data: Mapping[str, Any], key: str) -> torch.Tensor:
    """The list of integers under ``key``, int64."""
    values = data[key]
    if not isinstance(values, list) or not all(is_int(value) and abs(value) < 2**63 for value in values):
        raise InputError(f"{key} must be a list of integers")
    return torch.tensor(values, dtype=torch.int64)


def texts_of(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The texts of the tokens, if the file has them."""
    texts = data.get("tokens")
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise InputError("tokens must be a list of strings")
    return None if texts is None else tuple(texts)


def table_of(data: Mapping[str, Any]) -> TicketTable:
    """The table that the rows are of. Files without the key, as version 0.1 wrote them, are of the input embedding."""
    table: TicketTable = data.get("table", "input")
    check_choice(table, get_args(TicketTable), "table")
    return table


def check_other_size(value: Any, vocab_size: int) -> None:
    """Refuse a number of rows of the tuned table that is none, or not another one than that of the original."""
    if value is not None and not (is_int(value) and value >= 0 and value != vocab_size):
        raise InputError(
            f"vocab_size_after is {value!r}: expected null, or a number of rows other than vocab_size, {vocab_size}"
        )


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of an object."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def check_digest(data: Mapping[str, Any]) -> None:
    """Refuse the content of a file that was changed after it was written."""
    if data["digest"] != digest_of({key: value for key, value in data.items() if key != "digest"}):
        raise InputError("digest does not match: the file was changed after it was written; select the tickets again")


def is_int(value: Any) -> bool:
    """Tell whether a value of a parsed file is an integer. A JSON boolean does not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token, with a leading space kept.

    A piece that is not text by itself, such as a part of a UTF-8 character, keeps the tokenizer's own spelling.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return str(piece)
    # SentencePiece marks the start of a word with U+2581 and drops it when it decodes a single piece.
    return f" {text}" if str(piece).startswith("▁") and not text.startswith(" ") else text


def check_texts(token_ids: Sequence[int], texts: Sequence[str], tokenizer: Any) -> None:
    """Refuse a tokenizer whose tokens have other texts than those that tickets were saved with."""
    size = len(check_tokenizer(tokenizer))
    for token, ours in zip(token_ids, texts, strict=True):
        theirs = token_text(tokenizer, token) if token < size else None
        if ours != theirs:
            raise InputError(
                f"the tickets are of another tokenizer: token {token} is {ours!r} in the tickets and "
                f"{'missing' if theirs is None else repr(theirs)} in the tokenizer; select tickets for this model"
            )
