"""Jobs that are done in order. Each leaves a finished stage, which makes a command resumable."""

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
    """One stage to make.

    Parameters
    ----------
    stage : str
        The name of the stage.
    title : str
        The name of the job in the progress.
    work : callable(folder, progress)
        Writes the files of the stage into a temporary folder.
    afterwards : callable
        Called when the stage is finished, and again at every later start, because the process may have been killed
        between the two. To call it twice must have the same effect as to call it once.
    kind : str
        The kind of work, for :class:`~.console.Forecast`.
    show : callable, optional
        Shows what the stage found. Called once in every call that has work to do.
    idle : callable
        Returns whether a finished stage had nothing to do. Its time then says nothing about others.
    """

    stage: str
    title: str
    work: Callable[[Path, ProgressCallback], None]
    afterwards: Callable[[], None] = lambda: None
    kind: str = "other"
    show: Callable[[], None] | None = None
    idle: Callable[[], bool] = lambda: False


def work_through(jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
    """Do every job whose stage is not finished, in order.

    A job may read the stages of the jobs before it. The record of a stage holds its time and its peak memory. On
    systems that cannot measure the peak of one job, it is the peak of the process.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs, finished or not.
    folder : RunFolder
        Where the stages are.
    console : RunConsole
        Where progress is written.
    command : str
        The command line, which is recorded with each stage.
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
        forecast.finish(None if job.idle() else folder.seconds(job.stage))
        if job.show:
            job.show()


def _shown(
    job: Job, jobs: Sequence[Job], console: RunConsole, forecast: Forecast
) -> AbstractContextManager[ProgressCallback]:
    """A line or bar with the number of the job. Jobs that take no time have none."""
    if job.kind == "none":
        return nullcontext(lambda *_: None)
    worth = [each.stage for each in jobs if each.kind != "none"]
    return console.task(f"[{worth.index(job.stage) + 1}/{len(worth)}] {job.title}", forecast)


def _note_other_threads(done: Sequence[Job], folder: RunFolder, console: RunConsole) -> None:
    """Note once that the rest is computed with another number of threads than the finished stages."""
    import torch

    systems = [folder.record(job.stage)["environment"].get("system", {}) for job in done]
    here = torch.get_num_threads()
    others = sorted({system["threads"] for system in systems if system.get("threads", here) != here})
    if others:
        there = " and ".join(map(str, others))
        console.note(
            f"the finished stages were made with {there} thread{'' if others == [1] else 's'}, and this call has "
            f"{here}. Sums are then rounded in another order, so results may differ in their last bits. Set "
            f"OMP_NUM_THREADS={others[0]} to get the same bits"
        )
