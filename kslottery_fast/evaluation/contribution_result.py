"""What each moved row accounts for, and how many rows are enough."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from typing_extensions import Self

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.content import check_tensors, checked_content
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors
from kslottery_fast.rows.token_ids import TokenIds, check_token_ids

from .checks import check_share
from .quadrature import Rule
from .words import counted

_KIND = "kslottery-contributions"
_FORMS = {
    "token_ids": "int k",
    "contribution": "float k",
    "standard_error": "float k",
    "points": "float n",
    "slopes": "float n",
}
_TENSORS = tuple(_FORMS)
_FACTS = ("vocab_size", "rule", "examples", "loss_before", "loss_after")
_SHARES = (0.5, 0.8, 0.9, 0.95)  # that a summary names


@dataclass(frozen=True, eq=False, repr=False)
class RowContributions:
    """The share of the loss's fall that each row accounts for. :func:`kslottery_fast.row_contributions` makes it.

    Attributes
    ----------
    token_ids : torch.Tensor
        int64 [k] on the CPU, ascending: the rows that moved. All other rows contribute 0.
    contribution : torch.Tensor
        float64 [k]. The fall of the loss that the row accounts for, in nats per target token. It is negative for a row
        whose change raises the loss.
    standard_error : torch.Tensor
        float64 [k]. How far a contribution would scatter with other examples of the same kind. It is NaN if a point of
        the path had a single batch.
    vocab_size : int
        V, the number of rows of the table.
    rule : {"gauss", "gauss-squared", "midpoint"}
        The quadrature rule.
    points : torch.Tensor
        float64 [n]. Where the path was sampled: 0 is the table before, 1 the table after.
    slopes : torch.Tensor
        float64 [n]. How steeply the loss falls along the path at each point, in nats per target token.
    examples : int
        The number of examples with at least one target token.
    loss_before, loss_after : float, optional
        The mean loss over all examples with the rows before and after. None if they were not measured.

    Examples
    --------
    >>> found = RowContributions(
    ...     torch.tensor([3, 5, 8]), torch.tensor([0.2, 1.8, -0.1]).double(), torch.zeros(3).double(), 10, "gauss",
    ...     torch.tensor([0.5]).double(), torch.tensor([1.9]).double(), 40, 3.5, 1.5,
    ... )
    >>> found
    RowContributions(3 rows account for 1.900 of a fall of 2.000 nats per token)
    >>> found.ranked.tolist(), found.enough(0.9).tolist()
    ([5, 3, 8], [5])
    >>> found.cumulative.tolist()[-1]
    1.0
    >>> print(found.summary())
    The loss goes from 3.500 to 1.500, a fall of 2.000 nats per token, measured on 40 examples.
    The contributions of 3 rows sum to 1.900 (gauss, 1 point). The difference of 0.100 is the error of the quadrature
    and of dealing out the examples.
    The rows with negative contributions sum to -0.100.
    The fewest rows that account for a share of the sum: 50%: 1 row, 80%: 1 row, 90%: 1 row, 95%: 2 rows.
    """

    token_ids: torch.Tensor
    contribution: torch.Tensor
    standard_error: torch.Tensor
    vocab_size: int
    rule: Rule
    points: torch.Tensor
    slopes: torch.Tensor
    examples: int
    loss_before: float | None = None
    loss_after: float | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        fall = "" if self.fall is None else f" of a fall of {self.fall:.3f}"
        return f"RowContributions({counted(len(self), 'row')} account for {self.total:.3f}{fall} nats per token)"

    @property
    def total(self) -> float:
        """The sum of all contributions, an estimate of :attr:`fall`."""
        return float(self.contribution.sum())

    @property
    def fall(self) -> float | None:
        """The measured fall of the loss, ``loss_before - loss_after``. None if it was not measured."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_before - self.loss_after

    @property
    def error(self) -> float | None:
        """``fall - total``: what the quadrature and the dealing out of examples missed. None without a fall."""
        return None if self.fall is None else self.fall - self.total

    @cached_property
    def order(self) -> torch.Tensor:
        """int64 [k], indices into the rows by falling contribution. Of equal rows the lower token id comes first."""
        return torch.sort(self.contribution, descending=True, stable=True).indices

    @property
    def ranked(self) -> torch.Tensor:
        """int64 [k], the token ids by falling contribution."""
        return self.token_ids[self.order]

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """float64 [k], the share of the sum that the first 1, 2, ... rows of :attr:`ranked` account for.

        It exceeds 1 before the rows with negative contributions come.

        Raises
        ------
        InputError
            The contributions do not sum to a fall of the loss.
        """
        return self.contribution[self.order].cumsum(0) / self._positive_total()

    def enough(self, share: float = 0.95) -> torch.Tensor:
        """Return the fewest rows that account for a share of the sum of all contributions.

        Parameters
        ----------
        share : float
            Strictly between 0 and 1.

        Returns
        -------
        torch.Tensor
            int64 token ids, by falling contribution. ``len`` gives their number.

        Raises
        ------
        InputError
            ``share`` is out of range, or the contributions do not sum to a fall of the loss.
        TypeError
            ``share`` is not a number.

        Examples
        --------
        >>> numbers = {name: torch.zeros(1).double() for name in ("standard_error", "points", "slopes")}
        >>> some = {"vocab_size": 9, "rule": "gauss", "examples": 1}
        >>> ids, values = torch.tensor([2, 4, 6]), torch.tensor([0.2, 0.5, 0.3]).double()
        >>> RowContributions(ids, values, **numbers, **some).enough(0.75)
        tensor([4, 6])
        """
        wanted = check_share(share, "share")
        reached = (self.cumulative >= wanted).nonzero()
        # The last sum is 1 but for rounding.
        return self.ranked[: int(reached[0]) + 1 if len(reached) else len(self)]

    def share(self, token_ids: TokenIds) -> float:
        """Return the share of the sum of all contributions that some rows account for.

        Parameters
        ----------
        token_ids : TokenIds
            Token ids, Tickets, or the path of a ticket file. Rows that did not move account for nothing.

        Returns
        -------
        float
            It may be negative, or exceed 1.

        Raises
        ------
        InputError
            The token ids are empty or out of range, or the contributions do not sum to a fall of the loss.
        TypeError
            ``token_ids`` is of another type.

        Examples
        --------
        >>> numbers = {name: torch.zeros(1).double() for name in ("standard_error", "points", "slopes")}
        >>> some = {"vocab_size": 9, "rule": "gauss", "examples": 1}
        >>> ids, values = torch.tensor([2, 4, 6]), torch.tensor([0.25, 0.5, 0.25]).double()
        >>> RowContributions(ids, values, **numbers, **some).share([4, 8])
        0.5
        """
        chosen = torch.isin(self.token_ids, check_token_ids(token_ids, self.vocab_size))
        return float(self.contribution[chosen].sum()) / self._positive_total()

    def summary(self) -> str:
        """Return the fall of the loss, the sum of the contributions, and how many rows are enough, in sentences."""
        rule = f"{self.rule}, {counted(len(self.points), 'point')}"
        lines = [f"The contributions of {counted(len(self), 'row')} sum to {self.total:.3f} ({rule})."]
        if self.fall is not None:
            lines.insert(
                0,
                f"The loss goes from {self.loss_before:.3f} to {self.loss_after:.3f}, a fall of {self.fall:.3f} nats "
                f"per token, measured on {counted(self.examples, 'example')}.",
            )
            lines[1] += (
                f" The difference of {self.error:.3f} is the error of the quadrature and of dealing out the examples."
            )
        lines.append(f"The rows with negative contributions sum to {self.contribution.clamp(max=0).sum():.3f}.")
        if self.total > 0:
            counts = [f"{share:.0%}: {counted(len(self.enough(share)), 'row')}" for share in _SHARES]
            lines.append(f"The fewest rows that account for a share of the sum: {', '.join(counts)}.")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Parameters
        ----------
        path : str or path
            The file.
        """
        facts = json.dumps({name: getattr(self, name) for name in _FACTS})
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        write_safetensors(check_path(path, "path"), tensors, {"kind": _KIND, "facts": facts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            The file is missing or damaged, or holds something else.
        TypeError
            ``path`` is not a path.
        """
        path = check_path(path, "path")
        tensors = read_safetensors(path, remedy="make it again")
        if tensors.metadata.get("kind") != _KIND or set(tensors) != set(_TENSORS):
            raise InputError(f"{path} holds no contributions: expected a file that RowContributions.save wrote")
        check_tensors(path, tensors, _FORMS, "make it again")
        with checked_content(path, "make it again"):
            facts = json.loads(tensors.metadata["facts"])
            _check_facts(facts)
            values: dict[str, Any] = {**tensors, **{name: facts[name] for name in _FACTS}}
            return cls(**values)

    def _positive_total(self) -> float:
        if not self.total > 0:
            raise InputError(
                f"the contributions sum to {self.total:.3f} nats per token, so the loss does not fall from before to "
                "after and there are no shares of a fall: check the order of the tables, and the batches"
            )
        return self.total


def _check_facts(facts: Any) -> None:
    """Refuse the numbers of a damaged file."""
    counts = [facts["vocab_size"], facts["examples"]]
    losses = [loss for loss in (facts["loss_before"], facts["loss_after"]) if loss is not None]
    if any(type(count) is not int or count < 0 for count in counts) or facts["rule"] not in get_args(Rule):
        raise ValueError(f"vocab_size, examples and rule are {counts[0]!r}, {counts[1]!r} and {facts['rule']!r}")
    if any(type(loss) not in (int, float) for loss in losses):
        raise ValueError(f"loss_before and loss_after are {losses!r}")
