"""Everything that is tested for each instruction set, each in a process of its own. Prints a line of JSON for each.

python tests/ops/each_isa.py
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys

import torch
from fuzz_ks import ISAS, fuzz
from guarded_rows import check_guarded_rows
from test_row_adamw import HYPER, random

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError


def row_adamw_digest() -> str:
    """A digest of the bits of some updates."""
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


def check(isa: str) -> None:
    """Print what is found with this instruction set, or that this CPU does not have it."""
    os.environ["KSL_ISA"] = isa  # read when the first kernel runs
    try:
        ops.info()
    except InputError as error:
        print(json.dumps({"asked": isa, "refused": str(error)}), flush=True)
        return
    if sys.platform == "linux":  # mprotect by ctypes
        check_guarded_rows()
    print(json.dumps({"asked": isa, **fuzz(seconds=1, seed=12345), "row_adamw": row_adamw_digest()}), flush=True)


def main() -> int:
    """Check all. Return 1 if a process ended badly."""
    failed = 0
    for isa in ISAS:
        process = multiprocessing.get_context("fork").Process(target=check, args=(isa,))  # all is imported already
        process.start()
        process.join()
        if process.exitcode:
            print(f"{isa}: exit code {process.exitcode}", file=sys.stderr)  # -11: killed by a read beyond the rows
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
