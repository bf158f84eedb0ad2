"""A folder that belongs to one experiment, and its finished stages: what makes it resumable after Ctrl-C or kill -9.

A stage's results lie in ``stages/<name>/``, and the folder appears by one rename when the stage is complete. So a
stage is finished if and only if its folder exists; whatever was killed left a hidden temporary folder, which the next
run removes. ``run.json`` names the format, the settings, which bind, and the grid of the last call, which may change.

A training that is under way keeps a checkpoint in ``checkpoints/<stage>/``, beside the stages, so that it outlives its
process; it goes when the stage is finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory, read_json, write_json

from .settings import differences

KIND = "kslottery-experiment/1"
_OLDER = ("kslottery-run/1", "kslottery-comparison-run/1")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one experiment, made by :func:`open_run_folder`. The stages that it sees begin with ``prefix``."""

    path: Path
    prefix: str = ""

    def view(self, prefix: str) -> RunFolder:
        """The same folder seen by one part of the run, whose stages all begin with ``prefix``."""
        return RunFolder(self.path, self.prefix + prefix)

    def stage_path(self, stage: str) -> Path:
        return self.path / "stages" / (self.prefix + stage)

    def finished(self, stage: str) -> bool:
        return self.stage_path(stage).is_dir()

    def checkpoints(self, stage: str) -> Path:
        """Where a training keeps the checkpoint that it goes on from if it is interrupted."""
        return self.path / "checkpoints" / (self.prefix + stage)

    def keep_grid(self, grid: Mapping[str, Any]) -> None:
        header = read_json(self.path / "run.json")
        if header["grid"] != dict(grid):
            write_json(self.path / "run.json", {**header, "grid": dict(grid)})

    @contextlib.contextmanager
    def write_stage(self, stage: str, environment: Callable[[], dict[str, Any]] = dict) -> Iterator[Path]:
        """Yield a temporary folder that becomes the stage's when the block succeeds, with time and environment.

        The time is that of all attempts, as far as a checkpoint kept what they had done.
        """
        started, checkpoints = time.perf_counter(), self.checkpoints(stage)
        with atomic_directory(self.stage_path(stage)) as folder:
            yield folder
            if checkpoints.is_dir():  # something trained
                from kslottery_fast.integrations.resuming import seconds_spent  # with transformers, which takes seconds

                started -= seconds_spent(checkpoints)
            seconds = round(time.perf_counter() - started, 1)
            write_json(folder / "stage.json", {"stage": stage, "seconds": seconds, "environment": environment()})
        _remove_checkpoints(checkpoints)

    def record(self, stage: str) -> dict[str, Any]:
        """``stage``, ``seconds`` and ``environment`` of a finished stage."""
        return dict(read_json(self.stage_path(stage) / "stage.json"))

    def seconds(self, stage: str) -> float:
        return float(self.record(stage)["seconds"])

    def _any_finished(self) -> bool:
        stages = self.path / "stages"
        return stages.is_dir() and any(not entry.name.startswith(".") for entry in stages.iterdir())


@contextlib.contextmanager
def open_run_folder(path: Path, settings: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Make the folder of an experiment, or take up the one that another call with the same settings left.

    ``settings`` bind the folder. ``grid`` is recorded with a new one; :meth:`RunFolder.keep_grid` records that of a
    later call.
    """
    header, run, existed = path / "run.json", RunFolder(path), path.exists()
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"output {path} is a file; give a folder that is new, empty, or this run's own")
        if header.exists():
            recorded = read_header(path)
            if run._any_finished():  # else killed before anything was there that other settings could spoil
                refuse(path, differences(recorded["settings"], settings))
        elif path.is_dir() and not all(entry.name == ".lock" or _half_done(entry) for entry in path.iterdir()):
            raise InputError(f"output {path} holds other files and no run; give a folder that is new or empty")
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not run._any_finished():
                write_json(header, {"format": KIND, "settings": dict(settings), "grid": dict(grid)})
            (path / "stages").mkdir(exist_ok=True)
            _tidy(run)
            try:
                yield run
            finally:
                # A run that ended before its first stage was finished, by a misspelt language say, leaves no trace.
                if not run._any_finished():
                    header.unlink()
                    shutil.rmtree(path / "stages")
                    (path / ".lock").unlink()
                    if not existed:
                        path.rmdir()
    except (OSError, shutil.Error) as error:
        place = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left for {place}; make room and run the same command again to resume"
        else:
            text = f"{place}: {os.strerror(error.errno) if error.errno else error}"
        raise InputError(text) from error


def read_header(path: Path) -> dict[str, Any]:
    """``run.json`` of an experiment's folder: ``settings`` and ``grid``."""
    header = read_json(path / "run.json")
    kind = header.get("format") if isinstance(header, dict) else None
    if kind in _OLDER:
        raise InputError(
            f"{path} was written by version 0.1, whose folders this version neither reads nor takes up; "
            "make the run anew in another folder, or use version 0.1 for it"
        )
    if kind != KIND or not all(isinstance(header.get(part), dict) for part in ("settings", "grid")):
        raise InputError(f"{path}/run.json is not of the format {KIND}; give another folder")
    return dict(header)


def refuse(path: Path, different: Sequence[str]) -> None:
    """Raise InputError where settings differ, see :func:`~.settings.differences`."""
    if different:
        raise InputError(
            f"output {path} belongs to a run with other settings ({'; '.join(different)}); "
            "give another --output, or the settings of that run to resume it"
        )


def _tidy(run: RunFolder) -> None:
    """Remove what a killed process left half-done; the lock says that nobody is at work on it."""
    stages, checkpoints = run.path / "stages", run.path / "checkpoints"
    for leftover in filter(_half_done, [*stages.iterdir(), *run.path.iterdir()]):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for checkpoint in checkpoints.glob("*"):
        if run.finished(checkpoint.name):
            _remove_checkpoints(checkpoint)


def _remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: another training waits there to go on; or not there at all
        folder.parent.rmdir()


def _half_done(entry: Path) -> bool:
    """Whether it is what a kill in the middle of ``files.atomic_path`` or ``atomic_directory`` leaves."""
    return entry.name.startswith(".") and entry.name.endswith((".tmp", ".old"))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with (path / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"output {path} is in use by another run; wait for it, or give another --output") from None
        yield
