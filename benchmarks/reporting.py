"""What the tables of the CPU and of a GPU have in common; it imports nothing that only one of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Target:
    """``ratio`` (see ratios()) must be at least, or at most, ``bound``."""

    ratio: str
    bound: float
    at_least: bool = True

    def is_met(self, ratios: Mapping[str, float]) -> bool:
        """Compare, without rounding."""
        value = ratios[self.ratio]
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{self.ratio} {'>=' if self.at_least else '<='} {self.bound:,.4g}"


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> duration(0.0123456), duration(1.5), duration(2.5e-5)
    ('12.3 ms', '1.50 s', '25.0 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.3g} {unit}".replace(". ", " ")
    return f"{seconds / 1e-6:#.3g} us".replace(". ", " ")
