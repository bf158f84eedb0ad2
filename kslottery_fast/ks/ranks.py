"""Ranks in place of values that float64 cannot hold. The KS statistic depends on their order alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_EXACT = 2**53  # every integer up to here is a float64
_HALF = 2.0**32


def needs_ranks(sample: Array) -> bool:
    """Tell whether distinct values would be ties in float64: long doubles, or integers beyond 2^53.

    >>> needs_ranks(np.array([2**60 + 1])), needs_ranks(np.array([7]))
    (True, False)
    """
    if sample.dtype.itemsize < 8 or sample.dtype.kind not in "iuf":
        return False
    if sample.dtype.kind == "f":
        return sample.dtype.itemsize > 8
    return bool(((sample > _EXACT) | (sample < -_EXACT)).any())


def dense_ranks(x: Array, y: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Array]:
    """Replace the values of two samples by their ranks in both together. NaN stays NaN.

    Returns
    -------
    x, y : array
        float64, of the shapes of the samples.
    values : array
        The value of each rank, in the promoted dtype of the samples.

    Notes
    -----
    Values of two types are compared exactly, such as int64 with uint64 or float64. Their promoted dtype is float64,
    which may round a value of ``values``.

    Examples
    --------
    >>> ranks = dense_ranks(np.array([2**60 + 1, 3]), np.array([2.0**60, np.nan]))
    >>> ranks[0].tolist(), ranks[1].tolist()
    ([2.0, 0.0], [1.0, nan])
    """
    promoted = np.result_type(x.dtype, y.dtype)
    lossy = x.dtype != y.dtype and promoted.kind == "f" and promoted.itemsize <= 8
    ranks, values = _mixed(x, y) if lossy else _alike(x, y)
    ranks[np.isnan(values)[ranks]] = -1
    found = np.where(ranks < 0, np.nan, ranks)
    return found[: x.size].reshape(x.shape), found[x.size :].reshape(y.shape), values


def _alike(x: Array, y: Array) -> tuple[npt.NDArray[np.int64], Array]:
    values, inverse = np.unique(np.concatenate([x.reshape(-1), y.reshape(-1)]), return_inverse=True)
    return inverse.reshape(-1).astype(np.int64), values


def _mixed(x: Array, y: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Sort by the nearest float64, and then by what is missing from it."""
    parts = [_nearest(x.reshape(-1)), _nearest(y.reshape(-1))]
    nearest, missing = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    order = np.lexsort((missing, nearest))
    first = np.ones(order.size, dtype=bool)
    first[1:] = (np.diff(nearest[order]) != 0) | (np.diff(missing[order]) != 0)
    first[1:] |= np.isnan(nearest[order][1:])
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.cumsum(first) - 1
    return ranks, nearest[order][first]


def _nearest(sample: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The nearest float64 of each value, and the value less that, both exact."""
    nearest = sample.astype(np.float64)
    if sample.dtype.kind not in "iu" or sample.dtype.itemsize < 8:
        return nearest, np.zeros(nearest.shape)
    upper = np.floor(nearest / _HALF)
    lower = nearest - upper * _HALF
    above = (sample >> sample.dtype.type(32)).astype(np.float64) - upper
    below = (sample & sample.dtype.type(0xFFFFFFFF)).astype(np.float64) - lower
    return nearest, above * _HALF + below
