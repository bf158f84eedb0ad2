"""Claims: which process makes which stage, on one machine or on several that share the folder.

A claim is a file ``claims/<stage>.<number>``, which only one process can create. Its owner touches it again and again.
A claim is dead if its process is gone, which only the same machine can see, or if it was not touched for a while. Then
another process creates the claim with the next number. The largest number holds the stage, so a process that was only
suspended sees that it lost its claim. No dead claim has to be removed first, and so no live one can be removed by
mistake. Every claim holds a name that no other has, because a number is used again once its claims are removed.

This needs a file system on which only one process can create a file, and no more: no locks, and no clocks that agree.
"""

import contextlib
import json
import os
import platform
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

BEAT, SILENCE = 10.0, 180.0
"""Seconds between two touches of a claim, and without a touch until it is dead. NFS shows a touch up to 60 s late."""


class ClaimLostError(Exception):
    """Another process makes the stage now, because this one did not touch its claim for too long."""


class Claim:
    """A stage that this process makes. It is touched by a thread of its own until it is released.

    Parameters
    ----------
    path : Path
        The file of the claim.
    content : str
        What this process wrote into it. No other claim holds the same.
    beat : float
        Seconds between two touches.
    """

    def __init__(self, path: Path, content: str, beat: float) -> None:
        self.path, self.content, self.lost, self._released = path, content, False, threading.Event()
        self.stage, _, number = path.name.rpartition(".")
        self.number = int(number)
        self._thread = threading.Thread(target=self._touch, args=(beat,), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ClaimLostError if another process has taken the stage over."""
        if self.lost:
            raise ClaimLostError(self.stage)

    def release(self) -> None:
        """Give the stage up, finished or not, and remove the dead claims on it."""
        self._released.set()
        self._thread.join()
        for number, path in _claims_on(self.path.parent, self.stage):
            if number < self.number or (number == self.number and self._is_mine()):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or already gone
            self.path.parent.rmdir()

    def _touch(self, beat: float) -> None:
        while not self._released.wait(beat):
            with contextlib.suppress(OSError):  # a server that does not answer: others will see the silence
                found = [number for number, _ in _claims_on(self.path.parent, self.stage)]
                self.lost = self.number not in found or found[-1] > self.number or not self._is_mine()
                if not self.lost:
                    os.utime(self.path)

    def _is_mine(self) -> bool:
        """Whether the file is that of this process, and not one that another made after it had been removed."""
        try:
            return self.path.read_text(encoding="utf-8") == self.content
        except FileNotFoundError:
            return False


class Claims:
    """The claims on the stages of a folder.

    Parameters
    ----------
    folder : Path
        Where the claims are. It exists while there are claims.
    beat, silence : float
        Seconds between two touches, and without a touch until a claim is dead.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, silence: float = SILENCE) -> None:
        self.folder, self.beat, self.silence = folder, beat, silence

    @contextlib.contextmanager
    def holding(self, stage: str) -> Iterator[Claim | None]:
        """Hold a claim inside the block. It is None if another process holds the stage."""
        claim = self._take(stage)
        try:
            yield claim
        finally:
            if claim is not None:
                claim.release()

    def held(self, stage: str) -> bool:
        """Whether a process holds a stage."""
        found = _claims_on(self.folder, stage)
        return bool(found) and not self._dead(found[-1][1])

    def any_held(self) -> bool:
        """Whether a process holds any stage."""
        return any(self.held(stage) for stage in self._stages())

    def tidy(self) -> None:
        """Remove the claims on stages that no process holds."""
        for stage in self._stages():
            found = _claims_on(self.folder, stage)
            if found and self._dead(found[-1][1]):
                for _, path in found:  # and not one that was made in the meantime
                    path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _stages(self) -> set[str]:
        names = _names(self.folder)
        return {name.rpartition(".")[0] for name in names if name.rpartition(".")[2].isdigit()}

    def _take(self, stage: str) -> Claim | None:
        found = _claims_on(self.folder, stage)
        if found and not self._dead(found[-1][1]):
            return None
        path = self.folder / f"{stage}.{found[-1][0] + 1 if found else 1}"
        owner = {"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid()), "name": uuid.uuid4().hex}
        content = json.dumps(owner)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except (FileExistsError, FileNotFoundError):  # another was first, or removed the folder with its last claim
            return None
        return Claim(path, content, self.beat)

    def _dead(self, path: Path) -> bool:
        try:
            with path.open(encoding="utf-8") as file:  # opening it makes NFS ask the server again
                touched = os.fstat(file.fileno()).st_mtime
                owner = json.loads(file.read() or "{}")
        except FileNotFoundError:
            return True
        except (ValueError, RecursionError):  # half written, or damaged
            owner = {}
        known = (
            isinstance(owner, dict)
            and type(owner.get("pid")) is int
            and 0 < owner["pid"] < 1 << 31
            and owner.get("machine") == _machine()
        )
        if known and not _runs(owner["pid"], owner.get("born")):
            return True
        return self._now() - touched > self.silence

    def _now(self) -> float:
        """The time by the clock that stamps the claims, which may be that of a file server."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock.") as file:
                os.utime(file.name)
                return Path(file.name).stat().st_mtime
        except FileNotFoundError:  # the folder went with its last claim
            return 0.0


def _claims_on(folder: Path, stage: str) -> list[tuple[int, Path]]:
    """The claims on a stage, with their numbers in ascending order."""
    parts = [name.rpartition(".") for name in _names(folder)]
    return sorted((int(end), folder / f"{start}.{end}") for start, _, end in parts if start == stage)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def _machine() -> str:
    """What processes must share to see each other by their pids: a boot of a machine, and a container on it."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # elsewhere than on Linux the name has to do
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(facts)


def _runs(pid: int, born: str | None) -> bool:
    """Whether a process still runs, and is not a later one with the same pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and belongs to another user
        return True
    return _born(pid) == born


def _born(pid: int) -> str | None:
    """When a process started, in ticks since the boot. None if it has ended or the system does not say."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]
