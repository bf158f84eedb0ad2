"""By which number does each selector rank the rows? The rows with the largest numbers come first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.tickets.evidence import Evidence

PEERS = 100
"""How many rows of about equal count are the null of a row."""


def excess(evidence: Evidence, peers: int = PEERS) -> tuple[Tensor, Tensor]:
    """How far h lies above what a row of equal count moves at random.

    The class of a row has the ``peers`` rows whose counts are nearest to its own on a logarithmic scale, itself among
    them, and all others whose counts are as near. Most rows of a class move without a purpose. So the median of h in
    the class is the null of the row.

    Parameters
    ----------
    evidence : Evidence
        The evidence.
    peers : int
        The least number of rows in a class.

    Returns
    -------
    difference : Tensor
        float64 [A], h less the median of h in the class of the row.
    standardized : Tensor
        float64 [A], the difference divided by the spread of h in the class. The spread is 1.4826 times the median
        distance from the median, which is the standard deviation of normal numbers, and at least 1.

    Examples
    --------
    >>> ids, numbers = torch.arange(5), torch.ones(5).double()
    >>> h, occurrences = torch.tensor([20, 21, 29, 8, 4]), torch.tensor([1, 1, 1, 90, 99])
    >>> evidence = Evidence(ids, h, numbers, numbers, occurrences, 9, 64)
    >>> [each.round().tolist() for each in excess(evidence, peers=2)]
    [[-1.0, 0.0, 8.0, 2.0, -2.0], [-1.0, 0.0, 5.0, 1.0, -1.0]]
    """
    counts, place = evidence.counts.double(), evidence.frequency.double().clamp(min=1).log()
    median, spread = torch.empty_like(counts), torch.empty_like(counts)
    for here in place.unique():
        far = (place - here).abs()
        own = counts[far <= far.kthvalue(min(peers, len(far))).values]
        middle = own.quantile(0.5)
        median[place == here] = middle
        spread[place == here] = (1.4826 * (own - middle).abs().quantile(0.5)).clamp(min=1)
    return counts - median, (counts - median) / spread


def wasserstein(before: Tensor, after: Tensor) -> Tensor:
    """The Wasserstein-1 distance between the numbers of a row before and after, float64 [A].

    Both samples have d numbers, so it is the mean distance between the i-th smallest ones.

    Parameters
    ----------
    before, after : Tensor
        The rows, [A, d].

    Examples
    --------
    >>> wasserstein(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 4.0]])).tolist()
    [0.0, 2.5]
    """
    return (before.double().sort(dim=1).values - after.double().sort(dim=1).values).abs().mean(dim=1)


def shrunk(contribution: Tensor, standard_error: Tensor) -> Tensor:
    """Contributions shrunk by their standard errors, float64 [A]: a (1 - e^2 / a^2), and 0 where e exceeds a.

    This is the James-Stein factor of a single number, and it keeps the sign. With an unknown error the result is 0.

    Examples
    --------
    >>> a, e = torch.tensor([2.0, 2.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 1.0, torch.nan])
    >>> shrunk(a, e).tolist()
    [2.0, 1.5, -1.5, 0.0]
    """
    kept = 1 - (standard_error / contribution) ** 2
    return torch.where(kept > 0, contribution * kept, 0.0)


def aligned(evidence: Evidence, found: RowContributions) -> tuple[Tensor, Tensor]:
    """The contribution and the standard error of each row of the evidence. Rows that did not move have 0."""
    places = torch.searchsorted(evidence.token_ids, found.token_ids)
    both = torch.zeros(2, len(evidence), dtype=torch.float64)
    both[0, places], both[1, places] = found.contribution, found.standard_error
    return both[0], both[1]


def _rooted(values: Tensor, evidence: Evidence) -> Tensor:
    return values.double() * evidence.frequency.double().sqrt()


BY_EVIDENCE: Mapping[str, Callable[[Evidence], Tensor]] = {
    "ks": lambda evidence: evidence.counts,
    "ks-excess": lambda evidence: excess(evidence)[0],
    "ks-z": lambda evidence: excess(evidence)[1],
    "ks-root": lambda evidence: _rooted(evidence.counts, evidence),
    "l2": lambda evidence: evidence.l2,
    "l2-root": lambda evidence: _rooted(evidence.l2, evidence),
    "gradient": lambda evidence: evidence.gradient,
    "gradient-l2": lambda evidence: evidence.gradient * evidence.l2,
    "frequency": lambda evidence: evidence.frequency,
}
"""Selectors that need the evidence of the training alone."""

BY_CONTRIBUTION: Mapping[str, Callable[[Tensor, Tensor, Evidence], Tensor]] = {
    "contribution": lambda contribution, _error, _evidence: contribution,
    "contribution-shrunk": lambda contribution, error, _evidence: shrunk(contribution, error),
    "contribution-l2": lambda contribution, _error, evidence: (contribution.clamp(min=0) * evidence.l2).sqrt(),
}
"""Selectors that need contributions and their standard errors."""


def best_first(evidence: Evidence, values: Tensor, ties: Tensor | None = None) -> Tensor:
    """The token ids by falling value.

    Parameters
    ----------
    evidence : Evidence
        The evidence.
    values : Tensor
        [A], what the rows are ranked by.
    ties : Tensor, optional
        [A], what rows of equal value are ranked by. Among equal ones the lower token id comes first.
    """
    first = torch.arange(len(evidence)) if ties is None else torch.sort(ties, descending=True, stable=True).indices
    order = first[torch.sort(values[first], descending=True, stable=True).indices]
    return evidence.token_ids[order]
