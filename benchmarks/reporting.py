"""What the tables of the CPU and of a GPU have in common. It imports nothing that only one of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A time with three digits and a unit.

    >>> duration(0.0123456), duration(1.5), duration(2.5e-5)
    ('12.3 ms', '1.50 s', '25.0 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.3g} {unit}".replace(". ", " ")
    return f"{seconds / 1e-6:#.3g} us".replace(". ", " ")


def line(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    """Cells under the headings of their columns, whose width is below 0 if they are aligned to the left.

    >>> line(["ks_select", "1.5"], [("op", -12), ("x", 5)])
    'ks_select       1.5'
    """
    padded = [
        cell.rjust(width) if width > 0 else cell.ljust(-width) for cell, (_, width) in zip(cells, columns, strict=True)
    ]
    return "  ".join(padded).rstrip()


def ratio_text(ratios: Mapping[str, float], name: str) -> str:
    """A ratio with two decimals, or with none from 100 on. Empty if it was not measured.

    >>> ratio_text({"x scipy": 1234.5}, "x scipy"), ratio_text({"/ floor": 1.256}, "/ floor"), ratio_text({}, "x scipy")
    ('1,234', '1.26', '')
    """
    if name not in ratios:
        return ""
    return f"{ratios[name]:,.0f}" if ratios[name] >= 99.5 else f"{ratios[name]:.2f}"
