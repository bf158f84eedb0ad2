"""What became of each row between two tables: the result of a comparison."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.arguments import check_choice, check_integer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction, ResolvedMethod, RowStatus, TicketTable
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.ks.significance import log_pvalues, pvalues

from .class_summary import ClassSummary, summarize_classes
from .comparison_csv import csv_text
from .comparison_words import summary_lines
from .row_differences import RowDifferences
from .select import select_tickets
from .selected_rows import SelectedRows, largest_shifts
from .tickets import Tickets
from .token_classes import BYTE, NO_TOKEN, OTHER, SPECIAL, WHITE_SPACE, TokenClasses, token_classes

FORMAT = "kslottery-comparison/1"
STATUSES: tuple[RowStatus, ...] = get_args(RowStatus)
_MEASURED = {"d": "statistic", "l2": "l2", "relative_l2": "relative_l2", "cosine": "cosine"}
_NOT_WORDS = frozenset({SPECIAL, BYTE, NO_TOKEN, OTHER, WHITE_SPACE})


@dataclass(frozen=True, eq=False, repr=False)
class TableComparison:
    """What became of each row between two tables. :func:`compare_tables` and :func:`compare_checkpoints` make it.

    Each row has one status:

    - "identical": every number is equal. A training that moves only the rows of its tokens never touched it.
    - "reordered": the same numbers in another order, which D cannot see.
    - "moved": other numbers, but the shift is not significant.
    - "significant": p < alpha, after the correction if there is one.
    - "new", "gone": only the table after, or only the table before, has the row.

    Attributes
    ----------
    before, after : str
        What was compared.
    rows_before, rows_after, dimension : int
        The shapes of the tables. Both have the first n rows, where n is the smaller number of rows.
    table : {"input", "output", "shared"}
        Which table it is, as for :class:`kslottery_fast.Tickets`.
    alpha, method, correction
        The test that decided which rows are significant.
    threshold_count : int
        The smallest significant h = d * D, as for :class:`kslottery_fast.Tickets`.
    counts : Tensor
        int64 [n], the exact h = d * D of each row that both tables have.
    l2, relative_l2, cosine : Tensor
        float64 [n], the L2 norm of the difference, the same divided by the norm of the row before, and the cosine of
        the row before and the row after. What does not exist, because a row is all zeros, is NaN.
    status_codes : Tensor
        uint8 [V], where V is the larger number of rows. Indices into ``STATUSES``, which is the list above.
    tokens : TokenClasses, optional
        The text and the class of each of the V tokens, if a tokenizer was given.

    Examples
    --------
    >>> from kslottery_fast import compare_tables
    >>> before = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    >>> after = before.clone()
    >>> after[5], after[6], after[7] = before[5] + 3, before[6] + 0.01, before[7].flip(0)
    >>> found = compare_tables(before, after)
    >>> found
    TableComparison(97 identical, 1 reordered, 1 moved, 1 significant)
    >>> found.rows("significant").tolist(), [found.status(row) for row in (6, 7)]
    ([5], ['moved', 'reordered'])
    """

    before: str
    after: str
    rows_before: int
    rows_after: int
    dimension: int
    table: TicketTable
    alpha: float
    method: ResolvedMethod
    correction: Correction | None
    threshold_count: int
    counts: Tensor
    l2: Tensor
    relative_l2: Tensor
    cosine: Tensor
    status_codes: Tensor
    tokens: TokenClasses | None = None

    def __len__(self) -> int:
        return len(self.status_codes)

    def __repr__(self) -> str:
        found = ", ".join(f"{number:,} {name}" for name, number in self.numbers.items() if number)
        return f"TableComparison({found or 'no rows'})"

    @cached_property
    def statistic(self) -> Tensor:
        """D of each row that both tables have, float64 [n]."""
        return self.counts.to(torch.float64) / self.dimension

    @cached_property
    def pvalue(self) -> Tensor:
        """Two-sided p-value of each row that both tables have, float64 [n], without correction."""
        return pvalues(self.counts, self.dimension, self.method)

    @cached_property
    def log_pvalue(self) -> Tensor:
        """Natural logarithm of :attr:`pvalue`, exact even if that underflows to 0."""
        return log_pvalues(self.counts, self.dimension, self.method)

    @cached_property
    def numbers(self) -> dict[RowStatus, int]:
        """How many rows have each status."""
        found = torch.bincount(self.status_codes.long(), minlength=len(STATUSES)).tolist()
        return dict(zip(STATUSES, found, strict=True))

    @property
    def changed(self) -> int:
        """The number of rows that both tables have and that are not identical."""
        return len(self.counts) - self.numbers["identical"]

    def status(self, token_id: int) -> RowStatus:
        """Return the status of one row.

        Parameters
        ----------
        token_id : int

        Returns
        -------
        str

        Raises
        ------
        InputError
            Neither table has this row.
        TypeError
            The token id is not an integer.
        """
        if check_integer(token_id, "token_id", 0) >= len(self):
            raise InputError(f"token_id is {token_id}: expected less than {len(self)}, the number of rows")
        return STATUSES[int(self.status_codes[token_id])]

    def statuses(self) -> list[RowStatus]:
        """Return the status of each of the V rows.

        Returns
        -------
        list of str
        """
        return [STATUSES[code] for code in self.status_codes.tolist()]

    def rows(self, status: RowStatus) -> Tensor:
        """Return the rows with a status.

        Parameters
        ----------
        status : {"identical", "reordered", "moved", "significant", "new", "gone"}

        Returns
        -------
        Tensor
            int64 [k], ascending token ids.

        Raises
        ------
        InputError
            The status is unknown.
        """
        check_choice(status, STATUSES, "status")
        return torch.nonzero(self.status_codes == STATUSES.index(status))[:, 0]

    def tickets(self, top_k: int | None = None) -> Tickets:
        """Return what :func:`kslottery_fast.ks_select` selects in these tables with the same options.

        Parameters
        ----------
        top_k : int, optional
            Take the k rows of largest D, whatever their p-value.

        Returns
        -------
        Tickets

        Raises
        ------
        InputError, TypeError
            ``top_k`` is not a positive integer.

        Warns
        -----
        RuntimeWarning
            No row is selected, or fewer than ``top_k``.
        """
        correction = self.correction if top_k is None else None
        identical = self.status_codes[: len(self.counts)] == STATUSES.index("identical")
        tables = CountedTables(self.counts, self.dimension, (self.before, self.after), identical)
        heights = self.rows_before, self.rows_after
        sizes = None if heights[0] == heights[1] else heights
        return select_tickets(tables, self.alpha, self.method, correction, top_k, None, self.table, sizes)

    def l2_rows(self, k: int) -> SelectedRows:
        """Return the rows that moved furthest in the L2 norm.

        Parameters
        ----------
        k : int
            How many rows. Rows that did not move are never selected.

        Returns
        -------
        SelectedRows

        Raises
        ------
        InputError, TypeError
            ``k`` is not a positive integer.

        Warns
        -----
        RuntimeWarning
            Fewer than k rows moved.
        """
        return largest_shifts(self.l2, check_integer(k, "k", 1), self.table, (self.rows_before, self.rows_after))

    def with_tokens(self, tokenizer: Tokenizer) -> Self:
        """Return the same comparison with the text and the class of each token.

        Parameters
        ----------
        tokenizer : transformers tokenizer
            The tokenizer of the model.

        Returns
        -------
        TableComparison

        Raises
        ------
        InputError
            The tokenizer belongs to another model.
        TypeError
            It is not a tokenizer.
        """
        return replace(self, tokens=token_classes(tokenizer, len(self)))

    def by_class(self) -> list[ClassSummary]:
        """Return what became of each class of tokens, those with most changed rows first. Empty without a tokenizer.

        Returns
        -------
        list of ClassSummary
        """
        return self._summaries([] if self.tokens is None else self.tokens.classes)

    def by_leading_space(self) -> list[ClassSummary]:
        """Return what became of tokens with and without a leading space. Empty without a tokenizer.

        Special tokens, bytes and white space count in neither.

        Returns
        -------
        list of ClassSummary
        """
        if self.tokens is None:
            return []
        flags = zip(self.tokens.classes, self.tokens.leading_space.tolist(), strict=True)
        return self._summaries(
            [None if name in _NOT_WORDS else "leading space" if space else "no leading space" for name, space in flags]
        )

    def _summaries(self, names: Any) -> list[ClassSummary]:
        numbers = {name: getattr(self, attribute) for name, attribute in _MEASURED.items()}
        return summarize_classes(names, numbers, self.status_codes, STATUSES) if names else []

    def summary(self) -> str:
        """Return a few lines for a log or a terminal: what became of the rows, and what that says about the training.

        Returns
        -------
        str
        """
        return "\n".join(summary_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a dict, which JSON can hold, of the format ``kslottery-comparison/1``.

        Returns
        -------
        dict
            The attributes that are not tensors have their names. ``rows`` has the number of rows by status.
            ``changed`` has the medians of the rows that are not identical. ``classes`` and ``leading_space`` are there
            if a tokenizer was given. :meth:`to_csv` has the single rows.
        """
        names = ("before", "after", "rows_before", "rows_after", "dimension", "table", "alpha", "method", "correction")
        content = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*names, "threshold_count")},
            "rows": dict(self.numbers),
            "changed": {"rows": self.changed, **self.medians()},
        }
        if self.tokens is not None:
            content["classes"] = [asdict(each) for each in self.by_class()]
            content["leading_space"] = [asdict(each) for each in self.by_leading_space()]
        return content

    def medians(self) -> dict[str, float | None]:
        """Return the medians of D, L2 shift, relative L2 shift and cosine over the rows that are not identical.

        Returns
        -------
        dict
            ``median_d``, ``median_l2``, ``median_relative_l2`` and ``median_cosine``. None if no row changed.
        """
        changed = self.status_codes[: len(self.counts)] != STATUSES.index("identical")
        found: dict[str, float | None] = {}
        for name, attribute in _MEASURED.items():
            values = getattr(self, attribute)[changed]
            values = values[values.isfinite()]
            found[f"median_{name}"] = float(np.median(values.numpy())) if len(values) else None
        return found

    def to_csv(self) -> str:
        """Return all rows as CSV, by token id. What does not exist is an empty field.

        Returns
        -------
        str
            The columns are ``token_id``, ``token``, ``class`` and ``leading_space`` (if a tokenizer was given),
            ``status``, ``count``, ``statistic``, ``pvalue``, ``log_pvalue``, ``l2``, ``relative_l2`` and ``cosine``.
        """
        return csv_text(self)


