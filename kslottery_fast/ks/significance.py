"""P-values and critical values of whole tables of KS counts, and corrections for many tests.

The kernels return integers (``h = d * D`` for two rows of d numbers); everything that is not an integer is
made here, once per distinct h. The distributions are in :mod:`kslottery_fast.ks.null`, the test for any two
samples in :mod:`kslottery_fast.ks.twosample`, the counts of two tables in :mod:`kslottery_fast.tickets.tables`.
"""

from __future__ import annotations

import math
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from .null import METHODS, null_pvalues, resolve_method

CORRECTIONS = (None, "bonferroni", "bh")


def resolve_table_method(d: int, method: str) -> str:
    """The method behind "auto" for rows of d numbers: exact up to d = 10,000, then asymp, as in ks_2samp."""
    if method != "auto" and method not in METHODS:
        raise InputError(f"method is {method!r}: expected 'auto', 'exact', 'asymp' or 'paper'")
    _check_dimension(d)
    if method == "asymp" and d == 1:
        raise InputError("method is 'asymp': rows of 1 number have no asymptotic distribution, use 'exact'")
    return resolve_method(d, d, "two-sided", method)[0]


def pvalues(h: Any, d: int, method: str = "auto") -> Tensor:
    """Two-sided p-values P(d * D >= h) of KS counts, for two samples of d values each.

    Parameters
    ----------
    h : int64 tensor, array or list of any shape
        Counts in 0..d, as from :func:`kslottery_fast.ks_statistics`.
    d : int
        The sample size: the dimension of the embedding.
    method : {"auto", "exact", "asymp", "paper"}
        "exact", "asymp" and "auto" as in :func:`kslottery_fast.ks_2samp`. "paper" is Smirnov's limit
        ``min(1, 2 exp(-h^2 / d))``: its p < alpha is the paper's D > tau(alpha).

    Returns
    -------
    Tensor float64, the shape of ``h``, on its device

    Raises
    ------
    InputError
        A count outside 0..d, d < 1, an unknown method.
    TypeError
        Counts that are not integers.

    Examples
    --------
    >>> pvalues([0, 2, 4], d=4)  # of C(8, 4) = 70 orders of the 8 values, 2 give h = 4
    tensor([1.0000, 0.7714, 0.0286], dtype=torch.float64)
    """
    return _table_values(h, d, method, 0)


def log_pvalues(h: Any, d: int, method: str = "auto") -> Tensor:
    """Natural logarithms of :func:`pvalues`, right where those underflow to 0.

    Examples
    --------
    >>> pvalues(4096, d=4096).item(), round(log_pvalues(4096, d=4096).item(), 3)
    (0.0, -5672.837)
    """
    return _table_values(h, d, method, 1)


def _table_values(h: Any, d: int, method: str, which: int) -> Tensor:
    method = resolve_table_method(d, method)
    counts = torch.as_tensor(h)
    if counts.numel() == 0:
        return torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"h has dtype {counts.dtype}: expected integer counts d * D")
    counts = counts.to(torch.int64)
    low, high = int(counts.min()), int(counts.max())
    if low < 0 or high > d:
        rows = f"rows of {d} number{'' if d == 1 else 's'}"
        raise InputError(f"h holds {low if low < 0 else high}: a KS count of {rows} lies in 0..{d}")
    values = null_pvalues(counts.cpu().numpy(), d, d, "two-sided", method)[which]
    return torch.from_numpy(np.ascontiguousarray(values)).to(counts.device)


def pvalue_of_log(log_p: float) -> str:
    """Write a p-value from its natural logarithm: two digits, also below the smallest float.

    >>> pvalue_of_log(math.log(0.0312)), pvalue_of_log(0.0), pvalue_of_log(-5672.837)
    ('0.031', '1', '2.1e-2464')
    """
    p = Decimal(log_p).exp()
    return f"{p:.1e}" if log_p < math.log(1e-4) else f"{float(p):.2g}"


