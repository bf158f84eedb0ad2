"""Timing: contenders take turns in one run (A B A B). The median and the 20% and 80% points of each are reported."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    ``run`` gets the number of the turn, so that it can pick another set of inputs each time. It does 1 / ``scale`` of
    the work of the others, for example scipy 50 rows of 32,000. With ``waits``, the work on a GPU ends with its result
    on the host. It is then timed by the host's clock from an idle device on, its Python included. Otherwise only the
    device's part is timed.
    """

    run: Callable[[int], object]
    scale: float = 1.0
    waits: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds for the whole work: median, 20% and 80% points over the turns, and the seconds of each turn in order."""

    median: float
    low: float
    high: float
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Make a timing from the seconds of each turn.

        >>> Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
        Timing(median=3.5, low=2.0, high=5.0, seconds=(5.0, 1.0, 2.0, 4.0, 3.0, 6.0))
        """
        ordered = sorted(seconds)
        low = round(0.2 * (len(ordered) - 1))
        return cls(statistics.median(ordered), ordered[low], ordered[-1 - low], tuple(seconds))

    @property
    def turns(self) -> int:
        """How often it was timed."""
        return len(self.seconds)


def take_turns(contenders: Mapping[str, Contender], turns: int, calls: int = 1) -> dict[str, Timing]:
    """Let all run once unmeasured, then `turns` times one after the other, `calls` calls in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "no row is selected" is one of the timed cases
            for turn in range(-1, turns):
                for name, contender in contenders.items():
                    start = time.perf_counter()
                    for call in range(calls):
                        contender.run((turn + 1) * calls + call)
                    if turn >= 0:
                        seconds[name].append((time.perf_counter() - start) * contender.scale / calls)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in seconds.items()}
