"""Samples where values are left out, so that their rows have different sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .null import Integers


class Ragged(NamedTuple):
    """A sample of R rows, and a mask of the values that count. Numpy arrays on the CPU, and tensors elsewhere.

    On the CPU, torch would wake its threads for every small step, which takes milliseconds on a busy machine.
    """

    values: Any  # [R, n], or [1, k] of a sample that all rows share, without what does not count
    keep: Any  # bool [R, n], or None if the sample is shared
    rows: int

    def sizes(self) -> Integers:
        """How many values count in each row."""
        if self.keep is None:
            return np.full(self.rows, self.values.shape[1])
        sizes = self.keep.sum(1)
        return np.asarray(sizes.cpu() if isinstance(sizes, Tensor) else sizes)

    def dense(self, rows: Integers, size: int) -> Tensor:
        """The values that count in these rows. Each of the rows has ``size`` of them."""
        if self.keep is None:
            return torch.as_tensor(self.values).expand(len(rows), size)
        chosen = torch.from_numpy(rows).to(self.values.device) if isinstance(self.values, Tensor) else rows
        return torch.as_tensor(self.values[chosen][self.keep[chosen]].reshape(-1, size))


def ragged(sample: Tensor, keep: Tensor | None, rows: Integers, omit_nan: bool) -> Ragged:
    """Return these rows of a sample without what a mask hides, and without NaN if they are left out.

    Parameters
    ----------
    sample : Tensor
        [R, n].
    keep : Tensor or None
        bool [R, n], the values that count. Without it, NaN are left out.
    rows : array
        int64, the rows to take.
    omit_nan : bool
        Whether NaN do not count.
    """
    shared = len(rows) > 1 and all(tensor is None or tensor.stride(0) == 0 for tensor in (sample, keep))
    if shared:  # one row is enough
        sample, keep = sample[:1], None if keep is None else keep[:1]
    values, mask = _on_its_device(sample), None if keep is None else _on_its_device(keep)
    if not shared:
        chosen = torch.from_numpy(rows).to(sample.device) if isinstance(values, Tensor) else rows
        values, mask = values[chosen], None if mask is None else mask[chosen]
    there = values == values if omit_nan or mask is None else mask  # NaN differs from itself
    if omit_nan and mask is not None:
        there = there & mask
    if not shared:
        return Ragged(values, there, len(rows))
    left = values[there]
    # It is sorted here, and not again for each size of the others: the kernel notices that it is.
    return Ragged((left.sort().values if isinstance(left, Tensor) else np.sort(left))[None], None, len(rows))


def _on_its_device(tensor: Tensor) -> Any:
    if tensor.device.type != "cpu":
        return tensor
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
