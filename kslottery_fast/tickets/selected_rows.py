"""Rows that a selector chose, and their file."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from typing_extensions import Self

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.options import Selector, TicketTable
from kslottery_fast.base.ticket_ids import (
    ROWS_FORMAT,
    check_digest,
    check_format,
    check_other_size,
    digest_of,
    integers_of,
    is_int,
    table_of,
    texts_of,
)
from kslottery_fast.base.tokenizer import Tokenizer

from .texts import left_out, of_rows, tallest, token_texts

_UNITS: dict[Selector, str] = {
    "ks": "D * d",
    "l2": "L2 shift",
    "gradient": "sum of gradient norms",
    "frequency": "number of occurrences",
    "contribution": "contribution",
}
_KEYS = {"format", "selected_by", "vocab_size", "token_ids", "values", "cumulative", "digest"}


@dataclass(frozen=True, eq=False, repr=False)
class SelectedRows:
    """Rows that a selector chose, best first, with the evidence for each. They are taken wherever token ids are.

    Attributes
    ----------
    token_ids : torch.Tensor
        int64 [k].
    values : torch.Tensor
        [k], what the rows were ranked by: h = d * D, the L2 norm of the change, the sum of gradient norms, the number
        of occurrences, or the contribution in nats per target token.
    selected_by : {"ks", "l2", "gradient", "frequency", "contribution"}
        The selector.
    vocab_size : int
        The number of rows of the table.
    cumulative : torch.Tensor, optional
        float64 [k], the share of the loss's fall that the first 1, 2, ... rows account for. None without contributions.
    token_texts : tuple of str, optional
        The text of each token, see :meth:`with_texts`.
    table : {"input", "output", "shared"}
        Which table the rows are of, as for :class:`kslottery_fast.Tickets`.
    vocab_size_after : int, optional
        The number of rows of the tuned table, if that is another one. The rows are of those that both tables have.

    Examples
    --------
    >>> rows = SelectedRows(torch.tensor([7, 3]), torch.tensor([40, 12]), "frequency", 10)
    >>> rows, list(rows)
    (SelectedRows(2 of 10 rows, selected_by='frequency'), [7, 3])
    """

    token_ids: torch.Tensor
    values: torch.Tensor
    selected_by: Selector
    vocab_size: int
    cumulative: torch.Tensor | None = None
    token_texts: tuple[str, ...] | None = None
    table: TicketTable = "input"
    vocab_size_after: int | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.token_ids.tolist())

    def __repr__(self) -> str:
        covers = "" if self.cumulative is None or not len(self) else f", {self.cumulative[-1]:.0%} of the loss's fall"
        table = "" if self.table == "input" else f", table={self.table!r}"
        return f"SelectedRows({len(self)} of {self.vocab_size:,} rows{covers}, selected_by={self.selected_by!r}{table})"

    def summary(self) -> str:
        """Return one line for a log or a terminal.

        Examples
        --------
        >>> SelectedRows(torch.tensor([7, 3]), torch.tensor([40, 12]), "frequency", 10).summary()
        '2 of 10 rows: the largest number of occurrences'
        """
        covers = "" if self.cumulative is None or not len(self) else f", {self.cumulative[-1]:.0%} of the loss's fall"
        tested = self.vocab_size if self.vocab_size_after is None else min(self.vocab_size, self.vocab_size_after)
        return f"{len(self):,} of {tested:,} {of_rows(self)}{covers}: the largest {self.unit}{left_out(self)}"

    @property
    def unit(self) -> str:
        """What ``values`` are, in words."""
        return _UNITS[self.selected_by]

    def with_texts(self, tokenizer: Tokenizer) -> Self:
        """Return the same rows with the text of each token, as :meth:`kslottery_fast.Tickets.with_texts` does.

        Parameters
        ----------
        tokenizer : transformers tokenizer
            The tokenizer of the model.

        Raises
        ------
        InputError
            The tokenizer belongs to another model.
        TypeError
            It is not a tokenizer.
        """
        return replace(
            self,
            token_texts=tuple(token_texts(tokenizer, self.token_ids, tallest(self.vocab_size, self.vocab_size_after))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file as a dict, which JSON can hold.

        Returns
        -------
        dict
            ``format`` is ``"kslottery-rows/1"``. The attributes have their names, except ``token_texts``, which is
            ``tokens`` and only there if known. ``table`` is left out if it is "input", and ``vocab_size_after`` if it
            is None. ``digest`` is that of a ticket file.

        Examples
        --------
        >>> SelectedRows(torch.tensor([7]), torch.tensor([40]), "frequency", 10).to_dict()["values"]
        [40]
        """
        content = {
            "format": ROWS_FORMAT,
            "selected_by": self.selected_by,
            "vocab_size": self.vocab_size,
            "token_ids": self.token_ids.tolist(),
            "values": self.values.tolist(),
            "cumulative": None if self.cumulative is None else self.cumulative.tolist(),
        }
        if self.table != "input":  # so that files of the input embedding stay as they were
            content["table"] = self.table
        if self.vocab_size_after is not None:
            content["vocab_size_after"] = self.vocab_size_after
        if self.token_texts is not None:
            content["tokens"] = list(self.token_texts)
        return {**content, "digest": digest_of(content)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all. It is taken wherever the path of a ticket file is.

        Parameters
        ----------
        path : str or path
            The file.

        Examples
        --------
        >>> import tempfile
        >>> rows = SelectedRows(torch.tensor([7, 3]), torch.tensor([40, 12]), "frequency", 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows.save(f"{folder}/rows.json")
        ...     SelectedRows.load(f"{folder}/rows.json")
        SelectedRows(2 of 10 rows, selected_by='frequency')
        """
        write_json(check_path(path, "path"), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or path
            The file.

        Raises
        ------
        InputError
            The file is missing, was changed, or holds something else.
        TypeError
            ``path`` is not a path.
        """
        data = read_json(check_path(path, "path"))
        try:
            return cls._of_content(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _of_content(cls, data: Mapping[str, Any]) -> Self:
        check_format(data, (ROWS_FORMAT,))
        if missing := sorted(_KEYS - set(data)):
            raise InputError(f"missing {', '.join(missing)}")
        check_digest(data)
        ids, texts = integers_of(data, "token_ids"), texts_of(data)
        if data["selected_by"] not in get_args(Selector):
            raise InputError(f"selected_by is {json.dumps(data['selected_by'])}: expected one of {get_args(Selector)}")
        if not is_int(data["vocab_size"]):
            raise InputError(f"vocab_size is {data['vocab_size']!r}: expected an integer")
        other = data.get("vocab_size_after")
        check_other_size(other, data["vocab_size"])
        values, shares = _numbers(data, "values"), None if data["cumulative"] is None else _numbers(data, "cumulative")
        for name, each in (("values", values), ("cumulative", shares), ("tokens", texts)):
            if each is not None and len(each) != len(ids):
                raise InputError(f"{name} has {len(each)} entries, token_ids {len(ids)}: expected one for each row")
        return cls(ids, values, data["selected_by"], data["vocab_size"], shares, texts, table_of(data), other)


def _numbers(data: Mapping[str, Any], key: str) -> torch.Tensor:
    """The list of numbers under a key, int64 if they are integers, otherwise float64."""
    values = data[key]
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise InputError(f"{key} must be a list of numbers")
    try:
        return torch.tensor(values, dtype=torch.int64 if all(map(is_int, values)) else torch.float64)
    except (ValueError, OverflowError, RuntimeError):  # which of them depends on torch
        raise InputError(f"{key} must be a list of numbers: floats, or integers of 64 bits") from None


def largest_shifts(shifts: torch.Tensor, k: int, table: TicketTable, heights: tuple[int, int]) -> SelectedRows:
    """Select the k rows of largest L2 shift. Of equal ones the lower token id comes first.

    Parameters
    ----------
    shifts : Tensor
        float64, the L2 norm of the change of each row that both tables have. Rows that did not move are never selected.
    k : int
        How many rows.
    table : {"input", "output", "shared"}
        Which table they are of.
    heights : (int, int)
        The numbers of rows of both tables.

    Returns
    -------
    SelectedRows

    Warns
    -----
    RuntimeWarning
        Fewer than k rows moved.
    """
    values, ids = torch.sort(shifts, descending=True, stable=True)
    moved = int((values > 0).sum())
    if moved < k:
        warn_caller(f"only {moved} rows moved, k asked for {k}")
    k = min(k, moved)
    V, other = heights
    fields: dict[str, Any] = {"table": table, "vocab_size_after": None if other == V else other}
    return SelectedRows(ids[:k].clone(), values[:k].clone(), "l2", V, **fields)
