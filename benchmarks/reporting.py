"""What the tables of the CPU and of a GPU have in common. It imports nothing that only one of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Target:
    """``ratio`` (see paired.py) must be at least, or at most, ``bound``."""

    ratio: str
    bound: float
    at_least: bool = True

    def is_met(self, value: float) -> bool:
        """Compare, without rounding."""
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


def ratio_text(ratio: Mapping[str, float] | None) -> str:
    """The median with two decimals, or with none from 100 on, and the spread in percent. Empty if there is none.

    The spread is half of the way between the quartiles of the turns' ratios.

    >>> ratio_text({"median": 1234.5, "low": 1210.0, "high": 1260.0}), ratio_text(None)
    ('1,234 ±2%', '')
    >>> ratio_text({"median": 1.256, "low": 1.25, "high": 1.26})
    '1.26 ±0%'
    """
    if ratio is None:
        return ""
    median, low, high = ratio["median"], ratio["low"], ratio["high"]
    value = f"{median:,.0f}" if median >= 99.5 else f"{median:.2f}"
    return f"{value} ±{50 * (high - low) / median:.0f}%"
