"""Quantized tensors of a checkpoint: 8-bit floats become numbers, and packed formats are refused by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from .fp8 import FORMATS, SCALE_NAMES, with_scale
from .tensors import StoredTensor

_PACKED = {
    "bitsandbytes__nf4": "packed 4-bit floats of bitsandbytes (NF4)",
    "bitsandbytes__fp4": "packed 4-bit floats of bitsandbytes (FP4)",
    "absmax": "packed 4-bit floats of bitsandbytes",
    "SCB": "8-bit integers of bitsandbytes",
    "weight_scale_2": "packed 4-bit floats of ModelOpt (NVFP4)",
    "qzeros": "packed integers of GPTQ or AWQ",
    "weight_packed": "packed numbers of compressed-tensors",
    "weight_scale": "integers with scales",
}
"""Formats by a tensor that stands beside the numbers."""
_DTYPES = {
    "F8_E4M3FNUZ": "8-bit floats of AMD (E4M3FNUZ)",
    "F8_E5M2FNUZ": "8-bit floats of AMD (E5M2FNUZ)",
    "F8_E8M0": "8-bit powers of two, which are scales",
    "F4": "4-bit floats",
    "F6_E2M3": "6-bit floats",
    "F6_E3M2": "6-bit floats",
}
"""Formats by the dtype of the numbers."""
_INTEGERS = ("I8", "U8", "I16", "I32", "I64")
_TABLES = ("weight", "qweight", "weight_packed")
_REMEDY = "compare the checkpoint from before the quantization, or dequantize this one and save it"


class Decoded(Mapping[str, StoredTensor]):
    """The tensors of a checkpoint with 8-bit floats as numbers. Their scales are no tensors of their own.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        The tensors as they are stored.
    config : callable
        Reads the config.json of the model, which may name the size of the blocks of scales.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], config: Callable[[], dict[str, Any] | None]) -> None:
        self._stored, self._config = tensors, config
        self._decoded: dict[str, StoredTensor] = {}
        self._modules: dict[str, list[str]] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._decoded:
            if name not in self:
                raise KeyError(name)
            tensor = self._stored[name]
            # A tensor that is a format's own, as that of GGUF, has floats or says itself why it has none.
            decode = tensor.floats is None and not tensor.note
            self._decoded[name] = self._decode(tensor) if decode else tensor
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored if not self._is_scale(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._stored and not self._is_scale(str(name))

    def _is_scale(self, name: str) -> bool:
        module, last = _parts(name)
        return last in SCALE_NAMES and (f"{module}weight" in self._stored or f"{module}weight_packed" in self._stored)

    def _decode(self, tensor: StoredTensor) -> StoredTensor:
        siblings = self._siblings(_parts(tensor.name)[0])
        if tensor.dtype in FORMATS:
            return with_scale(tensor, siblings, self._stored, self._config)
        kind = packed_format(tensor, siblings)
        return replace(tensor, note=f"holds {kind}, which are not read here; {_REMEDY}") if kind else tensor

    def _siblings(self, module: str) -> list[str]:
        """The names of the tensors of a module, which are sorted by modules once."""
        if not self._modules:
            for name in self._stored:
                self._modules.setdefault(_parts(name)[0], []).append(name)
        # bitsandbytes names what belongs to a.weight a.weight.absmax and a.weight.quant_state.bitsandbytes__nf4.
        inside = ("", "weight.", "weight.quant_state.")
        return [name for each in inside for name in self._modules.get(module + each, [])]


def packed_format(tensor: StoredTensor, siblings: list[str]) -> str | None:
    """Name the quantization of a tensor, as far as its dtype and the tensors beside it tell."""
    if tensor.dtype in _DTYPES:
        return _DTYPES[tensor.dtype]
    if tensor.dtype not in _INTEGERS or _parts(tensor.name)[1] not in _TABLES:
        return None
    beside = " ".join(f"{name} " for name in siblings)
    return next((kind for mark, kind in _PACKED.items() if f".{mark} " in beside), None)


def _parts(name: str) -> tuple[str, str]:
    """The module of a tensor, with its dot, and the last part of the name."""
    module, dot, last = name.rpartition(".")
    return module + dot, last
