"""Rows chosen one after the other by what they add, an upper bound for selectors that rank each row for itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kslottery_fast.base.files import read_json, write_json


class Score(Protocol):
    """The loss of a model with some rows. Lower is better."""

    def __call__(self, rows: tuple[int, ...], *, whole: bool) -> float:
        """Score rows on all examples, or on a part of them, which is faster."""


class Remembered:
    """A score that keeps every value in a file, so that a search goes on where it stopped.

    Parameters
    ----------
    score : Score
        The score, which must not depend on the order of the rows.
    path : Path
        The JSON file. It holds values and the processor time that each took.
    """

    def __init__(self, score: Score, path: Path) -> None:
        self.score, self.path = score, path
        self.known: dict[str, tuple[float, float]] = read_json(path) if path.exists() else {}

    def __call__(self, rows: tuple[int, ...], *, whole: bool) -> float:
        """Return the value, which is computed if it is not known."""
        key = " ".join(["whole" if whole else "part", *map(str, sorted(rows))])
        if key not in self.known:
            started = time.process_time()
            value = self.score(tuple(sorted(rows)), whole=whole)
            self.known[key] = value, round(time.process_time() - started, 3)
            write_json(self.path, self.known)
        return self.known[key][0]

    @property
    def seconds(self) -> float:
        """The processor time of all values."""
        return sum(seconds for _, seconds in self.known.values())


def greedy(score: Score, candidates: Sequence[int], k: int, *, looks: int = 6, finalists: int = 2) -> list[int]:
    """Choose k rows, each as the one that lowers the loss most beside those chosen before.

    The gain of every candidate is measured once for itself, on the part of the examples. As other rows are chosen, the
    gains shrink. So an old gain is nearly a bound of the new one, and a round looks only at the candidates with the
    largest old gains ("lazy greedy", Minoux 1978). It stops as soon as no old gain is above the new ones. The best
    finalists are then compared on all examples.

    Parameters
    ----------
    score : Score
        The loss.
    candidates : sequence of int
        The rows, each once.
    k : int
        How many to choose, at most all.
    looks : int
        How many candidates a round looks at, at the most.
    finalists : int
        How many of them are compared on all examples.

    Returns
    -------
    list of int
        The rows in the order in which they were chosen.
    """
    alone = score((), whole=False)
    gains = {row: alone - score((row,), whole=False) for row in candidates}
    chosen: list[int] = []
    for _ in range(k):
        here = tuple(chosen)
        now = score(here, whole=False)
        fresh: dict[int, float] = {}
        for row in sorted(gains, key=lambda row: -gains[row]):
            beaten = len(fresh) >= finalists and max(fresh.values()) >= gains[row]
            if beaten or len(fresh) >= max(looks, finalists):
                break
            fresh[row] = now - score((*here, row), whole=False)
        gains.update(fresh)
        last = sorted(fresh, key=lambda row: -fresh[row])[:finalists]
        best = last[0] if len(last) == 1 else min(last, key=lambda row: score((*here, row), whole=True))
        chosen.append(best)
        del gains[best]
    return chosen


def better_of(score: Score, first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Of two sets of rows the one with the lower loss on all examples. Of equal ones the first."""
    return list(min(first, second, key=lambda rows: score(tuple(rows), whole=True)))
