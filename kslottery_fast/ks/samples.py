"""The samples of ks_2samp as two matrices: scipy's rules for axis, broadcasting and dtypes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .columns import as_array, check_convertible, check_same_clock
from .dates import rank_dates
from .ranks import dense_ranks, needs_ranks


class SupportsArray(Protocol):
    """A numpy array, or what numpy can read as one, such as a pandas Series."""

    def __array__(self, *args: Any, **kwargs: Any) -> npt.NDArray[Any]: ...


class _Unnamed:
    """The default of ``axis``: none, unless the samples have one dimension."""

    def __repr__(self) -> str:
        return "<none for 2-D samples>"

    def __reduce__(self) -> str:
        return "UNNAMED"


Sample: TypeAlias = Tensor | SupportsArray | Sequence[Any] | float
UNNAMED: Any = _Unnamed()
KERNEL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Samples:
    """Row r of ``x`` [R, n] is tested against row r of ``y`` [R, m]. Results have the shape ``lead``."""

    x: Tensor
    y: Tensor
    keep_x: Tensor | None  # bool [R, n]: False where a masked array hides a value; None without a mask
    keep_y: Tensor | None
    lead: tuple[int, ...]
    kept_shape: tuple[int, ...]  # the result's shape with keepdims=True
    tensors: bool  # whether a tensor came in; then tensors go out, on this device
    device: torch.device
    dtype: np.dtype[Any]  # the promoted dtype: that of a scalar statistic_location
    ranked_values: npt.NDArray[Any] | None  # x and y hold ranks of these values, which float64 cannot hold

    @property
    def scalar(self) -> bool:
        """Tell whether there is one pair of samples, and no dimension for more."""
        return self.lead == ()


def gather_samples(x: Any, y: Any, axis: Any) -> Samples:
    """Bring two array-likes into the form of matrices, without a copy if a view is enough.

    Raises
    ------
    InputError
        Ragged input, shapes that do not broadcast, a bad axis, a tensor without numbers (meta), or numbers too long.
    TypeError
        Complex numbers, strings, objects that are not numbers, and nested, sparse, packed or quantized tensors.
    """
    x_data, x_mask = _read(x, "data1")
    y_data, y_mask = _read(y, "data2")
    check_same_clock(x, y)
    x_data, y_data, dates = rank_dates(x_data, y_data)
    tensors = isinstance(x_data, Tensor) or isinstance(y_data, Tensor)
    device = next((t.device for t in (x_data, y_data) if isinstance(t, Tensor)), torch.device("cpu"))
    dtype = np.result_type(_numpy_dtype(x_data), _numpy_dtype(y_data))
    values = None
    if _needs_ranks(x_data, y_data):
        x_data, y_data, values = dense_ranks(_numpy(x_data), _numpy(y_data))
    x_tensor, y_tensor = (_kernel_tensor(data).to(device) for data in (x_data, y_data))
    ndim = max(x_tensor.ndim, y_tensor.ndim)
    axes = _normalize_axes(axis, ndim)
    x_tensor, y_tensor = _axes_last(x_tensor, axes, ndim), _axes_last(y_tensor, axes, ndim)
    lead = _broadcast(tuple(x_tensor.shape[:-1]), tuple(y_tensor.shape[:-1]), x_data.shape, y_data.shape)
    keep: list[Tensor | None] = [None, None]
    if x_mask is not None or y_mask is not None:
        for position, (data, mask) in enumerate(((x_data, x_mask), (y_data, y_mask))):
            visible = np.ones(tuple(data.shape), dtype=bool) if mask is None else ~mask
            matrix = _axes_last(torch.from_numpy(visible).to(device), axes, ndim)
            keep[position] = _as_matrix(matrix, lead)
    kept_ndim = ndim if axes is None else len(lead) + len(axes)
    reduced = range(ndim) if axes is None else axes
    other = iter(lead)
    kept_shape = tuple(1 if position in reduced else next(other) for position in range(kept_ndim))
    return Samples(
        x=_as_matrix(x_tensor, lead),
        y=_as_matrix(y_tensor, lead),
        keep_x=keep[0],
        keep_y=keep[1],
        lead=lead,
        kept_shape=kept_shape,
        tensors=tensors,
        device=device,
        dtype=dtype if dates is None else dates.dtype,
        ranked_values=values if dates is None else dates,
    )


def tensor_view(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over the memory of a float array, even a read-only one. Only odd layouts are copied."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = np.asarray(_Unlocked(array))
    return torch.from_numpy(array)


class _Unlocked:
    """A read-only array that calls itself writable. Torch has no read-only tensors, and nothing here writes."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def check_dense(tensor: Tensor, name: str) -> None:
    """Refuse tensors that do not hold plain numbers in memory.

    Raises
    ------
    InputError
        A tensor on the meta device, which has no numbers.
    TypeError
        A nested, sparse or quantized tensor.
    """
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor: expected a dense one, such as {name}.to_padded_tensor(nan)")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}: expected a dense tensor, {name}.to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name} has dtype {tensor.dtype}: expected plain numbers, {name}.dequantize()")
    if tensor.is_meta:
        raise InputError(
            f"{name} is on the meta device, which holds shapes and no numbers: load the weights first (a model with "
            "from_pretrained, or with to_empty and load_state_dict)"
        )


