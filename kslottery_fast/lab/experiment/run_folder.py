"""The folder of one experiment and its finished stages, which make it resumable after Ctrl-C or kill -9.

The results of a stage are in ``stages/<name>/``. This folder appears by one rename when the stage is complete, so a
stage is finished if and only if its folder exists. A process that was killed leaves a hidden temporary folder, which
the next run removes. Several processes may make stages of one folder, see :mod:`.claims`. ``run.json`` holds the
format, the settings that bind the folder, the grid of the latest call, and the directory in which relative paths begin.

A training that is not finished keeps a checkpoint in ``checkpoints/<stage>/``, outside the stages, so that it outlives
its process. The checkpoint is removed when the stage is finished.
"""

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

from typing_extensions import Self

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory, read_json, write_json

from .claims import Claims
from .directory import directory_entry
from .run_settings import differences

KIND = "kslottery-experiment/1"
_OLDER = ("kslottery-run/1", "kslottery-comparison-run/1")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one experiment. :func:`open_run_folder` makes it.

    Parameters
    ----------
    path : Path
        The folder.
    prefix : str
        Added to the name of every stage.
    """

    path: Path
    prefix: str = ""

    def view(self, prefix: str) -> Self:
        """The same folder for one part of the run, whose stages all begin with ``prefix``."""
        return type(self)(self.path, self.prefix + prefix)

    def stage_path(self, stage: str) -> Path:
        """The folder of a stage, finished or not."""
        return self.path / "stages" / (self.prefix + stage)

    def finished(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return self.stage_path(stage).is_dir()

    def checkpoints(self, stage: str) -> Path:
        """The folder in which the training of a stage keeps its checkpoint."""
        return self.path / "checkpoints" / (self.prefix + stage)

    @property
    def claims(self) -> Claims:
        """The claims of processes on the stages that they make."""
        return Claims(self.path / "claims")

    def keep_grid(self, grid: Mapping[str, Any]) -> None:
        """Record the grid of this call, and the directory in which its relative paths begin, in ``run.json``."""
        header = read_json(self.path / "run.json")
        now = {**header, "grid": dict(grid), **directory_entry(header["settings"])}
        if now != header:
            write_json(self.path / "run.json", now)

    @contextlib.contextmanager
    def write_stage(self, stage: str, environment: Callable[[], dict[str, Any]] = dict) -> Iterator[Path]:
        """Yield a temporary folder that becomes the folder of the stage if the block succeeds.

        If another process finished the stage in the meantime, its folder stays.

        The time and the environment are recorded with it. The time includes earlier attempts whose work a checkpoint
        kept.
        """
        started, checkpoints = time.perf_counter(), self.checkpoints(stage)
        with atomic_directory(self.stage_path(stage), keep=True) as folder:
            yield folder
            if checkpoints.is_dir():
                from kslottery_fast.integrations.resuming import seconds_spent  # slow: imports transformers

                started -= seconds_spent(checkpoints)
            seconds = round(time.perf_counter() - started, 1)
            write_json(folder / "stage.json", {"stage": stage, "seconds": seconds, "environment": environment()})
        _remove_checkpoints(checkpoints)

    def record(self, stage: str) -> dict[str, Any]:
        """``stage``, ``seconds`` and ``environment`` of a finished stage."""
        path = self.stage_path(stage) / "stage.json"
        record = read_json(path)
        sound = isinstance(record, dict) and type(record.get("seconds")) in (int, float)
        if not sound or not isinstance(record.get("environment"), dict):
            raise InputError(f"{path} is damaged: expected seconds and environment; remove its folder and run again")
        return record

    def seconds(self, stage: str) -> float:
        """How long a finished stage took."""
        return float(self.record(stage)["seconds"])

    def _begun(self) -> bool:
        """Whether a stage is finished, or another process makes one."""
        stages = self.path / "stages"
        finished = stages.is_dir() and any(not entry.name.startswith(".") for entry in stages.iterdir())
        return finished or self.claims.any_held()


@contextlib.contextmanager
def open_run_folder(
    path: Path, settings: Mapping[str, Any], grid: Mapping[str, Any], *, keep: bool = False
) -> Iterator[RunFolder]:
    """Make the folder of an experiment, or resume in the folder of an earlier call with the same settings.

    No second process can open the folder in the meantime. Processes that :func:`join_run_folder` may make stages.

    Parameters
    ----------
    path : Path
        The folder.
    settings : mapping
        The settings that bind the folder.
    grid : mapping
        The grid, which is recorded with a new folder. :meth:`RunFolder.keep_grid` records that of a later call.
    keep : bool
        Whether to keep a folder in which no stage is finished. Otherwise it is removed.

    Raises
    ------
    InputError
        A folder that :func:`check_run_folder` refuses, that another process uses, or that cannot be written.
    """
    header, run, existed = path / "run.json", RunFolder(path), path.exists()
    with _errors_named(path):
        check_run_folder(path, settings)
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not run._begun():
                parts = {"settings": dict(settings), "grid": dict(grid), **directory_entry(settings)}
                write_json(header, {"format": KIND, **parts})
            (path / "stages").mkdir(exist_ok=True)
            tidy(run)
            try:
                yield run
            finally:
                # A run that failed before its first stage was finished leaves no trace.
                if not keep and not run._begun():
                    run.claims.tidy()
                    header.unlink()
                    shutil.rmtree(path / "stages")
                    (path / ".lock").unlink()
                    if not existed:
                        path.rmdir()


@contextlib.contextmanager
def join_run_folder(path: Path) -> Iterator[RunFolder]:
    """Make stages in the folder of an experiment that another process may have opened.

    Parameters
    ----------
    path : Path
        The folder. :func:`read_header` has its settings.

    Raises
    ------
    InputError
        The folder holds no experiment, or cannot be written.
    """
    read_header(path)
    with _errors_named(path):
        (path / "stages").mkdir(exist_ok=True)
        yield RunFolder(path)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Make an error of the system one of input, which names the place."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        place = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left for {place}; free some space and run the same command again to resume"
        else:
            text = f"{place}: {os.strerror(error.errno) if error.errno else error}"
        raise InputError(text) from error


def check_run_folder(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder in which an experiment can neither start nor resume. Nothing is changed.

    Parameters
    ----------
    path : Path
        The folder, which need not exist.
    settings : mapping
        The settings that bind the folder.

    Raises
    ------
    InputError
        A file, a folder that holds anything else, or an experiment of another version or with other settings.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"output {path} is a file; give a new or empty folder, or the folder of the run to resume")
    if (path / "run.json").exists():
        recorded = read_header(path)
        if RunFolder(path)._begun():  # before that there is nothing that other settings could spoil
            refuse(path, differences(recorded["settings"], settings))
    elif path.is_dir() and not all(entry.name == ".lock" or _half_done(entry) for entry in path.iterdir()):
        raise InputError(f"output {path} holds other files and no run; give a new or empty folder")


def read_header(path: Path) -> dict[str, Any]:
    """Read ``run.json`` from the folder of an experiment: its ``settings``, ``grid`` and maybe ``directory``.

    Raises
    ------
    InputError
        The file is missing or broken, or is not of this version.
    """
    if not (path / "run.json").exists():
        what = "holds no experiment" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give the folder of `kslottery run` or `kslottery compare`")
    header = read_json(path / "run.json")
    kind = header.get("format") if isinstance(header, dict) else None
    if kind in _OLDER:
        raise InputError(
            f"{path} was written by version 0.1, whose folders this version cannot read; "
            "run the experiment again in another folder, or use version 0.1"
        )
    if kind != KIND or not all(isinstance(header.get(part), dict) for part in ("settings", "grid")):
        raise InputError(f"{path}/run.json is not of the format {KIND}; give another folder")
    return dict(header)


def refuse(path: Path, different: Sequence[str]) -> None:
    """Raise InputError if settings differ. ``different`` comes from :func:`~.settings.differences`."""
    if different:
        raise InputError(
            f"output {path} belongs to a run with other settings ({'; '.join(different)}); "
            "give another --output, or the settings of that run to resume it"
        )


def tidy(run: RunFolder) -> None:
    """Remove what killed processes left unfinished.

    The lock guarantees that no process writes the products, and a stage that a process makes has a claim.
    """
    stages, checkpoints, claims = run.path / "stages", run.path / "checkpoints", run.claims
    claims.tidy()
    for leftover in filter(_half_done, [*stages.iterdir(), *run.path.iterdir()]):
        if not claims.held(leftover.name[1:].rsplit(".", 2)[0]):
            # Its process may have finished it in the meantime.
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    for checkpoint in checkpoints.glob("*"):
        if run.finished(checkpoint.name):
            _remove_checkpoints(checkpoint)


def _remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty, because another training has a checkpoint there, or missing
        folder.parent.rmdir()


def _half_done(entry: Path) -> bool:
    """Whether a kill within ``files.atomic_path`` or ``atomic_directory`` left this entry."""
    return entry.name.startswith(".") and entry.name.endswith((".tmp", ".old"))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with (path / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"output {path} is in use by another run; wait for it, or give another --output") from None
        except OSError as error:
            # Some mounts of Lustre and NFS have no locks. Claims still keep each stage to one process.
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield
