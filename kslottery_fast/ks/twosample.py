"""``ks_2samp``: scipy's two-sample Kolmogorov-Smirnov test for many rows at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from kslottery_fast import ops
from kslottery_fast.base.arguments import check_choice, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops.schemas import HAS_NAN

from .joining import check_atol, join_close
from .null import Floats, Integers, null_pvalues, resolve_method
from .old_names import renamed
from .ragged import Ragged, ragged
from .samples import UNNAMED, Sample, Samples, gather_samples
from .small_samples import small_sample_warning

_ALTERNATIVES = {"t": "two-sided", "g": "greater", "l": "less"}
_SIDES = {"two-sided": "larger", "greater": "plus", "less": "minus"}
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
    pvalue : float64 scalar, array or tensor
        P(statistic at least this large) if both samples come from one continuous distribution.
    statistic_location : scalar, array or tensor
        The sample value at which the statistic is found. A scalar has the promoted dtype of the samples.
    statistic_sign : scalar, array or tensor
        +1 if the empirical distribution function of ``data1`` exceeds that of ``data2`` there, otherwise -1. A scalar
        is an int8.
    log_pvalue : float64 scalar, array or tensor
        Natural logarithm of the p-value. It is right even where ``pvalue`` underflows to 0.

    Examples
    --------
    >>> statistic, pvalue = ks_2samp([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    >>> float(statistic), round(float(pvalue), 3)
    (1.0, 0.1)
    """

    statistic_location: Any
    statistic_sign: Any
    log_pvalue: Any

    def __new__(
        cls, statistic: Any, pvalue: Any, *, statistic_location: Any, statistic_sign: Any, log_pvalue: Any
    ) -> Self:
        self = super().__new__(cls, statistic, pvalue)
        self.statistic_location = statistic_location
        self.statistic_sign = statistic_sign
        self.log_pvalue = log_pvalue
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The arguments with which copy and pickle make the result again."""
        return tuple(self), dict(vars(self))

    def _asdict(self) -> dict[str, Any]:
        """All fields, as scipy's result gives them, and ``log_pvalue``."""
        return {"statistic": self.statistic, "pvalue": self.pvalue, **vars(self)}

    def _replace(self, **fields: Any) -> Self:
        return type(self)(**{**self._asdict(), **fields})

    def __repr__(self) -> str:
        return f"KsResult({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


