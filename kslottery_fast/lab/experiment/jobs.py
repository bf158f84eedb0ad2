"""Jobs that leave a finished stage each, worked through in order: what every resumable command has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kslottery_fast.base.memory import reset_peak_memory, trimming

from .console import Forecast, ProgressCallback, RunConsole
from .run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """One stage to make: ``work(folder, progress)`` writes its files into a temporary folder.

    ``stage`` names the stage, ``title`` is what a person reads, ``kind`` what :class:`~.console.Forecast` compares it
    with. ``afterwards`` is called once the stage counts, and again at every later start, since a kill may have come
    between the two: what it does twice must be as if done once. ``show``, if there is one, shows what the stage found,
    once in every call that has work to do. ``idle`` tells of a finished stage whether there was nothing to do for it;
    its time teaches nothing then.
    """

    stage: str
    title: str
    work: Callable[[Path, ProgressCallback], None]
    afterwards: Callable[[], None] = lambda: None
    kind: str = "other"
    show: Callable[[], None] | None = None
    idle: Callable[[], bool] = lambda: False


def work_through(jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
    """Do every job whose stage is not finished, in order; a job may read the stages of those before it.

    The record of a stage has the time and, where the system can tell, the peak memory of this job alone.
    """
    from .environment import snapshot

    done = [job for job in jobs if folder.finished(job.stage)]
    todo = [job for job in jobs if not folder.finished(job.stage)]
    for job in done:
        job.afterwards()
    if not todo:
        return
    _note_other_threads(done, folder, console)
    forecast = Forecast(job.kind for job in todo)
    for job in done:
        if not job.idle():
            forecast.learn(job.kind, folder.seconds(job.stage))
        if job.show:
            job.show()
    for job in todo:
        own_peak = reset_peak_memory()
        with (
            folder.write_stage(job.stage, partial(snapshot, command, own_peak=own_peak)) as temporary,
            _shown(job, jobs, console, forecast) as progress,
        ):
            job.work(temporary, trimming(progress))
        job.afterwards()
        forecast.finish(None if job.idle() else folder.seconds(job.stage))  # of all attempts
        if job.show:
            job.show()


def _shown(
    job: Job, jobs: Sequence[Job], console: RunConsole, forecast: Forecast
) -> AbstractContextManager[ProgressCallback]:
    """A line or bar with the number of the job; none for what takes no time."""
    if job.kind == "none":
        return nullcontext(lambda *_: None)
    worth = [each.stage for each in jobs if each.kind != "none"]
    return console.task(f"[{worth.index(job.stage) + 1}/{len(worth)}] {job.title}", forecast)


def _note_other_threads(done: Sequence[Job], folder: RunFolder, console: RunConsole) -> None:
    """Say once that the rest is computed with another number of threads than what is finished."""
    import torch

    systems = [folder.record(job.stage)["environment"].get("system", {}) for job in done]
    here = torch.get_num_threads()
    others = sorted({system["threads"] for system in systems if system.get("threads", here) != here})
    if others:
        there = " and ".join(map(str, others))
        console.say(
            f"note: finished stages were made with {there} thread{'' if others == [1] else 's'}, this call has {here}: "
            f"sums are rounded in another order, so its numbers are not bit for bit those that {there} would give; "
            f"set OMP_NUM_THREADS={others[0]} for that"
        )
