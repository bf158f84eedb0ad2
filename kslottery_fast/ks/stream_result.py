"""The result of a KS test of samples that come in chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from kslottery_fast.base.caller import warn_caller

from .null import _compute, null_pvalues, resolve_method
from .small_samples import small_sample_warning
from .standing import MINUS, PLUS, Place, Standing
from .twosample import KsResult
from .value_keys import number_of_key

if TYPE_CHECKING:
    from .accumulator import KsAccumulator

_LARGEST = 1 << 63
_TOO_SMALL = "too small; all returned values will be NaN. See documentation for sample size requirements."


class KsStreamResult(KsResult):
    """What :func:`kslottery_fast.ks_stream` returns: a :class:`kslottery_fast.KsResult` of scalars, and how it came about.

    Attributes
    ----------
    statistic, pvalue, statistic_location, statistic_sign, log_pvalue
        As in :class:`kslottery_fast.KsResult`.
    n, m : int
        How many values were tested, without NaN.
    missing : tuple of two int
        How many NaN there are in x and in y.
    passes : int
        How many passes over the samples were made.
    bounds : tuple of two float
        D lies between them. They are equal if D is known.
    exact : bool
        Whether D and its place are known. If not, ``statistic`` is the lower bound, and the p-value that of the lower
        bound, so that the p-value of D is not larger.

    Examples
    --------
    >>> from kslottery_fast import ks_stream
    >>> result = ks_stream([[1.0, 2.0], [3.0]], [[4.0, 5.0, 6.0]])
    >>> float(result.statistic), result.n, result.m, result.passes, result.exact
    (1.0, 3, 3, 1, True)
    """

    n: int
    m: int
    missing: tuple[int, int]
    passes: int
    bounds: tuple[float, float]
    exact: bool

    def __new__(
        cls,
        statistic: Any,
        pvalue: Any,
        *,
        n: int,
        m: int,
        missing: tuple[int, int],
        passes: int,
        bounds: tuple[float, float],
        exact: bool,
        **others: Any,
    ) -> Self:
        self = super().__new__(cls, statistic, pvalue, **others)
        self.n, self.m, self.missing = n, m, missing
        self.passes, self.bounds, self.exact = passes, bounds, exact
        return self


def empty_result(seen: KsAccumulator, omitted: bool) -> KsStreamResult:
    """Return the result where a sample is empty, which is warned of, or holds NaN that count."""
    nan = np.float64("nan")
    if 0 in seen.sizes and (omitted or not any(seen.missing)):
        after = "After omitting NaNs, one" if omitted else "One"
        warn_caller(f"{after} or more sample arguments is {_TOO_SMALL}", small_sample_warning())
    values = {"statistic_location": nan, "statistic_sign": nan, "log_pvalue": nan}
    return KsStreamResult(nan, nan, **values, **_about(seen, (float(nan), float(nan)), True))


def make_result(
    seen: KsAccumulator, standing: Standing, alternative: str, method: str, dtype: np.dtype[Any] | None
) -> KsStreamResult:
    """Return the result of two samples that have values."""
    n, m = standing.sizes
    place, sign = _winner(standing)
    resolved, fallback = resolve_method(n, m, alternative, method, certain=standing.low == 0)
    if fallback is not None:
        warn_caller(fallback, RuntimeWarning)
    statistic, p, log_p = _values(standing.low, n, m, alternative, resolved)
    exact = standing.left is None
    location: Any = np.float64("nan")
    if place is not None:
        number = number_of_key(*place.key)
        location = np.dtype(np.float64 if dtype is None else dtype).type(number)
    bounds = (standing.low / standing.sizes.lcm, standing.high / standing.sizes.lcm)
    values = {"statistic_location": location, "statistic_sign": np.int8(sign), "log_pvalue": log_p}
    return KsStreamResult(statistic, p, **values, **_about(seen, bounds, exact))


def _about(seen: KsAccumulator, bounds: tuple[float, float], exact: bool) -> dict[str, Any]:
    n, m = seen.sizes
    return {"n": n, "m": m, "missing": seen.missing, "passes": seen.passes, "bounds": bounds, "exact": exact}


def _winner(standing: Standing) -> tuple[Place | None, int]:
    """Return the place of D, if it is known, and the side on which it is."""
    best = [side for side in standing.sides if standing.lows[side] == standing.low]
    places = standing.places
    side = best[0]
    if len(best) == 2 and standing.low > 0 and PLUS in places and MINUS in places:
        # scipy compares the two in floating point, where equal fractions may differ in the last bit.
        side = MINUS if -places[MINUS].gap > places[PLUS].gap else PLUS
    place = places.get(side)
    return (place if place is not None and place.count == standing.low else None), side


def _values(count: int, n: int, m: int, alternative: str, method: str) -> tuple[Any, Any, Any]:
    """Return D, p and log p."""
    lcm = math.lcm(n, m)
    if lcm < _LARGEST:
        counts = np.array([count], dtype=np.int64)
        p, log_p = null_pvalues(counts, n, m, alternative, method)
        return (counts / lcm)[0], p[0], log_p[0]
    # Counts beyond int64 need samples of thousands of millions of values, where p-values are asymptotic and smooth.
    p, log_p = _compute(np.array([float(count)]), n, m, alternative != "two-sided", "asymp")  # type: ignore[arg-type]
    return np.float64(count / lcm), p[0], log_p[0]