@renamed({"x": "data1", "y": "data2", "mode": "method"}, silently=["mode"])  # scipy takes mode silently too
def ks_2samp(
    data1: Sample,
    data2: Sample,
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
    method: Literal["auto", "exact", "asymp"] = "auto",
    *,
    axis: int | Sequence[int] | None = UNNAMED,
    nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
    keepdims: bool = False,
    atol: float = 0.0,
) -> KsResult:
    """Two-sample Kolmogorov-Smirnov test along an axis: ``scipy.stats.ks_2samp`` for all rows at once.

    The arguments, numbers, warnings and rules are those of scipy 1.17, with these differences. Samples of two or more
    dimensions need an ``axis``. Tensors are taken as well. If scipy warns once per row, there is one warning. If n = m
    and p is 1, rounding may take scipy's sum above 1. Then scipy warns and returns the asymptotic value. This function
    returns 1. And ``method="exact"`` is exact for one-sided tests of unequal sizes where scipy falls back.

    Parameters
    ----------
    data1, data2 : tensor or array_like
        Samples of shape [..., n] and [..., m] if they lie along the last axis. n and m may differ, and the other
        dimensions broadcast. Any float, integer or bool dtype. Values are compared exactly, and infinities are values
        like any other. Masked values are left out. Dates and durations are compared exactly too, and NaT counts as NaN.
        Columns of pandas may be nullable, and objects may be numbers. Their missing values count as NaN. Decimals of
        up to 15 digits, in the range of floats, count as their nearest floats, which are in the same order.
    alternative : {"two-sided", "less", "greater"}
        With F and G the distribution functions of ``data1`` and ``data2``, "less" uses D- = sup(G - F), "greater" uses
        D+ = sup(F - G), and "two-sided" uses D = max(D+, D-). As in scipy, the first letter decides.
    method : {"auto", "exact", "asymp"}
        "auto" is exact up to max(n, m) = 10,000. Like scipy, it falls back to "asymp", with a RuntimeWarning, in
        one-sided tests of unequal sizes with more lattice paths than float64 can count. "exact" is exact there too. It
        falls back only where n m / gcd(n, m)^2 reaches 2^31. As in scipy, this argument may also be called ``mode``,
        without a warning. New code should call it ``method``.
    axis : int, sequence of int, or None
        The axis of the samples. ``axis=0`` gives what scipy gives by default. ``axis=-1`` tests row against row. None
        tests all values of ``data1`` against all values of ``data2``. Samples of one dimension need no axis. For others
        there is no default, because version 0.1 and scipy have different ones.
    nan_policy : {"propagate", "omit", "raise"}
        What NaN in a row does: give NaN as result, be left out, or raise InputError.
    keepdims : bool
        Keep the reduced axes with size 1.
    atol : float
        Values that lie at most this far apart become ties. That is for numbers that only rounding tells apart, such as
        0.2 - 0.1 and 0.3 - 0.2. The values of both samples are sorted together. Neighbours whose difference, in
        float64, is at most ``atol`` belong to one group. So a group is a chain, and may be wider than ``atol`` as a
        whole. Each value counts as the largest of its group. By default values are compared exactly.

    Returns
    -------
    KsResult
        Float64 tensors if one of the samples is a tensor. Otherwise numpy arrays, and scalars for 1-D samples. An empty
        sample gives NaN and scipy's SmallSampleWarning.

    Raises
    ------
    InputError
        An unknown option, a negative ``atol``, no ``axis`` for samples of two or more dimensions, shapes that do not
        broadcast, or NaN with ``nan_policy="raise"``. InputError is a ValueError.
    TypeError
        Samples that are not real numbers, or dates with numbers.

    Warns
    -----
    RuntimeWarning
        The exact p-value cannot be computed, or a sample is empty.
    DeprecationWarning
        The samples by their former names ``x`` and ``y``.

    Examples
    --------
    >>> import numpy as np, scipy.stats
    >>> rng = np.random.default_rng(0)
    >>> before, after = rng.normal(size=(3, 50)), rng.normal(loc=[[0.0], [1.0], [2.0]], size=(3, 60))
    >>> result = ks_2samp(before, after, axis=-1)
    >>> result.statistic.shape
    (3,)
    >>> expected = [scipy.stats.ks_2samp(before[row], after[row]).pvalue for row in range(3)]
    >>> bool(np.allclose(result.pvalue, expected, rtol=1e-10, atol=0))
    True
    """
    full = _check_options(alternative, method, nan_policy, keepdims)
    tolerance = check_atol(atol)
    samples = gather_samples(data1, data2, axis)
    if tolerance > 0:
        samples = join_close(samples, tolerance)
    rows = len(samples.x)
    test = _Test(full, method, nan_policy, *np.full((5, rows), np.nan))
    if 0 in (samples.x.shape[1], samples.y.shape[1]):
        if rows:
            test.messages[_TOO_SMALL if samples.scalar else _TOO_SMALL_ND] = small_sample_warning()
    elif rows:
        _fill(test, samples)
    for message, category in test.messages.items():
        warn_caller(message, category)
    return _result(test, samples, samples.kept_shape if keepdims else samples.lead)


def _check_options(alternative: Any, method: Any, nan_policy: Any, keepdims: Any) -> str:
    full = _ALTERNATIVES.get(alternative[:1].lower()) if isinstance(alternative, str) else None
    if full is None:
        raise InputError(f"alternative is {shown(alternative)}: expected 'two-sided', 'less' or 'greater'")
    check_choice(method, ("auto", "exact", "asymp"), "method")
    check_choice(nan_policy, ("propagate", "omit", "raise"), "nan_policy")
    if not isinstance(keepdims, (bool, np.bool_)):
        raise TypeError(f"keepdims is {shown(keepdims)}: expected True or False")
    return full


@dataclass
class _Test:
    """One call: its options, what it found in each row, and its warnings.

    Each result is float64 [R]. It stays NaN for rows without a result.
    """

    alternative: str
    method: str
    nan_policy: str
    statistic: Floats
    pvalue: Floats
    log_pvalue: Floats
    location: Floats
    sign: Floats
    messages: dict[str, type[Warning]] = field(default_factory=dict)


