"""Where an integral over the straight path between two tables is sampled, and how the samples are weighted."""

from typing import Literal, TypeAlias

import numpy as np
import torch

from kslottery_fast.base.arguments import check_choice

from .checks import check_integer

Rule: TypeAlias = Literal["gauss", "midpoint"]
"""The names of the quadrature rules."""


def quadrature(points: int, rule: Rule = "gauss") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points and weights of a rule that integrates a function over [0, 1].

    Parameters
    ----------
    points : int
        The number of points n, at least 1.
    rule : {"gauss", "midpoint"}
        "midpoint" takes the middles of n equal intervals. "gauss" is the Gauss-Legendre rule in s, where the point is
        ``t = s ** 2``. Its points lie closer together near 0, where the loss falls most steeply.

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
    With the substitution, the integral of f(t) dt becomes that of 2 s f(s ** 2) ds. The Gauss-Legendre rule with n
    points is exact for polynomials of degree 2 n - 1 in s, so "gauss" is exact for polynomials of degree n - 1 in t.

    Examples
    --------
    >>> at, weights = quadrature(2, "midpoint")
    >>> at.tolist(), weights.tolist()
    ([0.25, 0.75], [0.5, 0.5])
    >>> at, weights = quadrature(3)
    >>> at.round(decimals=3).tolist()
    [0.013, 0.25, 0.787]
    >>> round(float((weights * at**2).sum()), 12)
    0.333333333333
    """
    n = check_integer(points, "points", 1)
    check_choice(rule, ("gauss", "midpoint"), "rule")
    if rule == "midpoint":
        return (torch.arange(n, dtype=torch.float64) + 0.5) / n, torch.full((n,), 1 / n, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(n))
    s = (1 + nodes) / 2
    return s**2, weights * s
