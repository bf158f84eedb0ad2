"""Token ids as a user gives them: integers, tickets, the path of a ticket file, or the strings of tokens."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
import torch

from kslottery_fast.base.arguments import check_choice, check_integer, check_tokenizer, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TableName
from kslottery_fast.base.ticket_ids import TicketIds, check_texts, read_ticket_ids, token_text
from kslottery_fast.base.tokenizer import Tokenizer

ADDED = "added"
"""The word for the tokens that were added to a model or a tokenizer. A file of this name is ``./added``."""


class HasTokenIds(Protocol):
    """Tickets, or anything else that says which rows of a table of which size it means."""

    @property
    def token_ids(self) -> torch.Tensor:
        """int64 [k]."""

    @property
    def vocab_size(self) -> int:
        """The number of rows of the table."""


TokenIds: TypeAlias = (
    Sequence[int] | AbstractSet[int] | np.ndarray | torch.Tensor | HasTokenIds | str | os.PathLike[str] | Sequence[str]
)
"""What is taken where token ids are expected.

A sequence, set, array or tensor of integers, :class:`kslottery_fast.Tickets`, or the path of a ticket file. If a
tokenizer is given, also a list of strings, each of which is exactly one token. "added" means the tokens that
:func:`kslottery_fast.add_tokens` added to the model. If there are none, it means those that the tokenizer has beyond
its base vocabulary.
"""


def check_token_ids(
    token_ids: TokenIds,
    vocab_size: int,
    name: str = "token_ids",
    *,
    tokenizer: Tokenizer | None = None,
    new_tokens: Sequence[int] = (),
    table: TableName = "input",
) -> torch.Tensor:
    """Return distinct token ids of a table as an int64 tensor on the CPU, in the given order.

    Parameters
    ----------
    token_ids : TokenIds
        Integers, Tickets, the path of a ticket file, or strings of tokens.
    vocab_size : int
        The number of rows of the table.
    name : str
        What an error message calls ``token_ids``.
    tokenizer : transformers tokenizer, optional
        Looks up strings of tokens. Tickets that keep the texts of their tokens are checked against it.
    new_tokens : sequence of int
        The ids of the tokens that were added to the model, which ``"added"`` means.
    table : {"input", "output"}
        The table that the ids are for. "input" refuses tickets of the output head. "output" takes tickets of either,
        since the head may train the rows of the tokens whose input rows moved.

    Returns
    -------
    torch.Tensor
        int64 [k].

    Raises
    ------
    InputError
        There is no id, or one that is not an integer, negative, out of range or given twice. The tickets are of a
        table with another number of rows, of the other table, or of another tokenizer. A string is not one token, or
        comes without a tokenizer.
    TypeError
        ``token_ids`` has none of the types of :data:`TokenIds`, or ``tokenizer`` is not a tokenizer.

    Examples
    --------
    >>> check_token_ids([7, 3], vocab_size=10)
    tensor([7, 3])
    >>> check_token_ids([7, 30], vocab_size=10)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: token_ids has 30, outside 0..9
    """
    check_integer(vocab_size, "vocab_size", 0)
    if not isinstance(name, str):
        raise TypeError(f"name is {shown(name)}: expected a str, the name of the argument for error messages")
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    check_choice(table, get_args(TableName), "table")
    given: Any = token_ids
    if isinstance(given, str) and given == ADDED:
        given = added_token_ids(vocab_size, name, tokenizer=tokenizer, new_tokens=new_tokens)
    if isinstance(given, (str, os.PathLike)):
        given = _read(given, name)
    if hasattr(given, "token_ids") and hasattr(given, "vocab_size"):
        _check_table(given, vocab_size, name, table)
        if tokenizer is not None and getattr(given, "token_texts", None) is not None:
            check_texts(given.token_ids.tolist(), given.token_texts, tokenizer)
        given = given.token_ids
    return _distinct(_as_tensor(given, name, tokenizer), vocab_size, name)


def added_token_ids(
    vocab_size: int, name: str = "token_ids", *, tokenizer: Tokenizer | None = None, new_tokens: Sequence[int] = ()
) -> list[int]:
    """Return the ids that ``"added"`` means, in ascending order.

    These are ``new_tokens`` if there are any. Otherwise they are the added tokens of the tokenizer with ids beyond its
    base vocabulary. For a tokenizer such as that of Llama 3 or Whisper, those include its own special tokens.

    Raises
    ------
    InputError
        Without ``new_tokens``, there is no tokenizer, it has no such token, or the table has none of their rows.

    Warns
    -----
    RuntimeWarning
        The table lacks the rows of some of these tokens.
    """
    added = set(new_tokens)
    if not added:
        if tokenizer is None or not hasattr(tokenizer, "get_added_vocab"):
            raise InputError(
                f"{name} is 'added', and no token was added to this model by kslottery_fast.add_tokens: pass "
                "tokenizer=, whose added tokens are then meant (a file of this name is './added')"
            )
        base = getattr(tokenizer, "vocab_size", 0)
        added = {token for token in tokenizer.get_added_vocab().values() if token >= base}
        if not added:
            raise InputError(
                f"{name} is 'added', but the tokenizer has no token beyond its base vocabulary of {base}; add tokens "
                "with kslottery_fast.add_tokens, or give token ids"
            )
    outside = sorted(token for token in added if token >= vocab_size)
    if len(outside) == len(added):
        raise InputError(
            f"{name} is 'added', but the table has {vocab_size} rows and none for the added tokens ({outside[0]}, "
            "...); add the tokens with kslottery_fast.add_tokens, or call resize_token_embeddings"
        )
    if outside:
        warn_caller(
            f"{name} is 'added': {len(outside)} added tokens ({outside[0]}, ...) are left out, because the table has "
            f"{vocab_size} rows; resize_token_embeddings makes rows for them"
        )
    return sorted(added - set(outside))


def _read(path: str | os.PathLike[str], name: str) -> TicketIds:
    try:
        return read_ticket_ids(path)
    except InputError as error:
        raise InputError(f"{name} as the path of a ticket file: {error}; token strings belong in a list") from None


def _check_table(tickets: HasTokenIds, vocab_size: int, name: str, table: TableName) -> None:
    if table == "input" and getattr(tickets, "table", table) == "output":
        raise InputError(
            f"{name}: these tickets are of the output head, but rows of the input embedding are expected; "
            "attach_rows(model, token_ids, output='own', output_ids=tickets) trains rows of the head; list(tickets) "
            "are the token ids alone"
        )
    # Tickets of the rows that two tables share are tickets of both.
    if vocab_size not in (tickets.vocab_size, getattr(tickets, "vocab_size_after", None)):
        raise InputError(
            f"{name}: these tickets are of a table with {tickets.vocab_size} rows, but this one has "
            f"{vocab_size}; select the tickets of this model, or load the model of these tickets"
        )


def _as_tensor(given: Any, name: str, tokenizer: Any) -> torch.Tensor:
    if torch.is_tensor(given):
        return given.detach().cpu()
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"{name} is {shown(given)}: expected a list of token ids, Tickets or the path of a ticket file")
    numbers = getattr(getattr(given, "dtype", None), "kind", "O") in "biufc"  # an array of them, or a pandas Series
    values: Any = np.array(given) if numbers else list(given)
    if not numbers and any(isinstance(value, str) for value in values):
        values = [_token_id(value, tokenizer, name) for value in values]
    try:
        return torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is not a sequence of integers: {error}") from None


def _distinct(ids: torch.Tensor, vocab_size: int, name: str) -> torch.Tensor:
    if ids.numel() == 0:
        raise InputError(f"{name} is empty; give at least one token id")
    if ids.dim() != 1:
        raise InputError(f"{name} has the shape {list(ids.shape)}, expected one dimension")
    if ids.dtype == torch.bool or ids.dtype.is_floating_point or ids.dtype.is_complex:
        hint = "; mask.nonzero().squeeze(1) turns a mask into ids" if ids.dtype == torch.bool else ""
        raise InputError(f"{name} has the dtype {ids.dtype}, expected integers{hint}")
    ids = ids.to(torch.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        others = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
        raise InputError(f"{name} has {outside[0].item()}, outside 0..{vocab_size - 1}{others}")
    distinct, counts = ids.unique(return_counts=True)
    if len(distinct) != len(ids):
        raise InputError(f"{name} has {distinct[counts > 1][0].item()} more than once; remove the duplicates")
    return ids


def _token_id(text: Any, tokenizer: Any, name: str) -> int:
    """The id of the token that is exactly this text, or has exactly this spelling in the vocabulary."""
    if not isinstance(text, str):
        raise InputError(f"{name} has strings and {shown(text)}; give token ids or token strings, not both")
    if tokenizer is None:
        raise InputError(f"{name} has the string {text!r}: pass tokenizer= to look up token strings, or give token ids")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and token_text(tokenizer, ids[0]) == text:
        return int(ids[0])
    # SentencePiece may read " el" as two pieces, although its vocabulary has the piece that decodes to it.
    for piece in (text, text.replace(" ", "▁")):
        token = tokenizer.convert_tokens_to_ids(piece)
        if token is not None and tokenizer.convert_ids_to_tokens(token) == piece:
            return int(token)
    pieces = ", ".join(repr(token_text(tokenizer, token)) for token in ids) or "no token"
    raise InputError(
        f"{name} has {text!r}, which is not one token of this tokenizer: it reads {pieces}; name one of its tokens, "
        "with the leading space if it has one"
    )


def active_token_ids(dataset: Iterable[Mapping[str, Any]], *, keys: Sequence[str] = ("input_ids",)) -> torch.Tensor:
    """Return the active vocabulary of a dataset: its distinct token ids, sorted.

    Parameters
    ----------
    dataset : iterable of mappings, or map-style Dataset
        Examples or batches. Each of the ``keys`` that is there holds a list or tensor of ids.
    keys : sequence of str
        The columns that the embedding reads. An encoder-decoder model also reads ``labels``, shifted, and its
        ``decoder_start_token_id``. Ids of -100 are left out.

    Returns
    -------
    torch.Tensor
        int64 [k].

    Raises
    ------
    InputError
        The dataset has no token at all, a negative id other than -100, or examples that are not mappings.
    TypeError
        ``dataset`` cannot be read example by example.

    Examples
    --------
    >>> active_token_ids([{"input_ids": [5, 2, 5]}, {"input_ids": torch.tensor([9, 2])}])
    tensor([2, 5, 9])
    """
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not all(isinstance(key, str) for key in keys):
        raise TypeError(f"keys is {shown(keys)}: expected a list of strings such as ['input_ids', 'labels']")
    if not keys:
        raise InputError("keys is empty: expected the columns that the embedding reads, such as ['input_ids']")
    active: set[int] = set()
    for index, example in enumerate(_examples(dataset)):
        if not isinstance(example, Mapping):
            raise InputError(
                f"dataset has {shown(example)} as example {index}: expected mappings such as {{'input_ids': [5, 2]}}"
            )
        for key in keys:
            if example.get(key) is not None:
                active.update(_integers(example[key], key, index))
    active.discard(-100)
    if not active:
        raise InputError(f"the dataset has no token under the keys {', '.join(map(repr, keys))}; tokenize it first")
    if min(active) < 0:
        raise InputError(f"the dataset has the negative token id {min(active)}")
    return torch.tensor(sorted(active), dtype=torch.int64)


def _examples(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, (str, bytes, Mapping)):
        raise TypeError(f"dataset is {shown(dataset)}: expected examples; put a single one into a list")
    if hasattr(type(dataset), "__iter__"):
        return iter(dataset)
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        # A map-style Dataset need not raise IndexError at its end, which iter() would wait for.
        return (dataset[index] for index in range(len(dataset)))
    raise TypeError(f"dataset is {shown(dataset)}: expected examples, each a mapping such as {{'input_ids': [5, 2]}}")


def _integers(values: Any, key: str, index: int) -> list[int]:
    try:
        # A copy of an array: torch warns of one that is read-only, as a dataset in Arrow gives them.
        ids = torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError):
        ids = None
    if ids is None or (ids.numel() and (ids.dtype == torch.bool or ids.dtype.is_floating_point)):
        raise InputError(
            f"dataset has {shown(values)} under {key!r} of example {index}: expected token ids; tokenize it first"
        )
    integers: list[int] = ids.reshape(-1).tolist()
    return integers
