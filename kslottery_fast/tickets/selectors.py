"""One interface to all ways of ranking rows: KS test, size of the change, gradient, frequency, contribution."""

from numbers import Real
from typing import Any, Literal, Protocol

import torch

from kslottery_fast.base.arguments import check_choice, check_integer, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Selector

from .evidence import SELECTORS, Evidence
from .selected_rows import SelectedRows

_COLUMNS = {"ks": "counts", "l2": "l2", "gradient": "gradient", "frequency": "frequency"}


class HasContributions(Protocol):
    """What :func:`kslottery_fast.row_contributions` returns, as far as it is needed here."""

    @property
    def token_ids(self) -> torch.Tensor:
        """int64 [m], ascending: the rows that moved."""

    @property
    def contribution(self) -> torch.Tensor:
        """float64 [m], the fall of the loss that each row accounts for."""


def select_rows(
    evidence: Evidence,
    by: Selector,
    k: int | Literal["enough"],
    *,
    contributions: HasContributions | None = None,
    share: float = 0.95,
) -> SelectedRows:
    """Select the k rows with the largest evidence of one kind.

    Parameters
    ----------
    evidence : Evidence
        What the training showed about each row.
    by : {"ks", "l2", "gradient", "frequency", "contribution"}
        What the rows are ranked by. Of equal rows the lower token id comes first. Rows with D = 0 are never selected by
        "ks".
    k : int or "enough"
        How many rows, or the fewest rows of this ranking that account for ``share`` of the loss's fall.
    contributions : RowContributions, optional
        What :func:`kslottery_fast.row_contributions` returned for the same tables. "contribution" and "enough" need
        them. All other selections report the share of the fall that their rows account for if they are given.
    share : float
        For "enough", strictly between 0 and 1.

    Returns
    -------
    SelectedRows

    Raises
    ------
    InputError
        An option is unknown or out of range, contributions are missing or do not sum to a fall of the loss, or all rows
        of the ranking account for less than ``share``.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        There are fewer than k rows.

    Examples
    --------
    >>> ids, numbers = torch.tensor([3, 5, 8]), torch.tensor([1.0, 4.0, 2.0]).double()
    >>> evidence = Evidence(ids, torch.tensor([2, 1, 0]), numbers, numbers, torch.tensor([9, 1, 4]), 10, 4)
    >>> list(select_rows(evidence, "ks", 1)), list(select_rows(evidence, "l2", 2))
    ([3], [5, 8])
    """
    _check_evidence(evidence)
    check_choice(by, (*_COLUMNS, "contribution"), "by")
    enough = isinstance(k, str) and k == "enough"
    if not enough:
        _check_k(k)
    _check_share(share)
    if contributions is None and (enough or by == "contribution"):
        asked = "by='contribution'" if by == "contribution" else "k='enough'"
        raise InputError(f"contributions is None, and {asked} needs them: give what row_contributions returns")
    worth = None if contributions is None else _of_a_fall(aligned(evidence, contributions))
    values = row_values(evidence, by, contributions=contributions)
    order = row_order(evidence, by, contributions=contributions)
    cumulative = None if worth is None else worth[order].cumsum(0) / worth.sum()
    count = _fewest(cumulative, share, by) if enough and cumulative is not None else int(k)
    if count > len(order):
        warn_caller(f"only {len(order)} rows can be selected by {by!r}, k asked for {count}")
    return SelectedRows(
        token_ids=evidence.token_ids[order[:count]],
        values=values[order[:count]],
        selected_by=by,
        vocab_size=evidence.vocab_size,
        cumulative=None if cumulative is None else cumulative[:count],
    )


def row_order(
    evidence: Evidence, by: str, *, contributions: HasContributions | None = None, seed: int = 0
) -> torch.Tensor:
    """Return the order in which a selector takes the rows of the evidence.

    Parameters
    ----------
    evidence : Evidence
        What the training showed about each row.
    by : str
        A selector of :func:`select_rows`, or "random".
    contributions : RowContributions, optional
        What "contribution" ranks by. They need not sum to a fall of the loss.
    seed : int
        What "random" draws by.

    Returns
    -------
    torch.Tensor
        int64 indices into the rows of the evidence, best first.

    Raises
    ------
    InputError
        The selector is unknown, its contributions are missing or of other rows, or the seed is negative.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> ids, numbers = torch.tensor([3, 5, 8]), torch.tensor([1.0, 4.0, 2.0]).double()
    >>> evidence = Evidence(ids, torch.tensor([2, 1, 0]), numbers, numbers, torch.tensor([9, 1, 4]), 10, 4)
    >>> row_order(evidence, "l2"), row_order(evidence, "frequency")
    (tensor([1, 2, 0]), tensor([0, 2, 1]))
    """
    _check_evidence(evidence)
    check_choice(by, (*SELECTORS, "contribution"), "by")
    check_integer(seed, "seed", 0)
    if by != "contribution":
        return SELECTORS[by](evidence, seed)
    return torch.sort(
        row_values(evidence, "contribution", contributions=contributions), descending=True, stable=True
    ).indices


