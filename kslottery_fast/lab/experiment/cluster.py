"""Jobs on a Ray cluster. Each job is a task that depends on the tasks of the stages that it needs.

The tasks and the folder of the experiment must see the same file system. A task claims its stage like every other
process, so that the task that Ray starts in place of a killed one takes the stage over.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab

from .board import Board
from .claims import Claim
from .console import Forecast, ProgressCallback, RunConsole
from .jobs import Job, left, make_stage, prepare_process, take_turns
from .plan import Experiment
from .run_folder import RunFolder, join_run_folder, tidy
from .settings import ExperimentSettings

_RETRIES = 3  # how often Ray repeats a task whose process was killed
Messages = list[tuple[str, str]]


@dataclass(frozen=True)
class RayCluster:
    """An engine: the Ray cluster that this process is connected to, that RAY_ADDRESS names, or a new local one.

    Parameters
    ----------
    settings : ExperimentSettings
        The experiment, which every task opens for itself.
    """

    settings: ExperimentSettings

    def threads(self) -> int:
        """The threads of each task: OMP_NUM_THREADS, by default 1."""
        # OpenMP takes a list, "4,2": the number of threads at each level of nesting. It ignores what is not a number.
        first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        return max(1, int(first)) if first.isdecimal() else 1

    def __call__(self, jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
        """Do every job whose stage is not finished, see :func:`~.jobs.work_through`.

        Raises
        ------
        InputError
            Ray is missing, a task raised it, or a task was killed again and again.
        """
        if not (todo := left(jobs, folder, console, self.threads)):
            return
        with _connected() as ray:
            resources = ray.cluster_resources()
            console.say(f"a Ray cluster with {resources.get('CPU', 0):.0f} CPUs and {resources.get('GPU', 0):.0f} GPUs")
            options = {"num_cpus": self.threads(), "num_gpus": min(1, int(resources.get("GPU", 0)))}
            task = ray.remote(max_retries=_RETRIES, **options)(_make)
            place = (self.settings, folder.path.absolute(), Path.cwd(), command, self.threads())
            made: dict[str, Any] = {}
            for job in todo:
                made[job.stage] = task.remote(*place, job.stage, *(made[need] for need in job.needs if need in made))
            board = Board(jobs, folder, console, max(1, int(resources.get("CPU", 1)) // self.threads()))
            try:
                _follow(ray, {reference: stage for stage, reference in made.items()}, board)
            finally:
                tidy(folder)  # what killed tasks left


def _follow(ray: Any, stages: dict[Any, str], board: Board) -> None:
    """Show what the tasks have finished, as they finish it. If one fails, stop all others."""
    try:
        while stages:
            (ready,), _ = ray.wait(list(stages), num_returns=1)
            stage = stages.pop(ready)
            for kind, text in _result(ray, ready, board.by_stage[stage]):
                getattr(board, kind)(0, text)
            board.finished(0, stage)
    finally:
        for reference in stages:
            ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, job: Job) -> Messages:
    try:
        return list(ray.get(reference))
    except InputError as error:  # Ray raises a class of its own that is also of the class of its cause
        raise InputError(str(getattr(error, "cause", error))) from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise InputError(
            f"the task of {job.title!r} was killed {_RETRIES + 1} times, perhaps because memory ran out "
            f"({type(error).__name__}); run the same command on larger nodes to resume"
        ) from None


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to a cluster. What is started here ends with the block."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone unless the user asks for it
    import ray

    if ray.is_initialized():
        yield ray
        return
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **options)
    except ConnectionError:
        ray.init(address="local", include_dashboard=False, **options)
    try:
        yield ray
    finally:
        ray.shutdown()


def require_ray() -> None:
    """Raise InputError if Ray is not installed."""
    require_lab("--cluster ray", "ray", extra="ray")


class _Collector(RunConsole):
    """The console of a task. What it would write is part of the result of the task."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: Messages = []

    def say(self, text: str) -> None:
        self.messages.append(("say", text))

    def note(self, text: str) -> None:
        self.messages.append(("note", text))

    @contextlib.contextmanager
    def task(self, title: str, forecast: Forecast | None = None) -> Iterator[ProgressCallback]:
        yield lambda done, total, note="": None


@functools.lru_cache(maxsize=1)
def _opened(settings: ExperimentSettings, path: Path) -> tuple[Experiment, _Collector]:
    """The experiment of a task. Ray uses its processes again, so that the next task finds the model loaded."""
    console = _Collector()
    return Experiment(settings, RunFolder(path), console), console


def _make(
    settings: ExperimentSettings, path: Path, cwd: Path, command: str, threads: int, stage: str, *needs: Messages
) -> Messages:
    """The task of one job. ``cwd`` is where paths in the settings begin."""
    prepare_process(threads)
    os.chdir(cwd)
    experiment, console = _opened(settings, path)
    console.messages.clear()
    with join_run_folder(path) as folder:

        def do(job: Job, claim: Claim) -> None:
            make_stage(job, folder, command, lambda *_: None, claim)

        take_turns([job for job in experiment.jobs() if job.stage == stage], folder, do)
    return list(console.messages)
