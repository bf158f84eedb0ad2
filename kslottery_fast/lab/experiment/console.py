"""What a person sees while a run works: one line a stage, and a bar on what takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from .forecast import Forecast


class ProgressCallback(Protocol):
    """How work tells that ``done`` parts of ``total`` are done; ``note``: what else to show, such as the loss."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show it."""


class RunConsole:
    """Messages on stderr, so that stdout stays with results (and with ``--json``)."""

    def __init__(self, console: Console | None = None, *, heartbeat: float = 30.0) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.heartbeat = heartbeat  # seconds between lines where there is no terminal to draw a bar on

    def say(self, text: str) -> None:
        """One line; no markup is read from it."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def task(self, title: str, forecast: Forecast | None = None) -> Iterator[ProgressCallback]:
        """Yield a progress callback; a bar on a terminal, else a line now and then.

        ``forecast`` tells the time that is left, by default of this task alone.
        """
        started, forecast = time.perf_counter(), forecast or Forecast([title])
        if self.console.is_terminal:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False))
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
