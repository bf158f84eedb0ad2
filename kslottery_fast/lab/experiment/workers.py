"""Several processes of this machine that share the jobs of an experiment.

Each worker has a model of its own and takes the next job that nobody else does, see :func:`~.jobs.take_turns`. The
process that starts the workers does no job. It shows what they do, and ends all of them if one fails.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.memory import available_memory_bytes
from kslottery_fast.lab.models.names import DEFAULT_MODEL

from .board import Board
from .claims import Claim
from .console import Forecast, ProgressCallback, RunConsole
from .jobs import Job, left, make_stage, prepare_process, take_turns
from .plan import Experiment
from .run_folder import RunFolder, join_run_folder, tidy
from .settings import ExperimentSettings

_GRACE = 5.0  # seconds that a worker gets to end
_MEMORY = {DEFAULT_MODEL: 3.3e9}  # bytes of a worker, measured


class WorkerError(RuntimeError):
    """A worker failed, and not because of bad input. The message is its traceback."""


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    messages: Connection


@dataclass(frozen=True)
class LocalWorkers:
    """An engine: several processes of this machine.

    Parameters
    ----------
    settings : ExperimentSettings
        The experiment, which every worker opens for itself.
    count : int
        The number of processes. They share the threads of this one evenly.
    """

    settings: ExperimentSettings
    count: int

    def threads(self) -> int:
        """The threads of each worker."""
        import torch

        return max(1, torch.get_num_threads() // self.count)

    def __call__(self, jobs: Sequence[Job], folder: RunFolder, console: RunConsole, command: str) -> None:
        """Do every job whose stage is not finished, see :func:`~.jobs.work_through`.

        Raises
        ------
        InputError
            A worker raised it, or all workers were killed.
        WorkerError
            A worker failed with another error.
        """
        if not (todo := left(jobs, folder, console, self.threads)):
            return
        board = Board(jobs, folder, console, self.count)
        threads = self.threads()
        console.say(f"{self.count} workers, each with {threads} thread{'' if threads == 1 else 's'}")
        with board.shown():
            self._follow(folder, board, command, threads)
        if undone := [job.title for job in todo if not folder.finished(job.stage)]:
            raise InputError(
                f"all workers were killed, perhaps because memory ran out, and {len(undone)} jobs are left, "
                f"beginning with {undone[0]!r}; run the same command with fewer --workers to resume"
            )

    def _follow(self, folder: RunFolder, board: Board, command: str, threads: int) -> None:
        with self._running(folder, command, threads) as workers:
            while workers:
                for ready in wait(list(workers), timeout=min(1.0, board.console.heartbeat)):
                    worker = workers[ready]  # type: ignore[index]
                    try:
                        _show(worker.messages.recv(), worker.number, board)
                    except EOFError:
                        del workers[worker.messages]
                        _say_how_it_ended(worker, board, last=not workers)
                board.beat()

    @contextlib.contextmanager
    def _running(self, folder: RunFolder, command: str, threads: int) -> Iterator[dict[Connection, _Worker]]:
        """Start the workers, and end those that are left when the block ends."""
        context = multiprocessing.get_context("spawn")  # torch has threads, which a fork would not have
        workers: list[_Worker] = []
        try:
            for number in range(1, self.count + 1):
                messages, theirs = context.Pipe(duplex=False)
                task = (theirs, self.settings, folder.path, command, threads)
                process = context.Process(target=_work, args=task, name=f"worker {number}", daemon=True)
                with _interrupts_blocked(), _omp_threads(threads):
                    process.start()
                theirs.close()
                workers.append(_Worker(number, process, messages))
            yield {worker.messages: worker for worker in workers}
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join(_GRACE)
                worker.process.kill()
                worker.process.join()
                worker.messages.close()
            tidy(folder)


def fitting(settings: ExperimentSettings, folder: RunFolder) -> int:
    """How many workers this machine has cores and free memory for. 1 if it has a GPU, or if the model is not known.

    Parameters
    ----------
    settings : ExperimentSettings
        The experiment.
    folder : RunFolder
        Its folder, which need not exist. The memory of a worker is the largest peak of its finished stages, if any.
    """
    import torch

    needed = _recorded_peak(folder) or _estimated_peak(settings.base.model)
    if needed is None or torch.accelerator.is_available():
        return 1
    cores = torch.get_num_threads() if "OMP_NUM_THREADS" not in os.environ else _cores()
    return max(1, min(cores, int(available_memory_bytes() / needed)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _recorded_peak(folder: RunFolder) -> float:
    records = [folder.record(path.name) for path in (folder.path / "stages").glob("[!.]*")]
    return max((1e6 * record["environment"].get("peak_memory_mb", 0) for record in records), default=0)


def _estimated_peak(model: str) -> float | None:
    """Bytes of a worker: torch, the model in float32, and what a step keeps. None if the model is not here."""
    path = Path(model).expanduser()
    files = [path] if path.is_file() else list(path.glob("*.safetensors")) if path.is_dir() else []
    return _MEMORY.get(model) or (2e9 + 4 * sum(file.stat().st_size for file in files) if files else None)


def _show(message: tuple[Any, ...], worker: int, board: Board) -> None:
    kind, *rest = message
    if kind == "error":
        raise InputError(*rest)
    if kind == "crash":
        raise WorkerError(*rest)
    getattr(board, kind)(worker, *rest)


def _say_how_it_ended(worker: _Worker, board: Board, *, last: bool) -> None:
    worker.process.join()
    board.ended(worker.number)
    code = worker.process.exitcode or 0
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        rest = "" if last else ", and the others go on with its job"
        board.console.note(f"worker {worker.number} {how}{rest}")


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, whatever it is doing. The process that started it ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _omp_threads(count: int) -> Iterator[None]:
    """Start a process whose libraries read this number of threads as they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _Reporter(RunConsole):
    """The console of a worker. What it would write goes to the process that started it."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self.send = send

    def say(self, text: str) -> None:
        self.send("say", text)

    def note(self, text: str) -> None:
        self.send("note", text)

    @contextlib.contextmanager
    def task(self, title: str, forecast: Forecast | None = None) -> Iterator[ProgressCallback]:
        yield lambda done, total, note="": self.send("progress", done, total, note or title)


def _work(messages: Connection, settings: ExperimentSettings, path: Path, command: str, threads: int) -> None:
    """What a worker does."""
    _end_with_parent()

    def send(*message: Any) -> None:
        messages.send(message)

    try:
        prepare_process(threads)
        from . import training  # noqa: F401 (slow, and the first job of another worker takes a while)

        with join_run_folder(path) as folder:
            _take_turns(settings, folder, command, send)
    except InputError as error:
        send("error", str(error))
    except Exception:
        send("crash", traceback.format_exc())


def _take_turns(settings: ExperimentSettings, folder: RunFolder, command: str, send: Callable[..., None]) -> None:
    def do(job: Job, claim: Claim) -> None:
        send("started", job.stage)
        make_stage(job, folder, command, lambda done, total, note="": send("progress", done, total, note), claim)
        send("finished", job.stage)

    take_turns(Experiment(settings, folder, _Reporter(send)).jobs(), folder, do, nap=0.1)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even by kill -9."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by another process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
