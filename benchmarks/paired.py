"""Ratios of contenders that took turns: one ratio for each turn, then the median and the quartiles of these.

A machine that gets slower for a while slows down all contenders of a turn alike. So the ratio of a turn says more than
the ratio of two medians, and the quartiles say how far to trust it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .measure import Timing

Peers = Mapping[str, tuple[str, ...]]  # the heading of a ratio, and the contenders that it is about


@dataclass(frozen=True)
class Ratio:
    """The median of the turns' ratios, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, over: Sequence[float], under: Sequence[float]) -> Ratio:
        """Divide turn by turn.

        >>> Ratio.of([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        Ratio(median=2.0, low=2.0, high=2.5)
        """
        if len(over) != len(under):
            raise ValueError(f"{len(over)} and {len(under)} turns: contenders of a ratio take turns with each other")
        low, median, high = np.quantile(np.divide(over, under), [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)


def fastest(timings: Mapping[str, Timing], names: Sequence[str]) -> Timing | None:
    """The timing with the smallest median among these names. None if none of them was timed."""
    return min((timings[name] for name in names if name in timings), key=lambda timing: timing.median, default=None)


def paired_ratios(timings: Mapping[str, Timing], peers: Peers) -> dict[str, Ratio]:
    """How many times as long as the memory floor, and how many times as fast as each peer.

    Where a ratio has several contenders, it is about the fastest of them over the whole run.

    >>> timings = {"ours": Timing.of([2.0]), "floor: a": Timing.of([1.0]), "floor: b": Timing.of([0.5])}
    >>> timings |= {"numpy sort": Timing.of([8.0]), "torch sort": Timing.of([6.0])}
    >>> {name: ratio.median for name, ratio in paired_ratios(timings, {"x sort": ("numpy sort", "torch sort")}).items()}
    {'/ floor': 4.0, 'x sort': 3.0}
    """
    ours = timings["ours"].seconds
    found = {}
    if floor := fastest(timings, [name for name in timings if name.startswith("floor")]):
        found["/ floor"] = Ratio.of(ours, floor.seconds)
    for heading, names in peers.items():
        if peer := fastest(timings, names):
            found[heading] = Ratio.of(peer.seconds, ours)
    return found