def check_alpha(alpha: Any) -> float:
    """The significance level as a float in (0, 1)."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.floating)):
        raise TypeError(f"alpha is {alpha!r}: expected a number between 0 and 1")
    if not 0 < alpha < 1:  # NaN too
        raise InputError(f"alpha is {alpha}: expected a significance level between 0 and 1, such as 0.05")
    return float(alpha)


def critical_count(d: int, alpha: float, method: str = "auto") -> int:
    """The smallest significant count: p(h) < alpha if and only if h >= critical_count(d, alpha, method).

    Parameters
    ----------
    d : int
        Sample size of both samples.
    alpha : float
        Significance level in (0, 1).
    method : {"auto", "exact", "asymp", "paper"}
        As for :func:`pvalues`. With "paper", h is significant when ``h / d > asymptotic_threshold(alpha, d,
        d)``.

    Returns
    -------
    int
        In 1..d, or d + 1 if not even h = d is significant: then no row of d numbers can be.

    Examples
    --------
    >>> critical_count(4096, 0.05), critical_count(4096, 0.05, "paper")
    (123, 123)
    >>> critical_count(3, 0.05)  # p(3) = 2 / C(6, 3) = 0.1
    4
    """
    method = resolve_table_method(d, method)
    return _critical_count(int(d), check_alpha(alpha), method)


@lru_cache(maxsize=1024)
def _critical_count(d: int, alpha: float, method: str) -> int:
    low, high = 0, d + 1  # p(low) >= alpha; p(high) < alpha, or high is d + 1
    while high - low > 1:
        middle = (low + high) // 2
        if float(pvalues(middle, d, method)) < alpha:
            high = middle
        else:
            low = middle
    return high


def asymptotic_threshold(alpha: float, n: int, m: int) -> float:
    """The paper's threshold tau(alpha) for D: significant is D > tau.

    ``tau = sqrt(-ln(alpha / 2) / 2) * sqrt((n + m) / (n m))``, for sample sizes n and m.

    Examples
    --------
    >>> round(asymptotic_threshold(0.05, 4096, 4096), 4), round(asymptotic_threshold(0.05, 576, 576), 4)
    (0.03, 0.08)
    """
    alpha = check_alpha(alpha)
    _check_dimension(n)
    _check_dimension(m)
    return math.sqrt(-math.log(alpha / 2) / 2) * math.sqrt((n + m) / (n * m))


def benjamini_hochberg(pvalue: Any) -> Tensor:
    """P-values adjusted for the false discovery rate, by Benjamini and Hochberg's step-up procedure (1995).

    Parameters
    ----------
    pvalue : float tensor or array [V]
        The p-values of all V tests of the family.

    Returns
    -------
    Tensor float64 [V]
        The smallest rate at which each test is rejected; what ``scipy.stats.false_discovery_control``
        returns.

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


def adjust(pvalue: Any, correction: str | None) -> Tensor:
    """P-values corrected for the number of tests: compare them with alpha.

    Parameters
    ----------
    pvalue : float tensor or array [V]
        The p-values of all V tests of the family, those that are not significant too.
    correction : {None, "bonferroni", "bh"}
        None: as they are. "bonferroni": ``min(1, V p)``, the chance of one false ticket among all.
        "bh": :func:`benjamini_hochberg`, the expected share of false tickets among the tickets.

    Returns
    -------
    Tensor float64 [V]

    Examples
    --------
    >>> adjust([0.01, 0.04, 0.03, 0.2], "bonferroni")
    tensor([0.0400, 0.1600, 0.1200, 0.8000], dtype=torch.float64)
    """
    if correction not in CORRECTIONS:
        raise InputError(f"correction is {correction!r}: expected None, 'bonferroni' or 'bh'")
    p = _check_pvalues(pvalue)
    if correction == "bonferroni":
        return (p * len(p)).clamp(max=1.0)
    return p if correction is None else benjamini_hochberg(p)


def _check_pvalues(pvalue: Any) -> Tensor:
    p = torch.as_tensor(pvalue, dtype=torch.float64)
    if p.ndim != 1:
        raise InputError(f"pvalue has shape {list(p.shape)}: expected [V], one p-value per test")
    if not bool(((p >= 0) & (p <= 1)).all()):  # NaN too
        raise InputError("pvalue holds a number outside [0, 1]")
    return p


def _check_dimension(d: Any) -> None:
    if isinstance(d, bool) or not isinstance(d, (int, np.integer)):
        raise TypeError(f"the sample size is {d!r}: expected an integer")
    if d < 1:
        raise InputError(f"the sample size is {d}: expected at least 1")