def _read(value: Any, name: str) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """Return a tensor or array of at least one dimension, and the mask of a masked array that hides something."""
    if isinstance(value, Tensor):
        check_dense(value, name)
        if value.is_complex():
            raise TypeError(f"{name} is {value.dtype}: expected real numbers")
        check_convertible(value.dtype, name)
        return torch.atleast_1d(value.detach()), None
    mask = (
        np.atleast_1d(np.ma.getmaskarray(value))
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)
        else None
    )
    if value is None or isinstance(value, (str, torch.nn.Module)):
        raise TypeError(f"{name} is {shown(value)}: expected an array or a list of numbers")
    array = np.atleast_1d(as_array(value, name))
    if array.dtype.kind not in "fiubMm":
        raise TypeError(f"{name} has dtype {array.dtype}: expected real numbers")
    return array, mask


def _numpy_dtype(data: Any) -> np.dtype[Any]:
    if not isinstance(data, Tensor):
        return np.dtype(data.dtype)
    if data.dtype in KERNEL_DTYPES[1:] or (data.is_floating_point() and data.dtype != torch.float64):
        return np.dtype(np.float32)  # bfloat16 and float8 have no numpy dtype; float32 holds them exactly
    return np.dtype(str(data.dtype).removeprefix("torch."))


def _numpy(data: Any) -> npt.NDArray[Any]:
    if not isinstance(data, Tensor):
        return data
    return (data.double() if data.is_floating_point() else data).cpu().numpy()


def _needs_ranks(x: Any, y: Any) -> bool:
    """Tell whether float64 cannot hold a sample. A tensor is not copied to the CPU unless it holds long integers."""
    kinds = [data for data in (x, y) if _numpy_dtype(data).itemsize > 8 or _numpy_dtype(data).kind in "iu"]
    return any(needs_ranks(_numpy(data)) for data in kinds)


def _kernel_tensor(data: Any) -> Tensor:
    if isinstance(data, Tensor):
        if data.dtype in KERNEL_DTYPES:
            return data
        return data.to(torch.float32 if data.is_floating_point() else torch.float64)
    return tensor_view(data if data.dtype.kind == "f" else data.astype(np.float64))


def _normalize_axes(axis: Any, ndim: int) -> tuple[int, ...] | None:
    if axis is None:
        return None
    if axis is UNNAMED:
        if ndim > 1:
            raise InputError(
                f"axis is missing, and these samples have {ndim} dimensions: pass axis=0 for what scipy computes by "
                "default, or axis=-1 to test row against row as version 0.1 did by default"
            )
        axis = 0
    try:
        axes = [operator.index(a) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))]
    except TypeError:
        raise InputError(f"axis is {shown(axis)}: expected an integer, a sequence of integers, or None") from None
    if not axes or any(not -ndim <= a < ndim for a in axes):
        raise InputError(f"axis is {axis!r}, out of bounds for samples of {ndim} dimension{'s' * (ndim > 1)}")
    axes = [a % ndim for a in axes]
    if len(set(axes)) != len(axes):
        raise InputError(f"axis is {axis!r}: expected distinct axes")
    return tuple(axes)


def _axes_last(tensor: Tensor, axes: tuple[int, ...] | None, ndim: int) -> Tensor:
    """Return [..., sample], with the given axes moved to the end and joined."""
    if axes is None:
        return tensor.reshape(-1)
    tensor = tensor.reshape((1,) * (ndim - tensor.ndim) + tuple(tensor.shape))
    tensor = tensor.movedim(axes, tuple(range(-len(axes), 0)))
    if len(axes) == 1:
        return tensor
    shape = tuple(tensor.shape)
    return tensor.reshape(*shape[: -len(axes)], math.prod(shape[-len(axes) :]))


def _broadcast(x_lead: tuple[int, ...], y_lead: tuple[int, ...], x_shape: Any, y_shape: Any) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(x_lead, y_lead))
    except ValueError:
        raise InputError(
            f"Array shapes are incompatible for broadcasting: data1 {tuple(x_shape)} and data2 {tuple(y_shape)} "
            "may differ along axis only, or where one of them has size 1"
        ) from None


def _as_matrix(tensor: Tensor, lead: tuple[int, ...]) -> Tensor:
    return tensor.expand(*lead, tensor.shape[-1]).reshape(math.prod(lead), tensor.shape[-1])
