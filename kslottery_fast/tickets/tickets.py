"""Tickets: the rows of an embedding table that a KS test selects, and how they are selected."""

import operator
import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction, ResolvedMethod, SelectedBy, TicketTable

from . import subsets, ticket_fields
from .overlap import jaccard
from .presentation import TicketViews
from .ticket_hub import TicketHub


class Tickets(TicketViews, TicketHub):
    """The selected rows of a token table, with the evidence for each. :func:`kslottery_fast.ks_select` makes them.

    Tickets are a sequence of token ids: ``len(tickets)``, ``for token_id in tickets``, ``5 in tickets`` and
    ``tickets[0]`` work. A slice gives Tickets, and so does a mask of bools, such as ``tickets.statistic > 0.5``.
    ``a & b`` gives the tickets in both, ``a - b`` those of a that are not in b, and ``a | b`` those in either, where b
    may be the path of a ticket file. Tickets never change.

    Attributes
    ----------
    token_ids : Tensor
        int64 [k] on the CPU. The rows, sorted by falling statistic, then by rising id.
    counts : Tensor
        int64 [k]. The exact h = d * D of each row, in 1..d.
    vocab_size, dimension : int
        V and d of the table.
    alpha : float, optional
        The significance level that was asked for. With ``selected_by="top_k"`` it was not used.
    threshold_count : int
        The smallest significant h. ``d + 1`` means that no h would have been significant. With ``selected_by="top_k"``
        it is the smallest h that was selected.
    method : {"exact", "asymp", "paper"}
        How p-values were computed from counts.
    correction : {None, "bonferroni", "bh"}
        How the test was corrected for V tests.
    selected_by : {"alpha", "top_k"}
        What decided which rows are tickets.
    token_texts : tuple of str, optional
        The text of each token, if a tokenizer was given. See :meth:`with_texts`.
    table : {"input", "output", "shared"}
        Which table the rows are of: the input embedding, the output head, or, if the output head was asked for and both
        models are tied, the one table of both.
    vocab_size_after : int, optional
        The number of rows of the tuned table, if that is another one (``rows="shared"``). Only the rows that both
        tables have were compared and count as tests, :attr:`compared_rows` of them. The tickets are of both tables.
    statistic : Tensor
        float64 [k]. ``D = counts / dimension``.
    pvalue, log_pvalue : Tensor
        float64 [k]. The two-sided p-value of each row without correction, and its natural logarithm.
    threshold : float
        ``threshold_count / dimension``, the smallest significant D.

    Raises
    ------
    InputError
        The values do not fit together. The message names the attribute.

    Notes
    -----
    A part of tickets keeps the settings of its selection. So each of its rows passed that test, but other rows may have
    passed it too. With ``selected_by="top_k"`` the first n tickets are those of ``top_k=n``.

    In ``a & b`` and ``a - b`` all evidence is that of ``a``. In ``a | b`` a row that is in both keeps the evidence of
    ``a``. Each row of the union passed one and the same test in at least one of the two selections, so both must have
    been selected in the same table with the same settings; otherwise it is an InputError. The tickets in ``a & b`` may
    be of two tables: these tokens moved in both.

    A ticket file is a JSON object. :meth:`to_dict` returns its content.

    Examples
    --------
    >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
    >>> tickets = Tickets.from_counts([7, 3], [4, 4], **settings)
    >>> tickets
    Tickets(2 of 10 rows, d=4, alpha=0.05, method='exact', selected_by='alpha')
    >>> tickets.token_ids, tickets.statistic
    (tensor([3, 7]), tensor([1., 1.], dtype=torch.float64))
    >>> list(tickets), tickets[0], 7 in tickets, len(tickets[1:])
    ([3, 7], 3, True, 1)
    >>> other = Tickets.from_counts([7, 9], [4, 4], **settings)
    >>> list(tickets & other), list(tickets - other), list(tickets | other)
    ([7], [3], [3, 7, 9])
    """

    @classmethod
    def from_counts(
        cls,
        token_ids: Sequence[int] | np.ndarray | Tensor,
        counts: Sequence[int] | np.ndarray | Tensor,
        *,
        vocab_size: int,
        dimension: int,
        threshold_count: int,
        alpha: float | None,
        method: ResolvedMethod = "exact",
        correction: Correction | None = None,
        selected_by: SelectedBy = "alpha",
        token_texts: Sequence[str] | None = None,
        table: TicketTable = "input",
        vocab_size_after: int | None = None,
    ) -> Self:
        """Make tickets from ids and counts in any order.

        Parameters
        ----------
        token_ids : sequence, array or tensor of int
            k token ids.
        counts : sequence, array or tensor of int
            h = d * D of each.
        vocab_size, dimension, threshold_count, alpha, method, correction, selected_by
            The attributes of that name.
        token_texts : sequence of str, optional
            The text of each token, in the order of ``token_ids``.
        table : {"input", "output", "shared"}
            The attribute of that name.
        vocab_size_after : int, optional
            The attribute of that name.

        Returns
        -------
        Tickets

        Raises
        ------
        InputError
            Ids or counts are not integers, or values do not fit together. The message names the attribute.
        TypeError
            Ids or counts are not numbers.

        Examples
        --------
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 3, "alpha": None}
        >>> Tickets.from_counts([7, 3], [3, 4], **settings, selected_by="top_k").token_ids
        tensor([3, 7])
        """
        ids, h = ticket_fields.integers(token_ids, "token_ids"), ticket_fields.integers(counts, "counts")
        texts = None if token_texts is None else ticket_fields.tuple_of_texts(token_texts)
        if ids.shape == h.shape and ids.ndim == 1:  # else the constructor says what is wrong
            order = subsets.by_falling_count(ids, h)
            ids, h = ids[order], h[order]
            if texts is not None and len(texts) == len(ids):
                texts = tuple(texts[place] for place in order.tolist())
        numbers = {
            "vocab_size": vocab_size,
            "dimension": dimension,
            "threshold_count": threshold_count,
            "alpha": alpha,
            "vocab_size_after": vocab_size_after,
        }
        # A file holds numbers of Python, and these may come from numpy.
        plain: dict[str, Any] = {k: v.item() if isinstance(v, np.generic) else v for k, v in numbers.items()}
        options: dict[str, Any] = {"method": method, "correction": correction, "selected_by": selected_by}
        return cls(ids, h, token_texts=texts, table=table, **options, **plain)

    @classmethod
    def _of_selection(cls, **fields: Any) -> Self:
        """From all attributes but ``token_texts``, as :func:`select_tickets` found them, which fit by construction.

        Checking them would take as long as a GPU takes to find them.
        """
        tickets = object.__new__(cls)
        tickets.__dict__.update(fields, token_texts=None)
        return tickets

    def __contains__(self, token_id: object) -> bool:
        try:
            wanted = operator.index(token_id)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"token_id is {shown(token_id)}: expected a token id, an int") from None
        return 0 <= wanted < self.vocab_size and bool((self.token_ids == wanted).any())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice | Tensor | np.ndarray | Sequence[bool]) -> Self: ...
    def __getitem__(self, index: int | slice | Tensor | np.ndarray | Sequence[bool]) -> "int | Self":
        place = subsets.place_of(index, len(self))
        if place is not None:
            return int(self.token_ids[place])
        return subsets.subset(self, subsets.places_of(index, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The token ids for numpy, int64 also if there are none. A copy, because tickets never change."""
        if copy is False:
            raise ValueError("copy is False, but an array of tickets is always a copy of their token ids")
        return np.array(self.token_ids.numpy(), dtype=dtype)

    def __and__(self, other: Self | str | os.PathLike[str]) -> Self:
        """The tickets that are also in ``other``, with the evidence of ``self``."""
        return self._part(torch.isin(self.token_ids, self._comparable(other).token_ids))

    def __sub__(self, other: Self | str | os.PathLike[str]) -> Self:
        """The tickets that are not in ``other``, with the evidence of ``self``."""
        return self._part(~torch.isin(self.token_ids, self._comparable(other).token_ids))

    def __or__(self, other: Self | str | os.PathLike[str]) -> Self:
        """The tickets in either, with the evidence of ``self`` if a row is in both."""
        return subsets.union(self, self._comparable(other))

    def _part(self, mask: Tensor) -> Self:
        return subsets.subset(self, torch.nonzero(mask)[:, 0])

    def _comparable(self, other: Any) -> "Tickets":
        """Other tickets of the same vocabulary, or those of a ticket file."""
        if isinstance(other, (str, os.PathLike)):
            try:
                other = Tickets.load(other)
            except InputError as error:
                raise InputError(f"other: {error}") from None
        if not isinstance(other, Tickets):
            raise TypeError(f"other is {shown(other)}: expected Tickets, or the path of a ticket file")
        subsets.check_same_vocabulary(self, other)
        return other

    def mask(self) -> Tensor:
        """Return a bool tensor [V] that is True at the tickets' rows.

        Returns
        -------
        Tensor
            bool [V].

        Examples
        --------
        >>> settings = {"vocab_size": 4, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> Tickets.from_counts([3], [4], **settings).mask()
        tensor([False, False, False,  True])
        """
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self.token_ids] = True
        return mask

    def jaccard(self, other: Self | str | os.PathLike[str]) -> float:
        """Return the overlap with other tickets of the same vocabulary, ``|A and B| / |A or B|``.

        Parameters
        ----------
        other : Tickets, or path of a ticket file

        Returns
        -------
        float
            0 to 1. It is 1 if both are empty.

        Raises
        ------
        InputError
            The vocabularies differ, or the file is not a ticket file.
        TypeError
            ``other`` is neither Tickets nor a path.

        Examples
        --------
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([3, 7], [4, 4], **settings)
        >>> tickets.jaccard(tickets[:1])
        0.5
        """
        return jaccard(set(self), set(self._comparable(other)))
