"""Tensors of 8-bit floats (FP8): exact where they have no scale, else multiplied by their scales block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .tensors import STORED, RowReader, StoredTensor

FORMATS = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2"}
"""The 8-bit floats that are read, by their codes in the safetensors format."""
SCALE_NAMES = ("weight_scale_inv", "weight_scale")
"""How the scale of a ``weight`` is called: by DeepSeek and transformers, and by FBGEMM, compressed-tensors and
ModelOpt. The stored numbers are multiplied by it, also by the one whose name ends in "inv"."""
_BLOCK = (128, 128)  # of DeepSeek, where config.json has no weight_block_size
_SCALE_DTYPES = STORED.keys() & {"F64", "F32", "F16", "BF16", "F8_E8M0"}
_OF_ACTIVATIONS = re.compile(r"(?:input|output|k|v|q|kv|activation)_(?:act_)?scale")
_REMEDY = "dequantize the checkpoint and save it, or compare the checkpoint that it was made from"


@dataclass(frozen=True)
class Grid:
    """How the scales lie over the rows of a tensor, which may be several matrices one below the other.

    Attributes
    ----------
    tall : int
        The rows of one matrix.
    block : tuple of int
        How many rows and columns of a matrix have one scale.
    """

    tall: int
    block: tuple[int, int]

    def multiply(self, rows: Tensor, scales: Tensor, start: int) -> None:
        """Multiply rows from ``start`` on by their scales, in place."""
        height, width = self.block
        row = torch.arange(start, start + len(rows))
        place = row // self.tall * -(-self.tall // height) + row % self.tall // height
        for column in range(scales.shape[1]):
            rows[:, column * width : (column + 1) * width] *= scales[place, column, None]


@dataclass(frozen=True)
class Fp8Tensor(StoredTensor):
    """A tensor of 8-bit floats.

    Attributes
    ----------
    stored : StoredTensor
        The 8-bit floats as they are stored.
    scale : StoredTensor or None
        What they are multiplied by.
    grid : Grid
        Where each scale belongs.
    """

    stored: StoredTensor
    scale: StoredTensor | None
    grid: Grid

    @property
    def floats(self) -> torch.dtype:
        """bfloat16 holds every 8-bit float exactly. A product with a scale needs float32."""
        return torch.bfloat16 if self.scale is None else torch.float32

    @property
    def remote(self) -> bool:
        """See :attr:`StoredTensor.remote`."""
        return self.stored.remote

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        with self.opened() as reader:
            return reader.rows(start, stop)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Open the file once for all blocks, and read the scales once."""
        scales = None if self.scale is None else self._scales(self.scale)
        with self.stored.opened() as reader:
            yield _Rows(reader, self, scales)

    def _scales(self, scale: StoredTensor) -> Tensor:
        """All scales, float32 [row blocks, column blocks]."""
        with scale.opened() as reader:
            values = reader.rows(0, scale.height).to(torch.float32, copy=True)
        return values.view(-1, -(-self.width // self.grid.block[1]))


class _Rows:
    """The rows of a tensor, multiplied by their scales."""

    def __init__(self, reader: RowReader, tensor: Fp8Tensor, scales: Tensor | None) -> None:
        self._reader, self._tensor, self._scales = reader, tensor, scales

    def rows(self, start: int, stop: int, /) -> Tensor:
        block = self._reader.rows(start, stop).to(self._tensor.floats)
        if self._scales is not None:
            self._tensor.grid.multiply(block, self._scales, start)
        return block

    def read_ahead(self, start: int, stop: int, /) -> None:
        self._reader.read_ahead(start, stop)


def with_scale(
    stored: StoredTensor,
    siblings: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    config: Callable[[], Mapping[str, Any] | None],
) -> StoredTensor:
    """Return a tensor of 8-bit floats as one of numbers.

    Parameters
    ----------
    stored : StoredTensor
        The tensor as it is stored.
    siblings : sequence of str
        The names of all tensors of its module, the scales among them.
    tensors : mapping of str to StoredTensor
        The tensors of these names.
    config : callable
        Reads the config.json, which may name the size of blocks.

    Returns
    -------
    StoredTensor
        If the scales are of a form that is unknown here, ``stored`` with a note that says so. It cannot be read.
    """
    known, unknown = scale_names(stored.name, siblings)
    if unknown or len(known) > 1:
        names = " and ".join([*known, *unknown])
        return replace(stored, note=f"is FP8 with scales that are not understood ({names}); {_REMEDY}")
    kind = f"FP8 {FORMATS[stored.dtype]}"
    scale = tensors[known[0]] if known else None
    height, width = max(1, stored.height), max(1, stored.width)
    found: tuple[Grid, str] | None = Grid(height, (height, width)), "without scales"
    if scale is not None:
        found = _grid(stored, scale, config)
    if found is None:
        # There is a scale: without one there is always a grid.
        assert scale is not None
        return replace(stored, note=_unknown_form(stored, scale))
    grid, form = found
    read = stored.nbytes + (0 if scale is None else scale.nbytes)
    about = (stored.source, stored.name, stored.dtype, stored.shape, read)
    return Fp8Tensor(*about, stored, scale, grid, note=f"{kind} {form}")


def _unknown_form(stored: StoredTensor, scale: StoredTensor) -> str:
    return (
        f"is FP8 of shape {list(stored.shape)} with scales {scale.name} of dtype {scale.dtype} and shape "
        f"{list(scale.shape)}: expected one scale, one for each row, or one for each block of 128 x 128 (or "
        f"weight_block_size of config.json); {_REMEDY}"
    )


def scale_names(name: str, siblings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the scales of a tensor among those of its module: those that are understood, and others.

    Examples
    --------
    >>> scale_names("a.weight", ["a.weight", "a.weight_scale", "a.input_scale", "a.bias"])
    (['a.weight_scale'], [])
    >>> scale_names("a.weight", ["a.weight", "a.weight_scale_2", "a.scale_weight"])
    ([], ['a.weight_scale_2', 'a.scale_weight'])
    """
    known, unknown = [], []
    for other in siblings:
        last = other.rpartition(".")[2]
        if last in SCALE_NAMES and name.rpartition(".")[2] == "weight":
            known.append(other)
        elif "scale" in last and not _OF_ACTIVATIONS.fullmatch(last):
            unknown.append(other)
    return known, unknown


def _grid(
    stored: StoredTensor, scale: StoredTensor, config: Callable[[], Mapping[str, Any] | None]
) -> tuple[Grid, str] | None:
    """How the scales lie, and this in words. None if their shape or dtype is not understood."""
    if scale.dtype not in _SCALE_DTYPES or len(stored.shape) < 2:
        return None
    *lead, tall, width = stored.shape
    shape = list(scale.shape)
    if math.prod(shape) == 1:
        return Grid(stored.height, (stored.height, width)), "with one scale"
    if shape in ([*lead, tall], [*lead, tall, 1]):
        return Grid(tall, (1, width)), "with a scale for each row"
    if lead and shape in (lead, [*lead, 1, 1]):
        return Grid(tall, (tall, width)), "with a scale for each matrix"
    rows, columns = _block_size(config())
    if shape == [*lead, -(-tall // rows), -(-width // columns)]:
        return Grid(tall, (rows, columns)), f"with a scale for each block of {rows} x {columns}"
    return None


def _block_size(config: Mapping[str, Any] | None) -> tuple[int, int]:
    """The block size that config.json names, or the usual one."""
    quantization = (config or {}).get("quantization_config")
    size = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(part) is int and part > 0 for part in size):
        return size[0], size[1]
    return _BLOCK
