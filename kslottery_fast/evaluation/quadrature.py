"""Where an integral over the straight path between two tables is sampled, and how the samples are weighted."""

from typing import Literal, TypeAlias

import numpy as np
import torch

from kslottery_fast.base.arguments import check_choice

from .checks import check_integer

Rule: TypeAlias = Literal["gauss", "gauss-squared", "midpoint"]
"""The names of the quadrature rules."""

RULES: tuple[Rule, ...] = ("gauss", "gauss-squared", "midpoint")


def quadrature(points: int, rule: Rule = "gauss") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points and weights of a rule that integrates a function over [0, 1].

    Parameters
    ----------
    points : int
        The number of points n, at least 1.
    rule : {"gauss", "gauss-squared", "midpoint"}
        "gauss" is the Gauss-Legendre rule. "gauss-squared" is that rule in s, where the point is ``t = s ** 2``, so
        that more points lie near 0, where the loss falls most steeply. "midpoint" takes the middles of n equal
        intervals.

    Returns
    -------
    points : torch.Tensor
        float64 [n], ascending, strictly between 0 and 1.
    weights : torch.Tensor
        float64 [n], positive.

    Raises
    ------
    InputError
        ``points`` is below 1, or ``rule`` is unknown.
    TypeError
        ``points`` is not an integer.

    Notes
    -----
    With n points, "gauss" is exact for polynomials of degree 2 n - 1, "gauss-squared" for polynomials of degree n - 1,
    and "midpoint" for straight lines.

    Along the path of a training, the loss first falls steeply and then levels off. "midpoint" underestimates such a
    fall, and needs more points than the Gauss-Legendre rules for the same error.

    Examples
    --------
    >>> at, weights = quadrature(2, "midpoint")
    >>> at.tolist(), weights.tolist()
    ([0.25, 0.75], [0.5, 0.5])
    >>> at, weights = quadrature(3)
    >>> at.round(decimals=3).tolist()
    [0.113, 0.5, 0.887]
    >>> round(float((weights * at**5).sum()), 12) == round(1 / 6, 12)
    True
    >>> quadrature(3, "gauss-squared")[0].round(decimals=3).tolist()
    [0.013, 0.25, 0.787]
    """
    n = check_integer(points, "points", 1)
    check_choice(rule, RULES, "rule")
    if rule == "midpoint":
        return (torch.arange(n, dtype=torch.float64) + 0.5) / n, torch.full((n,), 1 / n, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(n))
    s = (1 + nodes) / 2
    # The integral of f(t) dt is that of 2 s f(s ** 2) ds, and the weights of the interval from -1 to 1 sum to 2.
    return (s, weights / 2) if rule == "gauss" else (s**2, weights * s)