def _fill(test: _Test, samples: Samples) -> None:
    """Test all rows."""
    x, y, keep_x, keep_y = samples.x, samples.y, samples.keep_x, samples.keep_y
    every = np.arange(len(x))
    if keep_x is None or keep_y is None:
        has_nan = _fill_rows(test, every, x, y)
        again = every[has_nan] if test.nan_policy == "omit" else every[:0]
    else:
        bad = (torch.isnan(x) & keep_x).any(1) | (torch.isnan(y) & keep_y).any(1)
        has_nan = bad.cpu().numpy()
        again = every if test.nan_policy == "omit" else every[~has_nan]
    if has_nan.any() and test.nan_policy == "raise":
        raise InputError("The input contains nan values")
    if not len(again):
        return
    omit = test.nan_policy == "omit" and bool(has_nan.any())
    found_empty = _fill_ragged(test, again, ragged(x, keep_x, again, omit), ragged(y, keep_y, again, omit))
    if found_empty and omit:
        test.messages[_TOO_SMALL_OMIT if samples.scalar else _TOO_SMALL_ND_OMIT] = small_sample_warning()
    elif found_empty and samples.scalar:  # scipy does not warn about single rows of a masked array
        test.messages[_TOO_SMALL] = small_sample_warning()


def _fill_ragged(test: _Test, rows: Integers, x: Ragged, y: Ragged) -> bool:
    """Test rows where values are left out, in one batch per pair of sizes. Return whether a sample was empty."""
    n, m = x.sizes(), y.sizes()
    pairs, which = np.unique(n * (int(m.max()) + 1) + m, return_inverse=True)
    found_empty = False
    for number in range(len(pairs)):
        members = np.flatnonzero(which == number)
        size, other = int(n[members[0]]), int(m[members[0]])
        if size == 0 or other == 0:
            found_empty = True
            continue
        _fill_rows(test, rows[members], x.dense(members, size), y.dense(members, other))
    return found_empty


def _fill_rows(test: _Test, rows: Integers, x: Tensor, y: Tensor) -> npt.NDArray[np.bool_]:
    """Test x [R, n] against y [R, m], n, m > 0, and write into ``rows`` of the results. Return which rows hold NaN."""
    n, m = x.shape[1], y.shape[1]
    found = ops.ks_rows(x, y, _SIDES[test.alternative])
    plus, minus, plus_at, minus_at, flags = (result.cpu().numpy() for result in found)
    has_nan = (flags & HAS_NAN) != 0
    below = minus > plus if test.alternative == "two-sided" else np.full(len(rows), test.alternative == "less")
    counts = np.where(below, minus, plus)[~has_nan]
    resolved, fallback = resolve_method(n, m, test.alternative, test.method, certain=not counts.any())
    if fallback is not None and counts.size:
        test.messages[fallback] = RuntimeWarning
    good = rows[~has_nan]
    test.statistic[good] = counts / math.lcm(n, m)
    test.pvalue[good], test.log_pvalue[good] = null_pvalues(counts, n, m, test.alternative, resolved)
    test.location[good] = np.where(below, minus_at, plus_at)[~has_nan]
    test.sign[good] = np.where(below, -1.0, 1.0)[~has_nan]
    return has_nan


def _result(test: _Test, samples: Samples, shape: tuple[int, ...]) -> KsResult:
    location: Any = test.location
    known = ~np.isnan(location)
    if samples.ranked_values is not None and samples.ranked_values.size:
        found = samples.ranked_values[np.where(known, location, 0).astype(np.int64)]
        if found.dtype.kind in "Mm":
            location = np.where(known, found, np.array("NaT", found.dtype))
        else:
            location = found if known.all() else np.where(known, found.astype(np.float64), np.nan)
    parts: list[Any] = [test.statistic, test.pvalue, location, test.sign, test.log_pvalue]
    if samples.tensors:
        parts = [torch.from_numpy(np.array(v, dtype=np.float64)).reshape(shape).to(samples.device) for v in parts]
    elif samples.scalar:
        if known[0]:
            parts[2], parts[3] = location.astype(samples.dtype), test.sign.astype(np.int8)
        parts = [v.reshape(shape)[()] for v in parts]
    else:
        parts = [(v if v.dtype.kind in "Mm" else v.astype(np.float64)).reshape(shape) for v in parts]
    statistic, p, location, sign, log_p = parts
    return KsResult(statistic, p, statistic_location=location, statistic_sign=sign, log_pvalue=log_p)
