"""Calls of the native core: as a file for tests/native/driver.cpp, and in this process through kslottery_fast._C.

Both files hold little-endian int64 (``i``), and bytes. The file of calls has their number and then, for each, a length
and the name of the function, the number of buffers with the length and the bytes of each, and the number of arguments
with two ``i`` for each: 0 and an integer (a null pointer is 0), 1 and the bits of a float64, or 2 + the number of a
buffer and a place in it. A matrix, the numbers of AdamW and the intervals of keys are given by their members. The file
of results has, for each call, how many values it has returned (0 or 1) and that value, a length and the message of the
exception (0 without one), and all buffers as they are after the call.
"""

from __future__ import annotations

import ctypes
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from kslottery_fast import _C
from kslottery_fast.ops.schemas import DTYPE_CODES, INTEGER_CODES

CODES = DTYPE_CODES | INTEGER_CODES
# Numbers that other C libraries may round differently: the logarithms of p-values.
ROUNDED = {("ks_outside_probability", 2): 1e-15}


class Matrix(NamedTuple):
    """A tensor as ksl::Matrix. A tensor alone stands for a pointer to its first element."""

    tensor: Tensor


class Members(NamedTuple):
    """A ksl::AdamW (lr, both betas, eps, weight decay, step) or ksl::KeyIntervals (five tensors, two integers)."""

    values: tuple[Any, ...]


class Call(NamedTuple):
    """A function of csrc/ksl.h and its arguments. None is a null pointer."""

    name: str
    arguments: tuple[Any, ...]


class Result(NamedTuple):
    """What a call has returned or refused, and its buffers after it, in the order of the arguments."""

    returned: list[int]
    refusal: str
    buffers: list[bytes]


def buffers_of(call: Call) -> list[Tensor]:
    """The memory that the arguments lie in, each once, as a tensor of one dimension."""
    found: dict[int, Tensor] = {}
    for tensor in _tensors(call.arguments):
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))
        found.setdefault(storage.data_ptr(), whole)
    return list(found.values())


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Matrix):
            yield argument.tensor
        elif isinstance(argument, Members):
            yield from _tensors(argument.values)
        elif isinstance(argument, Tensor):
            yield argument


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return tensor.view(torch.uint8).numpy().tobytes()


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Write the file for the driver."""
    with path.open("wb") as file:
        file.write(struct.pack("<q", len(calls)))
        for call in calls:
            _write_call(file, call)


def _write_call(file: BinaryIO, call: Call) -> None:
    buffers = buffers_of(call)
    numbers = {buffer.data_ptr(): k for k, buffer in enumerate(buffers)}
    name = call.name.encode()
    file.write(struct.pack("<q", len(name)) + name + struct.pack("<q", len(buffers)))
    for buffer in buffers:
        content = bytes_of(buffer)
        file.write(struct.pack("<q", len(content)) + content)
    flat = [_packed(argument, numbers) for argument in _flat(call.arguments)]
    file.write(struct.pack("<q", len(flat)) + b"".join(flat))


def _flat(arguments: Sequence[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, Matrix):
            tensor = argument.tensor
            yield from (tensor, *tensor.shape, *tensor.stride(), CODES[tensor.dtype])
        elif isinstance(argument, Members):
            yield from argument.values
        else:
            yield argument


def _packed(argument: Any, numbers: dict[int, int]) -> bytes:
    if isinstance(argument, Tensor):
        start = argument.untyped_storage().data_ptr()
        return struct.pack("<qq", 2 + numbers[start], argument.data_ptr() - start)
    if isinstance(argument, float):
        return struct.pack("<qd", 1, argument)
    return struct.pack("<qq", 0, argument or 0)


def read_results(path: Path, calls: Sequence[Call]) -> list[Result]:
    """Read what the driver has written."""
    file = io.BytesIO(path.read_bytes())

    def integer() -> int:
        (value,) = struct.unpack("<q", file.read(8))
        return int(value)

    results = []
    for call in calls:
        returned = [integer() for _ in range(integer())]
        refusal = file.read(integer()).decode()
        buffers = [file.read(len(bytes_of(buffer))) for buffer in buffers_of(call)]
        results.append(Result(returned, refusal, buffers))
    assert not file.read(1)
    return results


def _stream_collect(*arguments: Any) -> int:
    *others, collected = arguments
    nans, ctypes.c_int64.from_address(collected).value = _C.ks_stream_collect(*others, 1)
    return int(nans)


def _statistics(*arguments: Any) -> None:
    *others, threads, identical = arguments
    if identical:
        _C.ks_statistics_and_identity(*others, identical, threads)
    else:
        _C.ks_statistics(*others, threads)


# How kslottery_fast._C takes the arguments of ksl.h, where that differs.
_IN_PYTHON: dict[str, Callable[..., Any]] = {
    "ks_rows": _C.ks_sides,
    "ks_statistics": _statistics,
    "ks_stream_count": lambda *a: _C.ks_stream_count(*a, 1),
    "ks_stream_collect": _stream_collect,
    "row_adamw": lambda *a: _C.row_adamw(*a[:7], a[7][5], *a[7][:5], *a[8:]),
    "row_adamw_if_finite": lambda *a: _C.row_adamw_if_finite(*a[:8], *a[8][:5], *a[9:]),
    "flush_subnormals": lambda flush: torch.set_flush_denormal(bool(flush)) and None,
}


def call_here(call: Call) -> Result:
    """Make the call in this process, on copies of its buffers."""
    copies = {buffer.data_ptr(): buffer.clone() for buffer in buffers_of(call)}

    def given(argument: Any) -> Any:
        if isinstance(argument, Matrix):
            tensor = argument.tensor
            return (given(tensor), *tensor.shape, *tensor.stride(), CODES[tensor.dtype])
        if isinstance(argument, Members):
            return tuple(map(given, argument.values))
        if isinstance(argument, Tensor):
            start = argument.untyped_storage().data_ptr()
            return copies[start].data_ptr() + argument.data_ptr() - start
        return 0 if argument is None else argument

    function = _IN_PYTHON.get(call.name) or getattr(_C, call.name)
    returned, refusal = None, ""
    try:
        returned = function(*map(given, call.arguments))
    except ValueError as error:
        refusal = str(error)
    return Result([] if returned is None else [int(returned)], refusal, [bytes_of(copy) for copy in copies.values()])


def differences(call: Call, one: Result, other: Result) -> list[str]:
    """Where two results of a call differ. Any NaN equals any other: its sign and payload are the CPU's affair."""
    found = []
    if one[:2] != other[:2]:
        found.append(f"{one[:2]} and {other[:2]}")
    for number, buffer in enumerate(buffers_of(call)):
        a, b = (torch.frombuffer(bytearray(result.buffers[number]), dtype=buffer.dtype) for result in (one, other))
        same = _bits(a) == _bits(b)
        if buffer.is_floating_point():
            same |= a.isnan() & b.isnan()
        if tolerance := ROUNDED.get((call.name, number)):
            same |= torch.isclose(a, b, rtol=tolerance, atol=0, equal_nan=True)
        if places := (~same).nonzero().flatten().tolist():
            first = places[0]
            found.append(f"buffer {number}: {len(places)} differ, first [{first}]: {a[first]!r} and {b[first]!r}")
    return found


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
