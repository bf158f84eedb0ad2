"""The progress of a run: one line per stage, a progress bar, and the time that is left."""

import contextlib
import math
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from statistics import median
from typing import Any, NamedTuple, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_STEPS = 20  # how many of the latest steps the median speed is taken from
_LEAST = 3  # how many steps are needed before a time is forecast


class ProgressCallback(Protocol):
    """The function that work calls to report its progress."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` parts are done, and a ``note`` such as the loss."""


class Effort(NamedTuple):
    """What a job takes time for: a kind of work, and how much of it.

    A kind is written ``family.detail``, for example ``training.lora``. Work of the kind ``none`` takes no time. A job
    of twice the ``size`` takes twice the time.
    """

    kind: str
    size: float = 1.0


class Forecast:
    """Forecasts how many seconds a list of jobs still takes. The first job is the one that is running.

    If no job of a kind has been timed yet, its family is used instead. If no job of the family has been timed either,
    there is no forecast.

    Parameters
    ----------
    efforts : iterable of Effort
        The effort of each job, in the order in which they run.
    clock : callable, optional
        Returns the time in seconds.
    """

    def __init__(self, efforts: Iterable[Effort], clock: Callable[[], float] = time.monotonic) -> None:
        self.left, self.clock = list(efforts), clock
        self.known: dict[str, list[tuple[float, float]]] = defaultdict(list)  # seconds of work of size 1, and the size
        self.marks: deque[tuple[float, int]] = deque(maxlen=_STEPS + 1)

    def learn(self, effort: Effort, seconds: float) -> None:
        """Record that a job of this effort took so many seconds."""
        self.known[effort.kind].append((seconds / effort.size, effort.size))

    def finish(self, seconds: float | None) -> None:
        """Go on to the next job. ``seconds`` is None if the time of the finished job says nothing about others."""
        self.marks.clear()
        effort = self.left.pop(0)
        if seconds is not None:
            self.learn(effort, seconds)

    def seconds_left(self, done: int, total: int) -> float | None:
        """Seconds left of all jobs when ``done`` of ``total`` parts of the running job are done; None if not known."""
        self.marks.append((self.clock(), done))
        effort, *others = self.left
        pace = self._pace(total)
        unit = None if pace is None else pace / effort.size
        if unit is None or (_family(effort.kind) != "training" and self.known[effort.kind]):
            unit = self._unit(effort.kind, unit)
        parts = [unit and unit * effort.size * (1 - done / total if total else 0)]
        parts += [self._whole(other, unit if _family(other.kind) == _family(effort.kind) else None) for other in others]
        return None if None in parts else sum(part for part in parts if part is not None)

    def text(self, done: int, total: int) -> str:
        """The same in words. Empty if the time is not known, or if no time is left."""
        seconds = self.seconds_left(done, total)
        return "" if not seconds else f"{roughly(seconds)} left{' in all' if len(self.left) > 1 else ''}"

    def whole(self, effort: Effort) -> float | None:
        """Seconds that a job takes; None if no job of its family has been timed."""
        return self._whole(effort, None)

    def _pace(self, total: int) -> float | None:
        """Seconds that the whole running job takes at the median speed of its latest steps."""
        steps = [(b - a) / (n - m) for (a, m), (b, n) in zip(self.marks, list(self.marks)[1:], strict=False) if n > m]
        return median(steps) * total if len(steps) >= _LEAST else None

    def _whole(self, effort: Effort, otherwise: float | None) -> float | None:
        unit = self._unit(effort.kind, otherwise)
        return None if unit is None else unit * effort.size

    def _unit(self, kind: str, otherwise: float | None) -> float | None:
        """Seconds of work of size 1 of this kind."""
        if kind == "none":
            return 0.0
        relatives = [each for name, known in self.known.items() if _family(name) == _family(kind) for each in known]
        if self.known[kind] or (otherwise is None and relatives):
            return _typical(self.known[kind] or relatives)
        return otherwise


def _family(kind: str) -> str:
    return kind.partition(".")[0]


def _typical(known: list[tuple[float, float]]) -> float:
    """The median of the seconds, weighted by the sizes: a short job is mostly what every job does once."""
    known = sorted(known)
    reached = list(accumulate(size for _, size in known))
    return next(seconds for (seconds, _), so_far in zip(known, reached, strict=True) if so_far >= reached[-1] / 2)


def roughly(seconds: float) -> str:
    """A rounded time in words.

    Examples
    --------
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
    """Writes progress to stderr, so that stdout holds results alone.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to write. By default stderr.
    heartbeat : float, optional
        Seconds between two lines of progress if there is no terminal to draw a bar on.
    quiet : bool, optional
        Whether to leave out progress. Notes are shown in any case.
    """

    def __init__(self, console: Console | None = None, *, heartbeat: float = 30.0, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.heartbeat, self.quiet = heartbeat, quiet

    def say(self, text: str) -> None:
        """Write one line of progress. No markup is read from it."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Write one line about something unexpected, even if quiet."""
        self.console.print(f"note: {text}", markup=False)

    @contextlib.contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        """Write each RuntimeWarning of the block as a note, at once: some say what is about to be downloaded."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", RuntimeWarning)
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if issubclass(category, RuntimeWarning):
                    self.note(str(message))
                else:
                    others(message, category, *place)

            warnings.showwarning = show  # type: ignore[assignment]  # catch_warnings restores it
            yield

    @contextlib.contextmanager
    def task(self, title: str, forecast: Forecast | None = None) -> Iterator[ProgressCallback]:
        """Yield a progress callback that draws a bar on a terminal and otherwise writes a line now and then.

        Parameters
        ----------
        title : str
            What is being done.
        forecast : Forecast, optional
            Forecasts the time that is left. By default it covers this task alone.
        """
        if self.quiet:
            yield lambda *_: None
            return
        started, forecast = time.perf_counter(), forecast or Forecast([Effort(title)])
        if self.console.is_terminal:
            note_column = TextColumn("{task.fields[note]}", markup=False)
            columns = (BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(), note_column)
            with _TitledBar(title, *columns, console=self.console, transient=True) as progress:
                task = progress.add_task("", total=None, note="")

                def update(done: int, total: int, note: str = "") -> None:
                    told = joined(note, forecast.text(done, total))
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
                self.say(joined(f"{title}: {done} of {total}", note, left))

        return update


class _TitledBar(Progress):
    """A progress bar under its title, which may fill a line."""

    def __init__(self, title: str, *columns: ProgressColumn, **options: Any) -> None:
        self.title = title
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Title and bar."""
        yield Text(self.title)
        yield self.make_tasks_table(self.tasks)


def joined(*parts: str) -> str:
    """The parts that are not empty, with commas between them."""
    return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """A time in words.

    Examples
    --------
    >>> duration(3.21), duration(75), duration(3725)
    ('3.2 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
