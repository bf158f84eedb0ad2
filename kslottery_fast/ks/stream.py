"""``ks_stream``: the KS test of samples that are larger than memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor
from torch.nn import Module

from kslottery_fast.base.arguments import check_choice, check_integer, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError

from .accumulator import METHODS, Alternative, KsAccumulator, NanPolicy
from .dask_stream import count_chunk, count_partitions, is_dask
from .samples import Sample
from .stream_dates import clock_of, common_clock
from .stream_result import KsStreamResult

Chunks: TypeAlias = Callable[[], Iterable[Sample]] | Iterable[Sample] | Sample
"""Something that gives the chunks of a sample anew for every pass."""

_SLICE = 1 << 22  # values of an array that are counted at a time
_LARGEST = 4  # times as many are read together if they are stored together
_AGAIN = (
    "it can be read only once, and D needs two or three passes: give a function that returns a new iterator, as in "
    "ks_stream(lambda: chunks_of(file), ...), or max_passes=1 for bounds of D"
)


def ks_stream(
    x_chunks: Chunks,
    y_chunks: Chunks,
    alternative: Alternative = "two-sided",
    method: Literal["auto", "exact", "asymp"] = "auto",
    *,
    nan_policy: NanPolicy = "propagate",
    max_passes: int = 8,
    buckets: int = 1 << 18,
    keep: int = 1 << 20,
) -> KsStreamResult:
    """Two-sample KS test of samples of any size, in a few megabytes of memory. The result is that of ``ks_2samp``.

    The chunks are read two or three times in most cases, and once where the samples have few distinct values.

    Parameters
    ----------
    x_chunks, y_chunks : function, iterable, array or Dask collection
        The chunks of a sample: arrays or tensors of real numbers, dates or durations. A function is called without
        arguments for every pass and returns an iterable of chunks. Any other iterable must give its chunks anew each
        time, as a list does. A single array is cut into chunks. One that lies on disk, such as a ``numpy.memmap``, an
        h5py dataset or a zarr array, is read in pieces. The partitions of a Dask array, or of a column of a Dask
        dataframe, are counted by its workers, and their counts are merged in a tree.
    alternative, method, nan_policy
        As for :func:`kslottery_fast.ks_2samp`.
    max_passes : int
        After so many passes, the result is what is known by then. With 1, iterators that can be read once are taken.
    buckets, keep : int
        As for :class:`kslottery_fast.KsAccumulator`.

    Returns
    -------
    KsStreamResult
        Exactly the statistic, location and sign of :func:`kslottery_fast.ks_2samp`, and its p-value to rounding.
        ``passes`` says how many passes were made. ``exact`` is False if ``max_passes`` was too small. Then
        ``statistic`` is a lower bound, and ``bounds`` has both.

    Raises
    ------
    InputError
        An unknown option, an iterator that can be read once, values that differ between the passes, or NaN with
        ``nan_policy="raise"``.
    TypeError
        Chunks that are not real numbers.

    Warns
    -----
    RuntimeWarning
        D or its place is not known exactly, or the exact p-value cannot be computed.

    Notes
    -----
    No method with little memory finds D in a few passes if n * D is small, as for a sample and a slightly rounded copy
    of itself: nearly every value matters then. Each further pass looks at ``keep`` values. The bounds are close long
    before, and so is the p-value.

    Examples
    --------
    >>> import numpy as np
    >>> def chunks(seed, shift):
    ...     rng = np.random.default_rng(seed)
    ...     return (rng.normal(shift, size=10_000) for _ in range(20))
    >>> result = ks_stream(lambda: chunks(0, 0.0), lambda: chunks(1, 0.01))
    >>> round(float(result.statistic), 5), result.exact
    (0.00386, True)
    """
    check_integer(max_passes, "max_passes", 1)
    check_choice(method, METHODS, "method")
    seen = KsAccumulator(alternative, nan_policy=nan_policy, buckets=buckets, keep=keep)
    seen._kind = common_clock(clock_of(x_chunks), clock_of(y_chunks))  # a column of a table may have a finer unit
    sources = [_source(x_chunks, "x_chunks", max_passes), _source(y_chunks, "y_chunks", max_passes)]
    while True:
        for side, source in enumerate(sources):
            source(seen, side)
        following = seen.refined() if max_passes > 1 or seen.passes > 1 else None
        if following is None or seen.passes >= max_passes:
            break
        seen = following
    result = seen.result(method)
    if not result.exact:
        low, high = result.bounds
        remedy = "; a larger keep or max_passes finds it" if max_passes > 1 else ""
        passes = "one pass" if result.passes == 1 else f"{result.passes} passes"
        known = f"between {low:.9g} and {high:.9g}" if low < high else f"{low:.9g}, but its place is not known"
        warn_caller(f"after {passes}, D is known to be {known}{remedy}")
    return result


Source: TypeAlias = Callable[[KsAccumulator, int], None]


def _source(chunks: Any, name: str, max_passes: int) -> Source:
    """Return a function that counts all chunks of a sample."""
    if is_dask(chunks):
        return lambda seen, side: count_partitions(seen, side, chunks, name)
    if isinstance(chunks, Tensor) or (hasattr(chunks, "__array__") and not isinstance(chunks, type)):
        return lambda seen, side: _count(seen, side, name, _cut(chunks))
    if isinstance(chunks, Iterator) and max_passes > 1:
        raise InputError(f"{name} is {shown(chunks)}: {_AGAIN}")
    if callable(chunks) and not isinstance(chunks, (type, Module)) and not hasattr(chunks, "__len__"):
        return lambda seen, side: _count(seen, side, name, _called(chunks, name))
    if isinstance(chunks, (str, bytes, dict)) or not isinstance(chunks, Iterable):
        raise TypeError(f"{name} is {shown(chunks)}: expected chunks, or a function that returns an iterable of chunks")
    return lambda seen, side: _count(seen, side, name, chunks)


def _called(chunks: Callable[[], Any], name: str) -> Iterable[Any]:
    given = chunks()
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        raise TypeError(f"{name} returns {shown(given)}: expected an iterable of chunks")
    return given


def _cut(array: Any) -> Iterator[Any]:
    if _is_on_disk(array):
        yield from _pieces(array, ())
        return
    if hasattr(array, "to_numpy") and len(getattr(array, "shape", (0,))) == 1:
        # A column, whose parts are read as chunks are: numpy makes objects of dates with a time zone.
        column = array.iloc if hasattr(type(array), "iloc") else array
        yield from (column[start : start + _SLICE] for start in range(0, len(array), _SLICE))
        return
    flat = array.reshape(-1) if isinstance(array, Tensor) else np.ravel(array, order="K")  # "K": no copy of a file
    yield from (flat[start : start + _SLICE] for start in range(0, len(flat), _SLICE))


def _is_on_disk(array: Any) -> bool:
    """Tell whether an array is read as it is indexed, as those of h5py and zarr. A column of pandas is in memory."""
    if isinstance(array, (np.ndarray, np.generic, Tensor)) or hasattr(array, "to_numpy"):
        return False
    return hasattr(type(array), "__getitem__") and isinstance(getattr(array, "shape", None), tuple)


def _pieces(array: Any, place: tuple[slice, ...]) -> Iterator[Any]:
    """Read an array in pieces along one axis, and along the next one where a piece would be too large.

    Pieces end where the chunks of the array end: reading a part of a compressed one costs as much as all of it.
    """
    axis, shape, stored = len(place), array.shape, getattr(array, "chunks", None)
    if not shape:
        yield np.asarray(array[()])
        return
    least = max(1, min(stored[axis], shape[axis])) if stored else 1
    size = least * math.prod(taken.stop - taken.start for taken in place) * math.prod(shape[axis + 1 :])
    if axis + 1 < len(shape) and size > (_LARGEST * _SLICE if stored else _SLICE):
        for start in range(0, shape[axis], least):
            yield from _pieces(array, (*place, slice(start, min(start + least, shape[axis]))))
        return
    step = max(1, _SLICE // max(1, size)) * least
    for start in range(0, shape[axis], step):
        yield np.asarray(array[(*place, slice(start, start + step))])


def _count(seen: KsAccumulator, side: int, name: str, chunks: Iterable[Any]) -> None:
    for number, chunk in enumerate(chunks):
        count_chunk(seen, side, chunk, f"{name}: chunk {number}")
