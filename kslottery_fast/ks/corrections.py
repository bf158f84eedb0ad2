"""P-values corrected for many tests."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction

from .checks import as_tensor

CORRECTIONS = (None, "bonferroni", "bh")

PValues: TypeAlias = Tensor | npt.NDArray[np.floating[Any]] | Sequence[float]


def check_correction(correction: Any) -> None:
    """Refuse an unknown correction.

    Raises
    ------
    InputError
        Neither None nor one of the names.
    """
    check_choice(correction, CORRECTIONS, "correction")


def benjamini_hochberg(pvalue: PValues) -> Tensor:
    """Adjust p-values for the false discovery rate, by Benjamini and Hochberg's step-up procedure (1995).

    Parameters
    ----------
    pvalue : tensor, array or list [V]
        The p-values of all V tests of the family.

    Returns
    -------
    Tensor
        float64 [V]. The smallest rate at which each test is rejected, as ``scipy.stats.false_discovery_control``
        returns it.

    Raises
    ------
    InputError
        Not one dimension, or numbers outside [0, 1].
    TypeError
        Not numbers.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.2])
    tensor([0.0400, 0.0533, 0.0533, 0.2000], dtype=torch.float64)
    """
    p = _check_pvalues(pvalue)
    if len(p) == 0:
        return p
    order = torch.argsort(p, descending=True)
    rank = torch.arange(len(p), 0, -1, dtype=torch.float64, device=p.device)
    adjusted = torch.empty_like(p)
    adjusted[order] = torch.cummin(p[order] * len(p) / rank, dim=0).values.clamp(max=1.0)
    return adjusted


def adjust(pvalue: PValues, correction: Correction | None) -> Tensor:
    """Correct p-values for the number of tests. Compare the result with alpha.

    Parameters
    ----------
    pvalue : tensor, array or list [V]
        The p-values of all V tests of the family, including those that are not significant.
    correction : {None, "bonferroni", "bh"}
        None leaves them as they are. "bonferroni" gives ``min(1, V p)``, which limits the chance of a single false
        ticket. "bh" is :func:`benjamini_hochberg`, which limits the expected share of false tickets among the tickets.

    Returns
    -------
    Tensor
        float64 [V].

    Raises
    ------
    InputError
        Not one dimension, numbers outside [0, 1], or an unknown correction.
    TypeError
        Not numbers.

    Examples
    --------
    >>> adjust([0.01, 0.04, 0.03, 0.2], "bonferroni")
    tensor([0.0400, 0.1600, 0.1200, 0.8000], dtype=torch.float64)
    """
    check_correction(correction)
    p = _check_pvalues(pvalue)
    if correction == "bonferroni":
        return (p * len(p)).clamp(max=1.0)
    return p if correction is None else benjamini_hochberg(p)


def _check_pvalues(pvalue: Any) -> Tensor:
    p = as_tensor(pvalue, "pvalue", "p-values", torch.float64)
    if p.ndim != 1:
        raise InputError(f"pvalue has shape {list(p.shape)}: expected [V], one p-value per test")
    if not bool(((p >= 0) & (p <= 1)).all()):  # NaN too
        raise InputError("pvalue holds a number outside [0, 1]")
    return p
