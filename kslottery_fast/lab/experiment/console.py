"""What a person sees while a run works: one line a stage, and a bar with the time left on what takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ProgressCallback = Callable[[int, int], None]


class RunConsole:
    """Messages on stderr, so that stdout stays with results (and with ``--json``)."""

    def __init__(self, console: Console | None = None, *, heartbeat: float = 30.0) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.heartbeat = heartbeat  # seconds between lines where there is no terminal to draw a bar on
        self.caption = ""

    def say(self, text: str) -> None:
        """One line; no markup is read from it."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def task(self, title: str) -> Iterator[ProgressCallback]:
        """Yield a progress callback; a bar on a terminal, else a line now and then."""
        started = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left", markup=False),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total)
        else:
            self.say(f"{title} ...")
            yield self._lines(title, started)
        self.say(f"{title}: done in {duration(time.perf_counter() - started)}")

    def _lines(self, title: str, started: float) -> ProgressCallback:
        last = started

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if done and now - last >= self.heartbeat:
                last = now
                left = (now - started) / done * (total - done)
                self.say(f"{title}: {done} of {total}, about {duration(left)} left")

        return update


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(3.21), duration(75), duration(3725)
    ('3.2 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
