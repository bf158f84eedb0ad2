"""The result of a KS test of samples that come in chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy  # scipy.special is imported when it is first used
from typing_extensions import Self

from kslottery_fast.base.caller import warn_caller

from .null import null_pvalues, resolve_method
from .small_samples import small_sample_warning
from .standing import MINUS, PLUS, Place, Standing
from .stream_dates import Clock, Kind, date_of
from .twosample import KsResult
from .value_keys import number_of_key

if TYPE_CHECKING:
    from .accumulator import KsAccumulator

_LARGEST_COUNT = 1 << 63  # counts are int64 below
_LARGEST_SIZE = 1 << 31  # effective sizes n * m / (n + m) are a C int in scipy
_TINY = 1e-280
_TOO_SMALL = "too small; all returned values will be NaN. See documentation for sample size requirements."


class KsStreamResult(KsResult):
    """What :func:`kslottery_fast.ks_stream` returns: a :class:`kslottery_fast.KsResult` and how it came about.

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


def empty_result(seen: KsAccumulator, omitted: bool, kind: Kind) -> KsStreamResult:
    """Return the result where a sample is empty, which is warned of, or holds NaN that count."""
    nan = np.float64("nan")
    if 0 in seen.sizes and (omitted or not any(seen.missing)):
        after = "After omitting NaNs, one" if omitted else "One"
        warn_caller(f"{after} or more sample arguments is {_TOO_SMALL}", small_sample_warning())
    values: dict[str, Any] = {"statistic_location": _nowhere(kind), "statistic_sign": nan, "log_pvalue": nan}
    return KsStreamResult(nan, nan, **values, **_about(seen, (float(nan), float(nan)), True))


def make_result(seen: KsAccumulator, standing: Standing, alternative: str, method: str, kind: Kind) -> KsStreamResult:
    """Return the result of two samples that have values. ``kind`` tells what they are."""
    n, m = standing.sizes
    place, sign = _winner(standing)
    resolved, fallback = resolve_method(n, m, alternative, method, certain=standing.low == 0)
    if fallback is not None:
        warn_caller(fallback, RuntimeWarning)
    statistic, p, log_p = _values(standing.low, n, m, alternative, resolved)
    exact = standing.left is None
    location = _nowhere(kind)
    if place is not None:
        number = number_of_key(*place.key)
        if isinstance(kind, Clock):
            location = date_of(int(number), kind)
        else:
            location = np.dtype(np.float64 if kind is None else kind).type(number)
    bounds = (standing.low / standing.sizes.lcm, standing.high / standing.sizes.lcm)
    values: dict[str, Any] = {"statistic_location": location, "statistic_sign": np.int8(sign), "log_pvalue": log_p}
    return KsStreamResult(statistic, p, **values, **_about(seen, bounds, exact))


def _nowhere(kind: Kind) -> Any:
    """The location where there is none: NaN, or NaT."""
    return np.array("NaT", kind.unit)[()] if isinstance(kind, Clock) else np.float64("nan")


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
    return (place if place is not None and place.scaled == standing.low else None), side


def _values(count: int, n: int, m: int, alternative: str, method: str) -> tuple[Any, Any, Any]:
    """Return D, p and log p."""
    lcm = math.lcm(n, m)
    if lcm < _LARGEST_COUNT and n * m < _LARGEST_SIZE * (n + m):
        counts = np.array([count], dtype=np.int64)
        p, log_p = null_pvalues(counts, n, m, alternative, method)
        return (counts / lcm)[0], p[0], log_p[0]
    statistic = count / lcm
    return (np.float64(statistic), *huge_pvalue(statistic, n, m, alternative != "two-sided"))


def huge_pvalue(d: float, n: int, m: int, one_sided: bool) -> tuple[Any, Any]:
    """Return the asymptotic p-value of samples that are too large for scipy, and its natural logarithm.

    With effective sizes of 2^31 and more, kstwo of scipy 1.17 returns NaN or 1e-6 where 1e-43 is right. Here
    Kolmogorov's limit is taken, with the argument corrected by Vrbik (2018). Its relative error is below 1e-7 there.
    """
    small, large = sorted((float(n), float(m)))
    size = large / (large + small) * small
    z = math.sqrt(size) * d
    if one_sided:  # Hodges (1958), as in null.py
        log_p = -2 * z**2 - 2 * z * (large + 2 * small) / math.sqrt(large * small * (large + small)) / 3
        return np.float64(math.exp(log_p)), np.float64(log_p)
    z += 1 / (6 * math.sqrt(size)) + (z - 1) / (4 * size)
    p = min(1.0, float(scipy.special.kolmogorov(z)))
    log_p = math.log(2) - 2 * z**2 if p < _TINY else math.log(p)
    return np.float64(p), np.float64(log_p)
