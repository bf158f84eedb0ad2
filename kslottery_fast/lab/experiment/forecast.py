"""How long a run will take from here: one number for all that is left, from what has been done."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from statistics import median

_STEPS = 20  # of the work at hand, whose median counts
_LEAST = 3  # before anything is said


class Forecast:
    """Seconds left of some jobs, the one at hand first.

    A kind of work is ``family.detail``, such as ``training.lora``. What is not known of a kind is taken from its
    family; where nothing is known of that either, there is no forecast. Work of the kind ``none`` takes no time.
    """

    def __init__(self, kinds: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.left, self.clock = list(kinds), clock
        self.known: dict[str, list[float]] = defaultdict(list)
        self.marks: deque[tuple[float, int]] = deque(maxlen=_STEPS + 1)

    def learn(self, kind: str, seconds: float) -> None:
        """A job of that kind took so long."""
        self.known[kind].append(seconds)

    def finish(self, seconds: float) -> None:
        """The job at hand is done."""
        self.learn(self.left.pop(0), seconds)
        self.marks.clear()

    def seconds_left(self, done: int, total: int) -> float | None:
        """Of all jobs, when ``done`` parts of ``total`` of the one at hand are; None where that cannot be told."""
        self.marks.append((self.clock(), done))
        kind, *others = self.left
        whole = self._pace(total)
        if whole is None or (not kind.startswith("training") and self.known[kind]):
            whole = self._whole(kind, whole)
        parts = [whole and whole * (1 - done / total)]
        parts += [self._whole(other, whole if _family(other) == _family(kind) else None) for other in others]
        return None if None in parts else sum(part for part in parts if part is not None)

    def text(self, done: int, total: int) -> str:
        """The same in words, nothing where nothing is known or nothing is left."""
        seconds = self.seconds_left(done, total)
        return "" if not seconds else f"{roughly(seconds)} left{' in all' if len(self.left) > 1 else ''}"

    def _pace(self, total: int) -> float | None:
        """What the whole job at hand takes at the median speed of its last steps."""
        steps = [(b - a) / (n - m) for (a, m), (b, n) in zip(self.marks, list(self.marks)[1:], strict=False) if n > m]
        return median(steps) * total if len(steps) >= _LEAST else None

    def _whole(self, kind: str, otherwise: float | None) -> float | None:
        if kind == "none":
            return 0.0
        relatives = [each for name, known in self.known.items() if _family(name) == _family(kind) for each in known]
        if self.known[kind] or (otherwise is None and relatives):
            return median(self.known[kind] or relatives)
        return otherwise


def _family(kind: str) -> str:
    return kind.partition(".")[0]


def roughly(seconds: float) -> str:
    """A time as a person estimates it.

    >>> roughly(0.3), roughly(200), roughly(4000), roughly(9000)
    ('less than a minute', 'about 4 min', 'about 1 h 10 min', 'about 2 h 30 min')
    """
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return "less than a minute"
    if minutes < 60:
        return f"about {minutes} min"
    minutes = 10 * math.ceil(minutes / 10)
    return f"about {minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
