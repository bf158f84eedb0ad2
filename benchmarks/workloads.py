"""What is measured: a Spec names a row of the table, and a Workload holds its data and its contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .measure import Contender


@dataclass(frozen=True)
class Spec:
    """One row of the table. Shapes are [V, d] of a table, or [k, d] of its rows."""

    op: str
    shape: tuple[int, int]
    dtype: torch.dtype
    case: str

    def __str__(self) -> str:
        return f"{self.op}, {self.shape[0]:,} x {self.shape[1]:,} {self.dtype_name}, {self.case}"

    @property
    def dtype_name(self) -> str:
        """Without "torch."."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Workload:
    """Contenders for one Spec: "ours" is this package, "floor: ..." are memory reads, and the others are peers.

    ``bytes`` are those that have to be moved, each once. None if that says nothing. ``note`` is shown with the case.
    ``agrees`` says whether our result is that of a peer, where that is not what other tests are for.
    """

    contenders: Mapping[str, Contender]
    bytes: int | None
    calls: int = 1
    note: str = ""
    agrees: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Suite:
    """Specs in an order in which neighbours share their data, and the function that prepares one of them."""

    specs: list[Spec]
    prepare: Callable[[Spec], Workload]
