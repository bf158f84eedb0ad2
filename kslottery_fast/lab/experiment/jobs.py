"""Jobs, each of which leaves a finished stage. That makes a command resumable, and lets several processes share it."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from kslottery_fast.base.memory import reset_peak_memory, trimming

from .claims import Claim, ClaimLostError
from .console import Effort, Forecast, ProgressCallback, RunConsole
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
        between the two. To call it twice, even at the same time, must have the same effect as to call it once.
    kind : str
        The kind of work, see :class:`~.console.Effort`.
    size : float
        How much work there is, compared with other jobs of this kind.
    show : callable, optional
        Shows what the stage found. Called once in every call that has work to do.
    idle : callable
        Returns whether a finished stage did less than others of its kind, so that its time says nothing about them.
    needs : tuple of str
        The stages that the work reads.
    """

    stage: str
    title: str
    work: Callable[[Path, ProgressCallback], None]
    afterwards: Callable[[], None] = lambda: None
    kind: str = "other"
    size: float = 1.0
    show: Callable[[], None] | None = None
    idle: Callable[[], bool] = lambda: False
    needs: tuple[str, ...] = ()

    @property
    def effort(self) -> Effort:
        """What the job takes time for."""
        return Effort(self.kind, self.size)


class Engine(Protocol):
    """A way to do jobs: :func:`work_through` in this process, or one that has others do them."""

    def __call__(self, jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
        """Do every job whose stage is not finished, see :func:`work_through`."""


def work_through(jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
    """Do every job whose stage is not finished, one after the other in this process.

    The record of a stage holds its time and its peak memory. On systems that cannot measure the peak of one job, it is
    the peak of the process.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs, finished or not. A job stands after those whose stages it needs.
    folder : RunFolder
        Where the stages are.
    console : RunConsole
        Where progress is written.
    command : str
        The command line, which is recorded with each stage.
    """
    import torch

    done, todo = begin(jobs, folder, console, torch.get_num_threads)
    forecast = Forecast(())
    for job in done:
        if not job.idle():
            forecast.learn(job.effort, folder.seconds(job.stage))

    def do(job: Job, claim: Claim) -> None:
        others = [other.effort for other in todo if other != job and not folder.finished(other.stage)]
        forecast.left = [job.effort, *others]
        with _shown(job, jobs, console, forecast) as progress:
            make_stage(job, folder, command, progress, claim)
        forecast.finish(None if job.idle() else folder.seconds(job.stage))
        if job.show:
            job.show()

    waiting = once(lambda: console.say("waiting for stages that other processes make"))
    take_turns(todo, folder, do, waiting=waiting)


def left(jobs: Sequence[Job], folder: RunFolder, console: RunConsole, threads: Callable[[], int]) -> list[Job]:
    """The jobs that other processes are to do, after :func:`begin`. ``threads`` are those of each of them."""
    return begin(jobs, folder, console, threads)[1]


def prepare_process(threads: int) -> None:
    """Let a process that does jobs for another one use so many threads."""
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers are imported
    torch.set_num_threads(threads)


def begin(
    jobs: Sequence[Job], folder: RunFolder, console: RunConsole, threads: Callable[[], int]
) -> tuple[list[Job], list[Job]]:
    """Catch up on what is finished, and return the jobs that are done and those that are left.

    Parameters
    ----------
    jobs, folder, console
        As for :func:`work_through`.
    threads : callable
        Returns the number of threads with which the rest is computed. Called if there is a rest.
    """
    done = [job for job in jobs if folder.finished(job.stage)]
    todo = [job for job in jobs if not folder.finished(job.stage)]
    for job in done:
        job.afterwards()
    if todo:
        _note_other_threads(done, folder, console, threads())
        for job in done:
            if job.show:
                job.show()
    return done, todo


def take_turns(
    jobs: Sequence[Job],
    folder: RunFolder,
    do: Callable[[Job, Claim], None],
    *,
    waiting: Callable[[], None] = lambda: None,
    nap: float = 0.5,
) -> None:
    """Do the jobs that no other process does, until the stages of all are finished.

    Any number of processes can do this at a time, on any machines that share the folder. Each takes the first job whose
    needs are finished and that no other holds. If a process dies, another takes its job over.

    Parameters
    ----------
    jobs : sequence of Job
        The jobs. Those that stand first are done first.
    folder : RunFolder
        Where the stages are.
    do : callable(job, claim)
        Makes the stage of a job while this process holds the claim on it.
    waiting : callable
        Called whenever there is nothing to do but to wait for other processes.
    nap : float
        Seconds to wait before looking again.
    """
    left = list(jobs)
    while left := [job for job in left if not folder.finished(job.stage)]:
        if not any(_did(job, folder, do) for job in left):
            waiting()
            time.sleep(nap)


def _did(job: Job, folder: RunFolder, do: Callable[[Job, Claim], None]) -> bool:
    """Do a job if it can be done now. Say whether it was done."""
    if not all(folder.finished(need) for need in job.needs):
        return False
    with folder.claims.holding(job.stage) as claim, contextlib.suppress(ClaimLostError):
        if claim is None or folder.finished(job.stage):
            return False
        do(job, claim)
        return True
    return False


def make_stage(job: Job, folder: RunFolder, command: str, progress: ProgressCallback, claim: Claim) -> None:
    """Make the stage of a job.

    Parameters
    ----------
    job : Job
        The job.
    folder : RunFolder
        Where its stage will be.
    command : str
        The command line, which is recorded with the stage.
    progress : callable
        Called with the progress.
    claim : Claim
        The claim of this process on the stage.

    Raises
    ------
    ClaimLostError
        Another process has taken the stage over.
    """
    from .environment import snapshot

    def report(done: int, total: int, note: str = "") -> None:
        claim.check()
        progress(done, total, note)

    own_peak = reset_peak_memory()
    with folder.write_stage(job.stage, partial(snapshot, command, own_peak=own_peak)) as temporary:
        job.work(temporary, trimming(report))
        claim.check()
    job.afterwards()


def levels(jobs: Sequence[Job]) -> dict[str, int]:
    """The level of every stage, from 1: a job needs only stages of lower levels, or such as are not among the jobs.

    Examples
    --------
    >>> work = lambda folder, progress: None
    >>> levels([Job("corpus", "", work), Job("embed", "", work, needs=("corpus",)), Job("other", "", work)])
    {'corpus': 1, 'embed': 2, 'other': 1}
    """
    found: dict[str, int] = {}
    for job in jobs:
        found[job.stage] = 1 + max((found.get(need, 0) for need in job.needs), default=0)
    return found


def once(call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls another one at its first call only."""
    calls = [call]

    def first() -> None:
        if calls:
            calls.pop()()

    return first


def numbered(job: Job, jobs: Sequence[Job]) -> str:
    """The title of a job with its number among the jobs that take time."""
    worth = [each.stage for each in jobs if each.kind != "none"]
    return f"[{worth.index(job.stage) + 1}/{len(worth)}] {job.title}"


def _shown(
    job: Job, jobs: Sequence[Job], console: RunConsole, forecast: Forecast
) -> AbstractContextManager[ProgressCallback]:
    """A line or bar with the number of the job. Jobs that take no time have none."""
    if job.kind == "none":
        return nullcontext(lambda *_: None)
    return console.task(numbered(job, jobs), forecast)


def _note_other_threads(done: Sequence[Job], folder: RunFolder, console: RunConsole, here: int) -> None:
    """Note once that the rest is computed with another number of threads than the finished stages."""
    systems = [folder.record(job.stage)["environment"].get("system", {}) for job in done]
    others = sorted({system["threads"] for system in systems if system.get("threads", here) != here})
    if others:
        there = " and ".join(map(str, others))
        console.note(
            f"the finished stages were made with {there} thread{'' if others == [1] else 's'}, and this call has "
            f"{here}. Sums are then rounded in another order, so results may differ in their last bits. Set "
            f"OMP_NUM_THREADS={others[0]} to get the same bits"
        )
