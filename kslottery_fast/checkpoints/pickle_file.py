"""PyTorch files (.bin, .pt, .pth): torch reads the tensors alone, and whatever could run code is refused."""

import errno
import io
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from . import file_errors
from .memory_tensor import MemoryTensor, dtype_code
from .safetensors_file import stamp_of
from .tensors import StoredTensor

_INSIDE = ("state_dict", "model_state_dict", "model", "module")
"""Where training programs put the weights in what they save."""
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")
"""How the names of pickles begin that training programs write beside the weights."""
_OLD = "mmap can only be used"  # a file of torch before 1.6


def holds_weights(name: str) -> bool:
    """Tell whether a file of torch may hold weights, by its name.

    >>> holds_weights("pytorch_model.bin"), holds_weights("optimizer.pt")
    (True, False)
    """
    return not name.startswith(_NO_WEIGHTS)


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """Read which tensors a PyTorch file holds. They are mapped from the file, and their numbers are read later.

    The file may be a dict of tensors, or hold one as ``state_dict``, ``model_state_dict``, ``model`` or ``module``.

    Raises
    ------
    InputError
        The file cannot be read, is damaged, holds no tensors, or holds more than ``torch.load(weights_only=True)``
        reads.
    """
    try:
        stamp = stamp_of(path.stat())
        content = _load(path)
        if stamp_of(path.stat()) != stamp:
            raise file_errors.changed(path)
    except (OSError, MemoryError) as error:
        raise file_errors.unreadable(path, error) from None
    tensors = _state_dict(content)
    if not tensors:
        raise InputError(
            f"{path} holds no state dict: expected a dict of tensors, or one inside it called {' or '.join(_INSIDE)}"
        )
    return {name: _stored(path, name, values, stamp) for name, values in tensors.items()}


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about storages
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if _OLD not in str(error):
                    raise
                with _Bounded(io.FileIO(path)) as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a zip file that was cut short gives
            raise
        raise file_errors.foreign_pickle(path, _first_line(error)) from None
    except pickle.UnpicklingError as error:  # torch's text advises to read it all the same
        found = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        raise file_errors.pickled(path, found[1] if found else "something else than tensors") from None
    except Exception as error:  # RuntimeError, EOFError, KeyError, ... of a file that is damaged or something else
        if "TorchScript" in str(error):
            raise file_errors.pickled(path, "a TorchScript program") from None
        raise file_errors.foreign_pickle(path, _first_line(error)) from None


class _Bounded(io.BufferedReader):
    """A file that makes no room for more bytes than it has, whatever length is written in it."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all that are left."""
        if size is not None and size > 0:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of a dict by name, or those of the dict of weights in it."""
    if not isinstance(content, Mapping):
        return {}
    inside = [content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)]
    for each in (*inside, content):
        tensors = {name: value for name, value in each.items() if isinstance(name, str) and _has_numbers(value)}
        if any(map(_is_plain, tensors.values())):
            return tensors
    return {}


def _has_numbers(value: Any) -> bool:
    """Whether this is a tensor. One on the device "meta" has no numbers in the file."""
    return isinstance(value, Tensor) and not value.is_meta


def _is_plain(values: Tensor) -> bool:
    return values.layout == torch.strided and not values.is_quantized


def _stored(path: Path, name: str, values: Tensor, stamp: tuple[int, ...]) -> MemoryTensor:
    dtype, shape = dtype_code(values.dtype), tuple(values.shape)
    if not _is_plain(values):
        kind = "quantized by torch" if values.is_quantized else f"sparse ({str(values.layout).removeprefix('torch.')})"
        note = f"is {kind}, which is not read here; save it as a dense tensor of floats"
        return MemoryTensor(str(path), name, f"{kind} {dtype}", shape, 0, path, torch.empty(0), stamp, note=note)
    nbytes = values.numel() * values.element_size()
    return MemoryTensor(str(path), name, dtype, shape, nbytes, path, values.detach(), stamp)


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
