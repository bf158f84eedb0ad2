"""A folder that belongs to one run, and its finished stages: what makes a run resumable after Ctrl-C or kill -9.

A stage's results lie in ``stages/<name>/``, and the folder appears by one rename when the stage is complete. So a
stage is finished if and only if its folder exists; whatever was killed left a hidden temporary folder, which the next
run removes. ``run.json`` names the format and the settings; a run with other settings is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory, read_json, write_json

from .run_settings import differences

FORMAT = "kslottery-run/1"


class RunFolder:
    """The folder of one run; make it with :func:`open_run_folder`. The stages that it sees begin with ``prefix``."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix

    def view(self, prefix: str) -> RunFolder:
        """The same folder seen by one part of the run, whose stages all begin with ``prefix``."""
        return RunFolder(self.path, self.prefix + prefix)

    def finished(self, stage: str) -> bool:
        """Whether the stage is complete."""
        return self.stage_path(stage).is_dir()

    def stage_path(self, stage: str) -> Path:
        """Where the results of a finished stage lie."""
        return self.path / "stages" / (self.prefix + stage)

    @contextlib.contextmanager
    def write_stage(self, stage: str, environment: Callable[[], dict[str, Any]] = dict) -> Iterator[Path]:
        """Yield a temporary folder that becomes the stage's when the block succeeds, with time and environment."""
        started = time.perf_counter()
        with atomic_directory(self.stage_path(stage)) as folder:
            yield folder
            seconds = round(time.perf_counter() - started, 1)
            write_json(folder / "stage.json", {"stage": stage, "seconds": seconds, "environment": environment()})

    def record(self, stage: str) -> dict[str, Any]:
        """``stage``, ``seconds`` and ``environment`` of a finished stage."""
        return dict(read_json(self.stage_path(stage) / "stage.json"))

    def seconds(self, stage: str) -> float:
        """How long a finished stage took."""
        return float(self.record(stage)["seconds"])

    def _any_finished(self) -> bool:
        stages = self.path / "stages"
        return stages.is_dir() and any(not entry.name.startswith(".") for entry in stages.iterdir())


@contextlib.contextmanager
def open_run_folder(path: Path, settings: Mapping[str, Any], *, kind: str = FORMAT) -> Iterator[RunFolder]:
    """Make the folder of a run, or take up the one that a run of the same ``kind`` with the same settings left.

    Raises
    ------
    InputError : the folder holds something else, or a run with other settings (the differences are shown); another
        process is at work in it; it cannot be written.
    """
    header, run, existed = path / "run.json", RunFolder(path), path.exists()
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"output {path} is a file; give a folder that is new, empty, or this run's own")
        if header.exists():
            _compare(path, read_json(header), settings, kind, binding=run._any_finished())
        elif path.is_dir() and not all(entry.name == ".lock" or _half_done(entry) for entry in path.iterdir()):
            raise InputError(f"output {path} holds other files and no run; give a folder that is new or empty")
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not run._any_finished():
                write_json(header, {"format": kind, "settings": dict(settings)})
            stages = path / "stages"
            stages.mkdir(exist_ok=True)
            # What a killed process left half-done; the lock says that nobody is at work on it.
            for leftover in filter(_half_done, [*stages.iterdir(), *path.iterdir()]):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            try:
                yield run
            finally:
                # A run that ended before its first stage was finished, by a misspelt language say, leaves no trace.
                if not run._any_finished():
                    header.unlink()
                    shutil.rmtree(stages)
                    (path / ".lock").unlink()
                    if not existed:
                        path.rmdir()
    except (OSError, shutil.Error) as error:
        raise _os_error(path, error) from error


def _half_done(entry: Path) -> bool:
    """Whether it is what a kill in the middle of ``files.atomic_path`` or ``atomic_directory`` leaves."""
    return entry.name.startswith(".") and entry.name.endswith((".tmp", ".old"))


def _compare(path: Path, header: Any, settings: Mapping[str, Any], kind: str, *, binding: bool) -> None:
    if not isinstance(header, dict) or header.get("format") != kind or not isinstance(header.get("settings"), dict):
        raise InputError(f"{path}/run.json is not of the format {kind}; give another --output")
    if not binding:  # killed before anything was finished: nothing there that other settings could spoil
        return
    different = differences(header["settings"], settings)
    if different:
        raise InputError(
            f"output {path} belongs to a run with other settings ({'; '.join(different)}); "
            "give another --output, or the settings of that run to resume it"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with (path / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"output {path} is in use by another run; wait for it, or give another --output") from None
        yield


def _os_error(path: Path, error: OSError) -> InputError:
    place = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"no space left for {place}; make room and run the same command again to resume")
    return InputError(f"{place}: {os.strerror(error.errno) if error.errno else error}")
