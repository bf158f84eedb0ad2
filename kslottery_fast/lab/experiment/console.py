"""What a person sees while a run works: a line a stage, a bar on what takes long, and the time left in all."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_STEPS = 20  # of the work at hand, whose median counts
_LEAST = 3  # before anything is said


class ProgressCallback(Protocol):
    """How work tells that ``done`` parts of ``total`` are done; ``note``: what else to show, such as the loss."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show it."""


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

    def finish(self, seconds: float | None) -> None:
        """The job at hand is done; None: its time teaches nothing."""
        self.marks.clear()
        kind = self.left.pop(0)
        if seconds is not None:
            self.learn(kind, seconds)

    def seconds_left(self, done: int, total: int) -> float | None:
        """Of all jobs, when ``done`` parts of ``total`` of the one at hand are; None where that cannot be told."""
        self.marks.append((self.clock(), done))
        kind, *others = self.left
        whole = self._pace(total)
        if whole is None or (not kind.startswith("training") and self.known[kind]):
            whole = self._whole(kind, whole)
        parts = [whole and whole * (1 - done / total if total else 0)]
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


class RunConsole:
    """Messages on stderr, so that stdout stays with results (and with ``--json``)."""

    def __init__(self, console: Console | None = None, *, heartbeat: float = 30.0) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.heartbeat = heartbeat  # seconds between lines where there is no terminal to draw a bar on

    def say(self, text: str) -> None:
        """One line; no markup is read from it."""
        self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """One line about what came out otherwise than one may think."""
        self.say(f"note: {text}")

    @contextlib.contextmanager
    def task(self, title: str, forecast: Forecast | None = None) -> Iterator[ProgressCallback]:
        """Yield a progress callback; a bar on a terminal, else a line now and then.

        ``forecast`` tells the time that is left, by default of this task alone.
        """
        started, forecast = time.perf_counter(), forecast or Forecast([title])
        if self.console.is_terminal:
            note_column = TextColumn("{task.fields[note]}", markup=False)
            columns = (BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(), note_column)
            with _TitledBar(title, *columns, console=self.console, transient=True) as progress:
                task = progress.add_task("", total=None, note="")

                def update(done: int, total: int, note: str = "") -> None:
                    told = _joined(note, forecast.text(done, total))
                    progress.update(task, completed=done, total=total, note=told)

                yield update
        else:
            self.say(f"{title} ...")
            yield self._lines(title, started, forecast)
        self.say(f"{title}: done in {duration(time.perf_counter() - started)}")

    def _lines(self, title: str, last: float, forecast: Forecast) -> ProgressCallback:
        def update(done: int, total: int, note: str = "") -> None:
            nonlocal last
            left, now = forecast.text(done, total), time.perf_counter()
            if done and now - last >= self.heartbeat:
                last = now
                self.say(_joined(f"{title}: {done} of {total}", note, left))

        return update


class _TitledBar(Progress):
    """A bar below its title, which may be as long as a line."""

    def __init__(self, title: str, *columns: ProgressColumn, **options: Any) -> None:
        self.title = title
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Title and bar."""
        yield Text(self.title)
        yield self.make_tasks_table(self.tasks)


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(3.21), duration(75), duration(3725)
    ('3.2 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
