"""The header of a safetensors file, checked as the safetensors library checks it, without the file behind it."""

import json
import math
from typing import Any, NamedTuple, TypeGuard

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
"""Bits of a number of each dtype. The length of other dtypes, which a newer library may write, is not checked."""


class Entry(NamedTuple):
    """A tensor as the header describes it. Its bytes are counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(text: bytes, size: int) -> dict[str, Entry]:
    """Read a header.

    Parameters
    ----------
    text : bytes
        The header, without the 8 bytes of its length.
    size : int
        How many bytes follow the header in the file.

    Returns
    -------
    dict of str to Entry

    Raises
    ------
    ValueError
        The header is damaged, or does not fit to the file. The message says why.

    Examples
    --------
    >>> text = b'{"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
    >>> read_entries(text, 24)
    {'x': Entry(dtype='F32', shape=(2, 3), begin=0, end=24)}
    >>> read_entries(text, 20)
    Traceback (most recent call last):
    ValueError: the tensors take 24 bytes and the file has 20 for them
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    content.pop("__metadata__", None)
    entries = {name: _entry(name, value) for name, value in content.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(f"tensor {name} begins at byte {entry.begin}, not at {end}")
        end = entry.end
    if end != size:
        raise ValueError(f"the tensors take {end} bytes and the file has {size} for them")
    return entries


def _entry(name: str, value: Any) -> Entry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"its header describes tensor {name} by {json.dumps(value)[:100]}")
    begin, end = offsets
    bits = math.prod(shape) * _BITS.get(dtype, 0)
    if end < begin or (dtype in _BITS and bits != 8 * (end - begin)) or max(shape, default=0) >= 1 << 62:
        raise ValueError(f"tensor {name} of dtype {dtype} and shape {shape} cannot take {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)
