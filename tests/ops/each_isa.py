"""Everything that is tested for each instruction set, each in a process of its own. Prints a line of JSON for each.

python tests/ops/each_isa.py
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys

import numpy as np
import torch
from fuzz_ks import ISAS, fuzz
from guarded_rows import check_guarded_rows
from ks_cases import Expected, expected, make_pair
from test_row_adamw import HYPER, random

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError

LONG = (2**18, 2**21)  # values of each sample: rows of 2^15 and of 2^16 buckets
LongRow = tuple[torch.Tensor, torch.Tensor, Expected]


def long_rows() -> list[LongRow]:
    """A pair of samples of each length, with what ks_rows has to give."""
    pairs = [make_pair("normal", np.random.default_rng(n), 1, n, n, (torch.float32, torch.float32)) for n in LONG]
    return [(x, y, expected(x, y)) for x, y in pairs]


def differences_of_long_rows(rows: list[LongRow]) -> list[str]:
    """What ks_rows gives and should not, on one thread and with long rows cut over two."""
    differences = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for x, y, want in rows:
            where = f"2 x {x.shape[1]} values, {threads} threads"
            differences += [
                f"{where}: {name} is {got.item()}, expected {wanted.item()}"
                for name, got, wanted in zip(want._fields, ops.ks_rows(x, y), want, strict=True)
                if got.item() != wanted.item()
            ]
    return differences


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


def check(isa: str, rows: list[LongRow]) -> None:
    """Print what is found with this instruction set, or that this CPU does not have it."""
    os.environ["KSL_ISA"] = isa  # read when the first kernel runs
    try:
        ops.info()
    except InputError as error:
        print(json.dumps({"asked": isa, "refused": str(error)}), flush=True)
        return
    if sys.platform == "linux":  # mprotect by ctypes
        check_guarded_rows()
    found = {"asked": isa, **fuzz(seconds=1, seed=12345), "long_rows": differences_of_long_rows(rows)}
    print(json.dumps({**found, "row_adamw": row_adamw_digest()}), flush=True)


def main() -> int:
    """Check all. Return 1 if a process ended badly."""
    threads, failed = torch.get_num_threads(), 0
    torch.set_num_threads(1)  # others would be missing after a fork
    rows = long_rows()
    torch.set_num_threads(threads)
    for isa in ISAS:
        process = multiprocessing.get_context("fork").Process(target=check, args=(isa, rows))  # all is imported already
        process.start()
        process.join()
        if process.exitcode:
            print(f"{isa}: exit code {process.exitcode}", file=sys.stderr)  # -11: killed by a read beyond the rows
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
