"""All that is tested of one instruction set, KSL_ISA, in one process. Prints what it found as JSON.

KSL_ISA=avx2 python tests/ops/one_isa.py
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch
from fuzz_ks import fuzz
from guarded_rows import check_guarded_rows
from test_row_adamw import HYPER, random

from kslottery_fast import ops


def row_adamw_digest() -> str:
    """Of the bits of some updates."""
    digest = hashlib.sha256()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for beta1 in (0.9, 0.3):
            state_dtype = torch.promote_types(dtype, torch.float32)
            table = random(5, 1037, dtype=dtype)
            moments = torch.zeros(5, 1037, dtype=state_dtype), torch.zeros(5, 1037, dtype=state_dtype)
            for step in (1, 2, 3):
                grad = random(5, 1037, seed=step, dtype=dtype)
                ops.row_adamw_(table, None, grad, *moments, step=step, **{**HYPER, "beta1": beta1})
            for tensor in (table, *moments):
                digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    if sys.platform == "linux":  # mprotect by ctypes
        check_guarded_rows()
    print(json.dumps({**fuzz(seconds=1, seed=12345), "row_adamw": row_adamw_digest()}))