def row_values(evidence: Evidence, by: Selector, *, contributions: HasContributions | None = None) -> torch.Tensor:
    """Return what a selector ranks the rows of the evidence by.

    Parameters
    ----------
    evidence : Evidence
        What the training showed about each row.
    by : {"ks", "l2", "gradient", "frequency", "contribution"}
        The selector.
    contributions : RowContributions, optional
        As for :func:`row_order`.

    Returns
    -------
    torch.Tensor
        [A], in the order of the evidence.

    Raises
    ------
    InputError
        The selector is unknown, or its contributions are missing or of other rows.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> ids, numbers = torch.tensor([3, 5, 8]), torch.tensor([1.0, 4.0, 2.0]).double()
    >>> evidence = Evidence(ids, torch.tensor([2, 1, 0]), numbers, numbers, torch.tensor([9, 1, 4]), 10, 4)
    >>> row_values(evidence, "frequency")
    tensor([9, 1, 4])
    """
    _check_evidence(evidence)
    check_choice(by, (*_COLUMNS, "contribution"), "by")
    if by != "contribution":
        return torch.as_tensor(getattr(evidence, _COLUMNS[by]))
    if contributions is None:
        raise InputError("contributions is None, and by='contribution' needs them: give what row_contributions returns")
    return aligned(evidence, contributions)


def aligned(evidence: Evidence, contributions: HasContributions) -> torch.Tensor:
    """Return the contribution of each row of the evidence. Rows without one did not move, and have 0.

    Parameters
    ----------
    evidence : Evidence
        What the training showed about each row.
    contributions : RowContributions
        What :func:`kslottery_fast.row_contributions` returned for the same tables.

    Returns
    -------
    torch.Tensor
        float64 [A], in the order of the evidence.

    Raises
    ------
    InputError
        The contributions are of rows that the evidence lacks.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> ids, numbers = torch.tensor([3, 5, 8]), torch.tensor([1.0, 4.0, 2.0]).double()
    >>> evidence = Evidence(ids, torch.tensor([2, 1, 0]), numbers, numbers, torch.tensor([9, 1, 4]), 10, 4)
    >>> aligned(evidence, SimpleNamespace(token_ids=torch.tensor([5]), contribution=torch.tensor([0.25])))
    tensor([0.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    _check_evidence(evidence)
    ids, values = (getattr(contributions, name, None) for name in ("token_ids", "contribution"))
    if not isinstance(ids, torch.Tensor) or not isinstance(values, torch.Tensor):
        raise TypeError(f"contributions is {shown(contributions)}: expected what row_contributions returns")
    if not torch.isin(ids, evidence.token_ids).all():
        raise InputError("contributions has rows that evidence lacks: give both of the same two tables")
    every = torch.zeros(len(evidence), dtype=torch.float64)
    every[torch.searchsorted(evidence.token_ids, ids)] = values.double()
    return every


def _check_evidence(evidence: Any) -> None:
    if not isinstance(evidence, Evidence):
        raise TypeError(f"evidence is {shown(evidence)}: expected Evidence, as a training with a Witness gives it")


def _of_a_fall(worth: torch.Tensor) -> torch.Tensor:
    """Return contributions as they are, unless they do not sum to a fall of the loss."""
    if not worth.sum() > 0:
        raise InputError(
            f"contributions sum to {worth.sum():.3f} nats per token, so the loss does not fall and there are no "
            "shares of a fall: check the order of the tables, and the batches"
        )
    return worth


def _check_k(k: Any) -> None:
    try:
        check_integer(k, "k", 1)
    except TypeError:
        raise TypeError(f"k is {shown(k)}: expected an integer of at least 1, or 'enough'") from None


def _check_share(share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"share is {shown(share)}: expected a number strictly between 0 and 1, e.g. 0.95")
    if not 0 < float(share) < 1:
        raise InputError(f"share is {share}: expected a number strictly between 0 and 1, e.g. 0.95")


def _fewest(cumulative: torch.Tensor, share: float, by: str) -> int:
    """The length of the shortest beginning of a ranking that reaches a share."""
    reached = (cumulative >= share).nonzero()
    if not len(reached):
        raise InputError(f"share is {share}, and all {len(cumulative)} rows that {by!r} ranks do not account for it")
    return int(reached[0]) + 1
