"""``ks_2samp``: scipy's two-sample Kolmogorov-Smirnov test, batched."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops.schemas import HAS_NAN

from .null import null_pvalues, resolve_method
from .samples import Axis, Samples, gather_samples
from .small_samples import small_sample_warning

_ALTERNATIVES = {"t": "two-sided", "g": "greater", "l": "less"}
_ADVICE = "See documentation for sample size requirements."
_ALL_NAN = f"too small; all returned values will be NaN. {_ADVICE}"
_TOO_SMALL = f"One or more sample arguments is {_ALL_NAN}"
_TOO_SMALL_OMIT = f"After omitting NaNs, one or more sample arguments is {_ALL_NAN}"
_TOO_SMALL_ND = (
    "All axis-slices of one or more sample arguments are too small; "
    f"all elements of returned arrays will be NaN. {_ADVICE}"
)
_TOO_SMALL_ND_OMIT = (
    "After omitting NaNs, one or more axis-slices of one or more sample arguments is too small; "
    f"corresponding elements of returned arrays will be NaN. {_ADVICE}"
)


class _Pair(NamedTuple):
    statistic: Any
    pvalue: Any


class KsResult(_Pair):
    """What :func:`ks_2samp` returns. It unpacks to ``(statistic, pvalue)``, as scipy's result does.

    Attributes
    ----------
    statistic : float64 scalar, array or tensor
        The KS statistic D, D+ or D-, in [0, 1].
    pvalue : same
        P(statistic at least this large) if both samples come from one continuous distribution.
    statistic_location : same
        The sample value at which the statistic is found. A scalar has the promoted dtype of the samples.
    statistic_sign : same
        +1 if the empirical distribution function of x exceeds that of y there, otherwise -1. A scalar is an
        int8.
    log_pvalue : same
        Natural logarithm of the p-value, right where ``pvalue`` underflows to 0.
    """

    statistic_location: Any
    statistic_sign: Any
    log_pvalue: Any

    def __new__(
        cls, statistic: Any, pvalue: Any, *, statistic_location: Any, statistic_sign: Any, log_pvalue: Any
    ) -> KsResult:
        self = super().__new__(cls, statistic, pvalue)
        self.statistic_location = statistic_location
        self.statistic_sign = statistic_sign
        self.log_pvalue = log_pvalue
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """Arguments with which copy and pickle make it anew."""
        return tuple(self), dict(vars(self))

    def __repr__(self) -> str:
        fields = {"statistic": self.statistic, "pvalue": self.pvalue, **vars(self)}
        return f"KsResult({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def ks_2samp(
    x: Any,
    y: Any,
    alternative: str = "two-sided",
    method: str = "auto",
    *,
    axis: Axis = -1,
    nan_policy: str = "propagate",
    keepdims: bool = False,
) -> KsResult:
    """Two-sample Kolmogorov-Smirnov test along an axis: the batched drop-in for ``scipy.stats.ks_2samp``.

    Same numbers, warnings and rules as scipy 1.17, for all rows at once. The differences: ``axis`` is the last one
    by default (scipy: the first); tensors are taken as well; where scipy warns once per row this warns once; and
    where n = m, p is 1 and rounding takes scipy's sum above 1, scipy warns and returns the asymptotic value, this 1.

    Parameters
    ----------
    x, y : tensor or array_like of shape [..., n] and [..., m]
        The samples lie along ``axis``, n and m may differ; the other dimensions broadcast. Any float, integer
        or bool dtype; values are compared exactly. Infinities are values like any other. Masked values are
        left out.
    alternative : {"two-sided", "less", "greater"}
        With F and G the distribution functions of x and y, "less" uses D- = sup(G - F), "greater" D+ = sup(F
        - G), "two-sided" D = max(D+, D-). As in scipy, the first letter decides.
    method : {"auto", "exact", "asymp"}
        "auto": exact up to max(n, m) = 10,000. Exact falls back to asymp, with a RuntimeWarning, where scipy
        does.
    axis : int, tuple of int or None
        None: all values of x against all values of y.
    nan_policy : {"propagate", "omit", "raise"}
        A row with NaN gives NaN; or its NaNs are left out; or InputError.
    keepdims : bool
        Keep the reduced axes with size 1.

    Returns
    -------
    KsResult
        Float64 tensors if x or y is a tensor; otherwise numpy arrays, for 1-D samples scalars. An empty
        sample gives NaN and scipy's SmallSampleWarning.

    Raises
    ------
    InputError
        (a ValueError) Unknown option, shapes that do not broadcast, NaN under ``nan_policy="raise"``.
    TypeError
        Samples that are not real numbers.

    Examples
    --------
    >>> import numpy as np, scipy.stats
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(3, 50)), rng.normal(loc=[[0.0], [1.0], [2.0]], size=(3, 60))
    >>> result = ks_2samp(x, y)
    >>> result.statistic.shape
    (3,)
    >>> expected = [scipy.stats.ks_2samp(x[row], y[row]).pvalue for row in range(3)]
    >>> bool(np.allclose(result.pvalue, expected, rtol=1e-10, atol=0))
    True
    """
    alternative = _check_options(alternative, method, nan_policy)
    samples = gather_samples(x, y, axis)
    rows = len(samples.x)
    out = np.full((5, rows), np.nan)
    scalar = samples.lead == ()
    messages: dict[str, type[Warning]] = {}
    if 0 in (samples.x.shape[1], samples.y.shape[1]):
        if rows:
            messages[_TOO_SMALL if scalar else _TOO_SMALL_ND] = small_sample_warning()
    elif rows:
        _fill(out, samples, alternative, method, nan_policy, messages)
    for message, category in messages.items():
        warnings.warn(message, category, stacklevel=2)
    return _result(out, samples, samples.kept_shape if keepdims else samples.lead, scalar)


def _check_options(alternative: str, method: str, nan_policy: str) -> str:
    full = _ALTERNATIVES.get(alternative[:1].lower()) if isinstance(alternative, str) else None
    if full is None:
        raise InputError(f"Invalid value for alternative: {alternative!r}; use 'two-sided', 'less' or 'greater'")
    if method not in ("auto", "exact", "asymp"):
        raise InputError(f"Invalid value for method: {method!r}; use 'auto', 'exact' or 'asymp'")
    if nan_policy not in ("propagate", "omit", "raise"):
        raise InputError(f"nan_policy must be one of 'propagate', 'omit', 'raise'; got {nan_policy!r}")
    return full


def _fill(
    out: npt.NDArray[np.float64],
    samples: Samples,
    alternative: str,
    method: str,
    nan_policy: str,
    messages: dict[str, type[Warning]],
) -> None:
    """Fill ``out``: statistic, pvalue, log_pvalue, location, sign by row; NaN stays where there is none."""
    x, y, scalar = samples.x, samples.y, samples.lead == ()
    every = np.arange(len(x))
    if samples.keep_x is None or samples.keep_y is None:
        keep_x, keep_y = None, None
        has_nan = _fill_rows(out, every, x, y, alternative, method, messages)
    else:
        keep_x, keep_y = samples.keep_x, samples.keep_y
        bad = (torch.isnan(x) & keep_x).any(1) | (torch.isnan(y) & keep_y).any(1)
        has_nan = bad.cpu().numpy()
    if has_nan.any() and nan_policy == "raise":
        raise InputError("The input contains nan values")
    again = every[has_nan] if keep_x is None else every if nan_policy == "omit" else every[~has_nan]
    if not len(again) or (keep_x is None and nan_policy == "propagate"):
        return
    chosen = torch.from_numpy(again).to(x.device)
    x, y = x[chosen], y[chosen]
    keep_x = torch.ones_like(x, dtype=torch.bool) if keep_x is None else keep_x[chosen]
    keep_y = torch.ones_like(y, dtype=torch.bool) if keep_y is None else keep_y[chosen]
    omit = nan_policy == "omit" and bool(has_nan.any())
    if omit:
        keep_x, keep_y = keep_x & ~torch.isnan(x), keep_y & ~torch.isnan(y)
    if _fill_ragged(out, again, x, y, keep_x, keep_y, alternative, method, messages):
        if omit:
            messages[_TOO_SMALL_OMIT if scalar else _TOO_SMALL_ND_OMIT] = small_sample_warning()
        elif scalar:  # scipy says nothing about single rows of a masked array
            messages[_TOO_SMALL] = small_sample_warning()


def _fill_ragged(
    out: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    x: Tensor,
    y: Tensor,
    keep_x: Tensor,
    keep_y: Tensor,
    alternative: str,
    method: str,
    messages: dict[str, type[Warning]],
) -> bool:
    """The same where values are left out: one batch per pair of sizes. True if a sample was empty."""
    sizes = torch.stack([keep_x.sum(1), keep_y.sum(1)], dim=1)
    found_empty = False
    for n, m in torch.unique(sizes, dim=0).tolist():
        members = torch.nonzero((sizes[:, 0] == n) & (sizes[:, 1] == m))[:, 0]
        if n == 0 or m == 0:
            found_empty = True
            continue
        dense_x = x[members][keep_x[members]].reshape(-1, n)
        dense_y = y[members][keep_y[members]].reshape(-1, m)
        _fill_rows(out, rows[members.cpu().numpy()], dense_x, dense_y, alternative, method, messages)
    return found_empty


def _fill_rows(
    out: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    x: Tensor,
    y: Tensor,
    alternative: str,
    method: str,
    messages: dict[str, type[Warning]],
) -> npt.NDArray[np.bool_]:
    """The test of x [R, n] against y [R, m], n, m > 0, into ``out[:, rows]``. Returns which rows hold NaN."""
    n, m = x.shape[1], y.shape[1]
    plus, minus, plus_at, minus_at, flags = (result.cpu().numpy() for result in ops.ks_rows(x, y))
    has_nan = (flags & HAS_NAN) != 0
    below = np.full(len(rows), alternative == "less")
    if alternative == "two-sided":
        below = minus > plus
        tied = np.flatnonzero((minus == plus) & (plus > 0))
        if len(tied):
            # scipy compares the two in floating point, where equal fractions may differ in the last bit.
            at = torch.from_numpy(tied).to(x.device)
            below[tied] = -_gap(x[at], y[at], minus_at[tied]) > _gap(x[at], y[at], plus_at[tied])
    counts = np.where(below, minus, plus)[~has_nan]
    resolved, fallback = resolve_method(n, m, alternative, method, certain=not counts.any())
    if fallback is not None and counts.size:
        messages[fallback] = RuntimeWarning
    p, log_p = null_pvalues(counts, n, m, alternative, resolved)
    good = rows[~has_nan]
    out[0, good] = counts / math.lcm(n, m)
    out[1, good], out[2, good] = p, log_p
    out[3, good] = np.where(below, minus_at, plus_at)[~has_nan]
    out[4, good] = np.where(below, -1.0, 1.0)[~has_nan]
    return has_nan


def _gap(x: Tensor, y: Tensor, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F_x - F_y at one value per row, rounded as scipy rounds it."""
    level = torch.from_numpy(at).to(x.device)[:, None]
    counts = ((x <= level).sum(1), (y <= level).sum(1))
    fx, fy = (c.cpu().numpy() / size for c, size in zip(counts, (x.shape[1], y.shape[1]), strict=True))
    return fx - fy


def _result(out: npt.NDArray[np.float64], samples: Samples, shape: tuple[int, ...], scalar: bool) -> KsResult:
    statistic, p, log_p, location, sign = out
    typed_location: Any = location
    if samples.ranked_values is not None:
        known = ~np.isnan(location)
        found = samples.ranked_values[np.where(known, location, 0).astype(np.int64)]
        typed_location = found if known.all() else np.where(known, found.astype(np.float64), np.nan)
    parts: list[Any] = [statistic, p, typed_location, sign, log_p]
    if samples.tensors:
        parts = [torch.from_numpy(np.array(v, dtype=np.float64)).reshape(shape).to(samples.device) for v in parts]
    elif scalar:
        if not np.isnan(location[0]):
            parts[2], parts[3] = parts[2].astype(samples.dtype), sign.astype(np.int8)
        parts = [v.reshape(shape)[()] for v in parts]
    else:
        parts = [v.astype(np.float64).reshape(shape) for v in parts]
    statistic, p, typed_location, sign, log_p = parts
    return KsResult(statistic, p, statistic_location=typed_location, statistic_sign=sign, log_pvalue=log_p)
