"""What a reader is, and what those of all kinds of files share."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kslottery_fast import InputError

V, D = 12, 8
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Reader:
    """A way to read files.

    Attributes
    ----------
    make : callable(folder)
        Writes valid files into an empty folder.
    read : callable(folder)
        Reads them.
    damaged : str
        Which files are damaged, as a pattern of names.
    repair : callable(bytes) -> bytes, optional
        Makes a checksum right again, so that what is behind it is reached.
    packages : sequence of str
        Optional packages that it needs.
    reserves : bool
        Whether the library that reads it asks the system for as much room as the file says, before it finds that the
        file is too short. The room is not used, which is checked as for all others.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    damaged: str = "*"
    repair: Callable[[bytes], bytes] | None = None
    packages: Sequence[str] = ()
    reserves: bool = False


def table(seed: int, rows: int = V) -> torch.Tensor:
    """A table of random numbers."""
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def tuned() -> torch.Tensor:
    """The table of seed 0 with some rows moved."""
    after = table(0)
    after[::3] += 3
    return after


def model(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a tiny model."""
    return {
        TABLE: values,
        HEAD: table(1),
        "model.layers.0.mlp.experts.weight": table(2, 6).view(2, 3, D),
        "model.norm.weight": torch.ones(D),
    }


def each(*reads: Callable[[], object]) -> None:
    """Call all of them. If one refused the file, so do we."""
    refused = None
    for read in reads:
        try:
            read()
        except InputError as error:  # noqa: PERF203 (all of them are called)
            refused = error
    if refused is not None:
        raise refused


def described(path: Path) -> None:
    """Ask `kslottery info` about a file or folder."""
    from kslottery_fast.lab.cli.explain import describe

    json.dumps(describe(path))


def quiet(read: Callable[[Path], object], folder: Path) -> object:
    """Read, without the warnings that a damaged file may cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(folder)
