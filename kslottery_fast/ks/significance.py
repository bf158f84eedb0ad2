"""P-values and critical values of whole tables of KS counts.

The kernels return integers (``h = d * D`` for two rows of d numbers). Everything that is not an integer is made here,
once for each distinct h. The distributions are in :mod:`kslottery_fast.ks.null`, the test for any two samples is in
:mod:`kslottery_fast.ks.twosample`, and the counts of two tables are in :mod:`kslottery_fast.tickets.tables`.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_choice, check_integer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Method, ResolvedMethod

from .checks import as_tensor
from .null import METHODS, null_pvalues, resolve_method

Counts: TypeAlias = Tensor | npt.NDArray[np.integer[Any]] | Sequence[Any] | int


def resolve_table_method(d: int, method: Method) -> ResolvedMethod:
    """Tell which method "auto" stands for: for rows of d numbers exact up to d = 10,000, else asymp, as in ks_2samp.

    Parameters
    ----------
    d : int
        The sample size, at least 1.
    method : {"auto", "exact", "asymp", "paper"}
        The method that was asked for.

    Returns
    -------
    {"exact", "asymp", "paper"}
        ``method`` itself, unless that is "auto".

    Raises
    ------
    InputError
        d < 1, an unknown method, or "asymp" for rows of one number.
    TypeError
        A sample size that is not an integer.

    Examples
    --------
    >>> resolve_table_method(4096, "auto"), resolve_table_method(20_000, "auto")
    ('exact', 'asymp')
    """
    check_choice(method, ("auto", *METHODS), "method")
    check_integer(d, "d", 1)
    if method == "asymp" and d == 1:
        raise InputError("method is 'asymp': rows of 1 number have no asymptotic distribution, use 'exact'")
    return cast(ResolvedMethod, resolve_method(d, d, "two-sided", method)[0])


def pvalues(h: Counts, d: int, method: Method = "auto") -> Tensor:
    """Two-sided p-values P(d * D >= h) of KS counts, for two samples of d values each.

    Parameters
    ----------
    h : int64 tensor, array, list or int
        Counts in 0..d of any shape, as from :func:`kslottery_fast.ks_statistics`.
    d : int
        The sample size, which is the dimension of the embedding.
    method : {"auto", "exact", "asymp", "paper"}
        "exact", "asymp" and "auto" as in :func:`kslottery_fast.ks_2samp`. "paper" is Smirnov's limit
        ``min(1, 2 exp(-h^2 / d))``, whose p < alpha is the paper's D > tau(alpha).

    Returns
    -------
    Tensor
        float64, of the shape of ``h`` and on its device.

    Raises
    ------
    InputError
        A count outside 0..d, d < 1, or an unknown method.
    TypeError
        Counts or a sample size that are not integers.

    Examples
    --------
    >>> pvalues([0, 2, 4], d=4)  # of C(8, 4) = 70 orders of the 8 values, 2 give h = 4
    tensor([1.0000, 0.7714, 0.0286], dtype=torch.float64)
    """
    return _table_values(h, d, method, 0)


def log_pvalues(h: Counts, d: int, method: Method = "auto") -> Tensor:
    """Natural logarithms of :func:`pvalues`. They are right even where p-values underflow to 0.

    Parameters
    ----------
    h, d, method
        As for :func:`pvalues`.

    Returns
    -------
    Tensor
        float64, of the shape of ``h`` and on its device.

    Raises
    ------
    InputError, TypeError
        As for :func:`pvalues`.

    Examples
    --------
    >>> pvalues(4096, d=4096).item(), round(log_pvalues(4096, d=4096).item(), 3)
    (0.0, -5672.837)
    """
    return _table_values(h, d, method, 1)


def _table_values(h: Any, d: Any, method: Any, which: int) -> Tensor:
    method = resolve_table_method(d, method)
    counts = as_tensor(h, "h", "integer counts d * D")
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
    """Write a p-value, given its natural logarithm, with two digits. This also works below the smallest float.

    Parameters
    ----------
    log_p : float
        Natural logarithm of a p-value.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        Not a number.

    Examples
    --------
    >>> pvalue_of_log(math.log(0.0312)), pvalue_of_log(0.0), pvalue_of_log(-5672.837)
    ('0.031', '1', '2.1e-2464')
    """
    if isinstance(log_p, bool) or not isinstance(log_p, (int, float, np.floating)):
        raise TypeError(f"log_p is {shown(log_p)}: expected the logarithm of a p-value")
    p = Decimal(float(log_p)).exp()
    return f"{p:.1e}" if log_p < math.log(1e-4) else f"{float(p):.2g}"


def check_alpha(alpha: float) -> float:
    """Return the significance level as a float.

    Parameters
    ----------
    alpha : float
        A significance level in (0, 1).

    Returns
    -------
    float

    Raises
    ------
    InputError
        Outside (0, 1).
    TypeError
        Not a number.

    Examples
    --------
    >>> check_alpha(0.05)
    0.05
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.floating)):
        raise TypeError(f"alpha is {shown(alpha)}: expected a number between 0 and 1")
    if not 0 < alpha < 1:  # NaN too
        raise InputError(f"alpha is {alpha}: expected a significance level between 0 and 1, such as 0.05")
    return float(alpha)


def critical_count(d: int, alpha: float, method: Method = "auto") -> int:
    """Return the smallest significant count: p(h) < alpha if and only if h >= critical_count(d, alpha, method).

    Parameters
    ----------
    d : int
        Sample size of both samples.
    alpha : float
        Significance level in (0, 1).
    method : {"auto", "exact", "asymp", "paper"}
        As for :func:`pvalues`. With "paper", h is significant when ``h / d > asymptotic_threshold(alpha, d, d)``.

    Returns
    -------
    int
        In 1..d. It is d + 1 if not even h = d is significant. Then no row of d numbers can be.

    Raises
    ------
    InputError
        d < 1, an alpha outside (0, 1), or an unknown method.
    TypeError
        An argument that is not a number.

    Examples
    --------
    >>> critical_count(4096, 0.05), critical_count(4096, 0.05, "paper")
    (123, 123)
    >>> critical_count(3, 0.05)  # p(3) = 2 / C(6, 3) = 0.1
    4
    """
    resolved = resolve_table_method(d, method)
    return _critical_count(int(d), check_alpha(alpha), resolved)


@lru_cache(maxsize=1024)
def _critical_count(d: int, alpha: float, method: ResolvedMethod) -> int:
    low, high = 0, d + 1  # p(low) >= alpha; p(high) < alpha, or high is d + 1
    while high - low > 1:
        middle = (low + high) // 2
        if float(pvalues(middle, d, method)) < alpha:
            high = middle
        else:
            low = middle
    return high


def asymptotic_threshold(alpha: float, n: int, m: int) -> float:
    """Return the paper's threshold tau(alpha) for D. A row is significant if D > tau.

    ``tau = sqrt(-ln(alpha / 2) / 2) * sqrt((n + m) / (n m))``.

    Parameters
    ----------
    alpha : float
        Significance level in (0, 1).
    n, m : int
        The sample sizes, at least 1.

    Returns
    -------
    float

    Raises
    ------
    InputError
        A number out of range.
    TypeError
        An argument that is not a number.

    Examples
    --------
    >>> round(asymptotic_threshold(0.05, 4096, 4096), 4), round(asymptotic_threshold(0.05, 576, 576), 4)
    (0.03, 0.08)
    """
    alpha = check_alpha(alpha)
    check_integer(n, "n", 1)
    check_integer(m, "m", 1)
    return math.sqrt(-math.log(alpha / 2) / 2) * math.sqrt((n + m) / (n * m))
