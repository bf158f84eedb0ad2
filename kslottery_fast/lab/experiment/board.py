"""The progress of several jobs at a time: a line for every finished one, and now and then what is running."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .console import Forecast, RunConsole, duration, joined, roughly
from .jobs import Job, numbered
from .run_folder import RunFolder


@dataclass
class _Running:
    job: Job
    done: int = 0
    total: int = 0
    note: str = ""
    bar: TaskID | None = None


class Board:
    """What several workers do.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs, finished or not.
    folder : RunFolder
        Where the stages are.
    console : RunConsole
        Where progress is written.
    workers : int
        How many jobs run at a time.
    """

    def __init__(self, jobs: Sequence[Job], folder: RunFolder, console: RunConsole, workers: int) -> None:
        self.jobs, self.folder, self.console, self.workers = jobs, folder, console, workers
        self.by_stage = {job.stage: job for job in jobs}
        self.running: dict[int, _Running] = {}
        self.forecast, self.left = Forecast(()), {job.stage for job in jobs}
        self.told: set[str] = set()
        self.spoke = time.perf_counter()
        self.bars: Progress | None = None
        for job in jobs:
            if folder.finished(job.stage):
                self._learn(job)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw a bar for every running job inside the block, if there is a terminal."""
        if self.console.quiet or not self.console.console.is_terminal:
            yield
            return
        title, note = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("title", "note"))
        columns = (title, BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(), note)
        with Progress(*columns, console=self.console.console, transient=True) as self.bars:
            yield
        self.bars = None

    def started(self, worker: int, stage: str) -> None:
        """A worker begins a job."""
        self.ended(worker)
        job = self.by_stage[stage]
        self.running[worker] = running = _Running(job)
        if job.kind == "none":
            return
        if self.bars is not None:
            running.bar = self.bars.add_task("", total=None, title=numbered(job, self.jobs), note="")
        else:
            self.console.say(f"{numbered(job, self.jobs)} ...")

    def progress(self, worker: int, done: int, total: int, note: str) -> None:
        """The job of a worker goes on."""
        running = self.running.get(worker)
        if running is None:
            return
        running.done, running.total, running.note = done, total, note
        if self.bars is not None and running.bar is not None:
            self.bars.update(running.bar, completed=done, total=total, note=note)

    def finished(self, worker: int, stage: str) -> None:
        """A worker has finished a job."""
        self.ended(worker)
        job = self.by_stage[stage]
        self._learn(job)
        if job.kind != "none":
            took = f"done in {duration(self.folder.seconds(stage))}"
            self.console.say(f"{numbered(job, self.jobs)}: {joined(took, self._time_left())}")
        if job.show:
            job.show()

    def ended(self, worker: int) -> None:
        """A worker has no job any more."""
        running = self.running.pop(worker, None)
        if running and running.bar is not None and self.bars is not None:
            self.bars.remove_task(running.bar)

    def say(self, worker: int, text: str) -> None:
        """A line of progress of a worker. What every worker says, such as what it loads, is shown once."""
        if text not in self.told:
            self.told.add(text)
            self.console.say(self._prefix(worker) + text)

    def note(self, worker: int, text: str) -> None:
        """A line of a worker about something unexpected."""
        self.console.note(self._prefix(worker) + text)

    def beat(self) -> None:
        """Without a terminal, say now and then how far the running jobs are."""
        if self.console.console.is_terminal or time.perf_counter() - self.spoke < self.console.heartbeat:
            return
        self.spoke = time.perf_counter()
        for running in self.running.values():
            if running.total and running.job.kind != "none":
                how_far = f"{running.done} of {running.total}"
                self.console.say(f"{numbered(running.job, self.jobs)}: {joined(how_far, running.note)}")

    def _prefix(self, worker: int) -> str:
        running = self.running.get(worker)
        return f"{running.job.title}: " if running else ""

    def _learn(self, job: Job) -> None:
        self.left.discard(job.stage)
        if not job.idle():
            self.forecast.learn(job.effort, self.folder.seconds(job.stage))

    def _time_left(self) -> str:
        """What is left if the workers share it evenly. Empty if it is not known, or if nothing is left."""
        seconds: list[float] = []
        running = {one.job.stage: one.done / one.total for one in self.running.values() if one.total}
        for stage in self.left:
            whole = self.forecast.whole(self.by_stage[stage].effort)
            if whole is None:
                return ""
            seconds.append(whole * (1 - running.get(stage, 0.0)))
        if not sum(seconds):
            return ""
        return f"{roughly(sum(seconds) / self.workers)} left in all"
