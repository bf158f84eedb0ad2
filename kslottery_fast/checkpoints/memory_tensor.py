"""A tensor that torch holds, in memory or mapped from a file."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import file_errors
from .safetensors_file import stamp_of
from .tensors import CODES, StoredTensor

_CODES = {
    **CODES,
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
for _name, _code in (("float8_e8m0fnu", "F8_E8M0"), ("float4_e2m1fn_x2", "F4")):  # which older versions of torch lack
    if hasattr(torch, _name):
        _CODES[getattr(torch, _name)] = _code


@dataclass(frozen=True)
class MemoryTensor(StoredTensor):
    """A tensor that torch has opened.

    Attributes
    ----------
    path : Path
        The file that it came from, and may be mapped from.
    values : Tensor
        The numbers, on the CPU.
    stamp : tuple of int
        Tells the file from one that replaces it.
    """

    path: Path
    values: Tensor = field(compare=False, repr=False)
    stamp: tuple[int, ...]

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        # A page that the file no longer has would kill the process (SIGBUS).
        try:
            if stamp_of(self.path.stat()) != self.stamp:
                raise file_errors.changed(self.path)
        except OSError as error:
            raise file_errors.unreadable(self.path, error) from None
        values = self.values
        flat = values if values.dim() == 2 else values.reshape(self.height, self.width)
        return flat[start:stop].contiguous()


def dtype_code(dtype: torch.dtype) -> str:
    """The code of a dtype in the safetensors format, or torch's name if the format has none.

    >>> dtype_code(torch.bfloat16), dtype_code(torch.complex128)
    ('BF16', 'complex128')
    """
    return _CODES.get(dtype, str(dtype).removeprefix("torch."))
