"""Winning tickets: the rows of an embedding table that a KS test selects, and how they are selected."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.ks.significance import log_pvalues, pvalues

from . import ticket_file


@dataclass(frozen=True, eq=False, repr=False)
class Tickets:
    """The selected rows of an embedding table, with the evidence for each. :func:`ks_select` makes them.

    Attributes
    ----------
    token_ids : int64 tensor [k], on the CPU
        The rows, sorted by falling statistic, then rising id.
    counts : int64 tensor [k]
        h = d * D of each row, exact, in 1..d.
    vocab_size, dimension : int
        V and d of the table.
    alpha : float or None
        The significance level that was asked for. With ``selected_by="top_k"`` it played no part.
    threshold_count : int
        The smallest significant h. ``d + 1``: no h would have been. With top_k the smallest h selected.
    method : {"exact", "asymp", "paper"}
        How p-values come from counts (``"auto"`` is resolved).
    correction : {None, "bonferroni", "bh"}
        What alpha was compared with: the p-value, or the p-value adjusted for V tests.
    selected_by : {"alpha", "top_k"}
    token_texts : tuple of str, or None
        What :meth:`tokens` said when the tickets were saved with a tokenizer.
    statistic : float64 tensor [k]
        ``D = counts / dimension``.
    pvalue, log_pvalue : float64 tensor [k]
        Two-sided p-value of each row by ``method``, without correction, and its natural logarithm.
    threshold : float
        ``threshold_count / dimension``, the smallest significant D.

    Notes
    -----
    File format, one JSON object: ``format`` (``"kslottery-tickets/1"``), the attributes above under their
    names but for ``token_texts`` (key ``tokens``, only if known) and ``log_pvalue``, and ``digest``:
    "sha256:" and the SHA-256 of the object without ``digest``, as UTF-8 JSON with sorted keys, without
    spaces, characters beyond ASCII escaped.

    Raises
    ------
    InputError
        Values that do not fit together; the message names the attribute.

    Examples
    --------
    >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
    >>> tickets = Tickets.from_counts([7, 3], [4, 4], **settings)
    >>> tickets
    Tickets(2 of 10 rows, d=4, alpha=0.05, method='exact', selected_by='alpha')
    >>> tickets.token_ids, tickets.statistic
    (tensor([3, 7]), tensor([1., 1.], dtype=torch.float64))
    """

    token_ids: Tensor
    counts: Tensor
    vocab_size: int
    dimension: int
    threshold_count: int
    alpha: float | None
    method: str = "exact"
    correction: str | None = None
    selected_by: str = "alpha"
    token_texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        ticket_file.check_fields(vars(self))

    @classmethod
    def from_counts(cls, token_ids: Any, counts: Any, **fields: Any) -> Tickets:
        """Tickets from ids and counts in any order (lists, arrays, tensors) and the other attributes."""
        ids, h = (torch.as_tensor(v, dtype=torch.int64).cpu() for v in (token_ids, counts))
        if ids.shape == h.shape and ids.ndim == 1:
            order = torch.argsort(ids)
            order = order[torch.sort(h[order], descending=True, stable=True).indices]
            ids, h = ids[order], h[order]
        return cls(token_ids=ids, counts=h, **fields)

    @classmethod
    def _of_selection(cls, **fields: Any) -> Tickets:
        """From all attributes but ``token_texts``, as :func:`select_tickets` found them, which fit by construction.

        Checking them would take as long as a GPU takes to find them.
        """
        tickets = object.__new__(cls)
        tickets.__dict__.update(fields, token_texts=None)
        return tickets

    @cached_property
    def statistic(self) -> Tensor:
        """D of each ticket, float64 [k]."""
        return self.counts.to(torch.float64) / self.dimension

    @cached_property
    def pvalue(self) -> Tensor:
        """Two-sided p-value of each ticket, float64 [k], without correction."""
        return pvalues(self.counts, self.dimension, self.method)

    @cached_property
    def log_pvalue(self) -> Tensor:
        """Natural logarithm of :attr:`pvalue`, right where that underflows."""
        return log_pvalues(self.counts, self.dimension, self.method)

    @property
    def threshold(self) -> float:
        """The smallest significant D; above 1 where none would be."""
        return self.threshold_count / self.dimension

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return (
            f"Tickets({len(self)} of {self.vocab_size} rows, d={self.dimension}, alpha={self.alpha}, "
            f"method={self.method!r}, selected_by={self.selected_by!r})"
        )

    def __eq__(self, other: object) -> bool:
        """Same rows, evidence and settings; token texts are no part of it."""
        return (
            isinstance(other, Tickets)
            and self._settings() == other._settings()
            and torch.equal(self.token_ids, other.token_ids)
            and torch.equal(self.counts, other.counts)
        )

    def __hash__(self) -> int:
        return hash((self._settings(), self.token_ids.numpy().tobytes(), self.counts.numpy().tobytes()))

    def _settings(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in ticket_file.SETTINGS)

    def _attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ticket_file.ATTRIBUTES}

    def summary(self) -> str:
        """One line for a log or a terminal.

        Examples
        --------
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> print(Tickets.from_counts([3], [4], **settings).summary())
        1 ticket of 10 rows (10 %): D >= 1.0000 (4/4), alpha 0.05, exact KS test
        """
        share = f" ({100 * len(self) / self.vocab_size:.3g} %)" if self.vocab_size else ""
        rows = f"{len(self):,} ticket{'' if len(self) == 1 else 's'} of {self.vocab_size:,} rows{share}"
        bound = f"D >= {self.threshold:.4f} ({self.threshold_count}/{self.dimension})"
        if self.selected_by == "top_k":
            return f"{rows}: {bound}, the largest D whatever their p-value, {self.method} KS test"
        corrected = {None: "", "bonferroni": ", Bonferroni", "bh": ", Benjamini-Hochberg"}[self.correction]
        return f"{rows}: {bound}, alpha {self.alpha:g}{corrected}, {self.method} KS test"

    def mask(self) -> Tensor:
        """Bool [V], True at the tickets' rows."""
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self.token_ids] = True
        return mask

    def jaccard(self, other: Tickets) -> float:
        """Overlap with other tickets of the same table, ``|A and B| / |A or B|``; 1 if both are empty.

        Raises
        ------
        InputError : the vocabularies have different sizes.
        """
        if self.vocab_size != other.vocab_size:
            raise InputError(
                f"other is of a table of {other.vocab_size} rows, these tickets of one of {self.vocab_size}: "
                "their token ids do not mean the same tokens"
            )
        ours, theirs = set(self.token_ids.tolist()), set(other.token_ids.tolist())
        return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0

    def tokens(self, tokenizer: Any) -> list[str]:
        """The text of each ticket, in their order, a leading space kept.

        A piece that is not text by itself (part of a UTF-8 character) is shown in the tokenizer's own
        spelling.

        Parameters
        ----------
        tokenizer : transformers tokenizer
            The one of the model: the table may have more rows (padding) than it has tokens, never fewer.

        Raises
        ------
        InputError : the tokenizer belongs to another model.
        """
        # Tokens added without resizing the table lie beyond it; the tokenizer is the model's all the same.
        size = len(tokenizer)
        if getattr(tokenizer, "vocab_size", size) > self.vocab_size:
            raise InputError(
                f"the tokenizer has {size} tokens, the table {self.vocab_size} rows: it is another model's"
            )
        outside = [token for token in self.token_ids.tolist() if token >= size]
        if outside:
            raise InputError(
                f"token id {outside[0]} is a ticket, the tokenizer ends at {size - 1}: it is another model's"
            )
        return [token_text(tokenizer, token) for token in self.token_ids.tolist()]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer whose tokens have other texts than those that the tickets were saved with.

        Tickets without texts are taken on trust, but for what :meth:`tokens` refuses.

        Raises
        ------
        InputError : the tokenizer belongs to another model.
        """
        for token, ours, theirs in zip(
            self.token_ids.tolist(), self.token_texts or (), self.tokens(tokenizer), strict=False
        ):
            if ours != theirs:
                raise InputError(
                    f"the tickets are of another tokenizer: token {token} is {ours!r} in the tickets and {theirs!r} in "
                    "the tokenizer; select tickets for this model"
                )

    def save(self, path: str | os.PathLike[str], tokenizer: Any = None) -> None:
        """Write the tickets as JSON, whole or not at all; with a tokenizer the text of each too."""
        texts = self.token_texts if tokenizer is None else tuple(self.tokens(tokenizer))
        content = ticket_file.content_of(self._attributes(), texts)
        write_json(path, {**content, "digest": ticket_file.digest_of(content)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tickets:
        """Read what :meth:`save` wrote, and check all of it.

        Raises
        ------
        InputError : no such file; not a tickets file; a field that is missing, of a wrong type or out of range;
            fields that contradict each other; a digest that says the file was changed. The message names file and
            field.
        """
        data = read_json(path)
        try:
            tickets = cls(**ticket_file.fields_of(data))
            ticket_file.check_derived(data, tickets._attributes())
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return tickets