class CountedTables:
    """Two tables of which only the differences are known. See :class:`kslottery_fast.ks.decision.Tables`."""

    def __init__(self, counts: Tensor, dimension: int, names: tuple[str, str], identical: Tensor) -> None:
        self.shape, self.names = (len(counts), dimension), names
        self._counts, self._identical = counts, identical

    def counts(self, threshold: int = 0) -> Tensor:
        """The counts h, int64 [n]."""
        return self._counts

    def reordered(self) -> Tensor:
        """The rows that hold the same values in another order, int64 [k], ascending."""
        return torch.nonzero((self._counts == 0) & ~self._identical)[:, 0]


def status_codes(measured: RowDifferences, significant: Tensor, rows_before: int, rows_after: int) -> Tensor:
    """The status of each row, uint8 [V], from what was measured of the n rows that both tables have.

    Parameters
    ----------
    measured : RowDifferences
        Of n rows.
    significant : Tensor
        int64 [k], the rows that are significant.
    rows_before, rows_after : int
        The numbers of rows of the tables.
    """
    only: RowStatus = "new" if rows_after > rows_before else "gone"
    codes = torch.full((max(rows_before, rows_after),), STATUSES.index(only), dtype=torch.uint8)
    shared = torch.where(measured.counts > 0, STATUSES.index("moved"), STATUSES.index("reordered"))
    shared[measured.identical] = STATUSES.index("identical")
    shared[significant] = STATUSES.index("significant")
    codes[: len(shared)] = shared.to(torch.uint8)
    return codes
