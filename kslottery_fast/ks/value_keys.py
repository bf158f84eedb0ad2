"""Order-preserving keys of numbers: unsigned integers that are in order, and equal, exactly where the numbers are.

A float is a float64 first. Its key ``high`` is a uint64, as in csrc/ks_buckets.h. An integer beyond 2^53 may lie
between two floats. Its ``high`` is the key of the largest float64 that is not above it, and ``low`` is the rest, in
0..2047. For every other number ``low`` is 0. So integers and floats of all dtypes are compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown

from .columns import as_array
from .samples import check_dense

Keys: TypeAlias = npt.NDArray[np.uint64]
Numbers: TypeAlias = npt.NDArray[Any]

LOW_BITS = 11  # floats below 2^64 are at most 2^11 apart
_SIGN = np.uint64(1 << 63)
_MAGNITUDE = np.uint64((1 << 63) - 1)
_EXACT = 1 << 53
_BLOCK = 1 << 16  # values that are converted at a time


def read_numbers(values: Any, name: str) -> Numbers:
    """Return the numbers of a chunk as a one-dimensional array, without those that a masked array hides.

    Dates and durations are returned as they are. Missing numbers are NaN.

    Raises
    ------
    InputError
        A ragged list, a tensor without numbers (meta), or numbers too long for float64.
    TypeError
        Not real numbers, or a type that is wider than float64.
    """
    if isinstance(values, Tensor):
        check_dense(values, name)
        tensor = values.detach().cpu()
        if tensor.is_floating_point() and tensor.dtype not in (torch.float64, torch.float16):
            tensor = tensor.to(torch.float32)  # numpy has no bfloat16
        array = tensor.numpy()
    elif values is None or isinstance(values, (str, bytes, dict, torch.nn.Module)):
        raise TypeError(f"{name} is {shown(values)}: expected an array or a list of numbers")
    else:
        array = as_array(values.compressed() if isinstance(values, np.ma.MaskedArray) else values, name)
    if array.dtype.kind not in "fiubMm":
        raise TypeError(f"{name} has dtype {array.dtype}: expected real numbers, as from .astype(float)")
    if array.dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {array.dtype}: expected at most float64, as from .astype(float)")
    return array.reshape(-1)


def blocks_of(numbers: Numbers) -> Iterator[tuple[Numbers, Keys | None]]:
    """Yield the numbers in pieces: as contiguous float64 or float32 and None, or as keys ``(high, low)`` if needed.

    Numbers that are contiguous floats already are one piece, without a copy.
    """
    if numbers.dtype in (np.float64, np.float32) and numbers.flags.c_contiguous and numbers.flags.aligned:
        yield numbers, None
        return
    for start in range(0, numbers.size, _BLOCK):
        block = numbers[start : start + _BLOCK]
        if block.dtype.itemsize == 8 and block.dtype.kind in "iu" and _is_wide(block):
            yield _wide_keys(block.astype(block.dtype.newbyteorder("=")))
        else:
            yield block.astype(np.float32 if block.dtype == np.float32 else np.float64), None


def float_keys(numbers: Numbers) -> Keys:
    """Return the keys of floats. -0 and +0 share one, and that of NaN means nothing."""
    bits = numbers.astype(np.float64).view(np.uint64)
    return np.where(bits & _SIGN, _SIGN - (bits & _MAGNITUDE), _SIGN + bits)


def number_of_key(high: int, low: int) -> float | int:
    """Return the number with this key: a float, or an integer if it is beyond the floats."""
    sign = 1 << 63
    bits = high - sign if high >= sign else sign | (sign - high)
    number = float(np.array(bits, dtype=np.uint64).view(np.float64))
    return int(number) + low if low else number


def _is_wide(block: Numbers) -> bool:
    return bool((block > _EXACT).any() or (block < -_EXACT).any())


def _wide_keys(block: Numbers) -> tuple[Keys, Keys]:
    """Return the keys of int64 or uint64 values of any size."""
    largest = np.nextafter(2.0**63 if block.dtype.kind == "i" else 2.0**64, 0)
    below = np.minimum(block.astype(np.float64), largest)  # the largest integers are rounded to 2^63 or 2^64
    above = below.astype(block.dtype) > block
    below[above] = np.nextafter(below[above], -np.inf)
    return float_keys(below), (block - below.astype(block.dtype)).astype(np.uint64)
