"""Programs that `make gpu` runs: with a time limit, in a log, and with this Python's and the toolkit's folders."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU_TESTS = ROOT / "tests" / "gpu"
WORK = ROOT / "build" / "gpu"
TAIL = 30  # lines of a phase's output that its result keeps


class PhaseError(Exception):
    """What the summary says about a phase."""


class Log:
    """What programs print goes to the terminal, to a file and, its end, into the result of the phase."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._tails: dict[str, collections.deque[str]] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    def open(self, path: Path) -> None:
        """Begin a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        self.path = path

    def begin(self, phase: str, *, beside: bool = False) -> None:
        """What this thread says from here on is of this phase. Lines of phases beside each other bear their names."""
        self._thread.phase, self._thread.beside = phase, beside
        self._tails[phase] = collections.deque(maxlen=TAIL)

    @property
    def phase(self) -> tuple[str, bool]:
        """The phase of this thread, and whether others run beside it."""
        return getattr(self._thread, "phase", ""), getattr(self._thread, "beside", False)

    def end_of(self, phase: str) -> list[str]:
        """The last lines of a phase."""
        return list(self._tails.get(phase, ()))

    def say(self, text: str, of: tuple[str, bool] | None = None) -> None:
        """Add a line, of this thread's phase or of another."""
        phase, beside = of or self.phase
        with self._lock:
            if phase in self._tails:
                self._tails[phase].append(text)
            shown = f"{phase}: {text}" if beside else text
            print(shown, flush=True)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{shown}\n")


log = Log()


def package() -> Path:
    """Where the package lies that was built."""
    return WORK / "package"


def site() -> Path:
    """Where wheels are unpacked."""
    return WORK / "site"


def seconds_until(deadline: float) -> float:
    """The seconds that are left. PhaseError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise PhaseError("no time was left for it")
    return seconds


def _listen(lines: Iterable[str], of: tuple[str, bool]) -> None:
    with contextlib.suppress(ValueError):  # the pipe was closed while a program that was killed still wrote
        for line in lines:
            log.say(line.rstrip("\n"), of)


def call(
    command: Sequence[str | Path],
    deadline: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program, by default in WORK, with more variables. PhaseError if it fails or takes too long."""
    seconds = seconds_until(deadline)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd or WORK,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise PhaseError(f"{command[0]} was not found") from None
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process.stdout, log.phase), daemon=True)
    listener.start()
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PhaseError(f"took longer than the {seconds:.0f} s it had") from None
    finally:
        if process.poll() is None:  # with the programs that it started: they would take the next phase's time
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        listener.join(timeout=5)
    if code:
        raise PhaseError(f"exit code {code}")


def search_path(*before: str | Path) -> str:
    """A value for PATH: these folders, those of PATH, and the CUDA toolkit's folder if PATH lacks it."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    toolkits = [str(Path(home) / "bin") for home in (*homes, "/usr/local/cuda")]
    return os.pathsep.join([*map(str, before), *filter(None, [os.environ.get("PATH")]), *toolkits])


def python_path(*before: str | Path) -> str:
    """A value for PYTHONPATH: these folders, and those that this process was given, where its torch may be."""
    return os.pathsep.join([*map(str, before), *filter(None, [os.environ.get("PYTHONPATH")])])


def call_python(arguments: Sequence[str | Path], deadline: float, *wrapper: str, **environment: str) -> None:
    """Run this Python on the package that was built. It runs in WORK, so that nothing comes before the package.

    It comes before the checkout, whose package has no kernels.
    """
    paths = {"PYTHONPATH": python_path(package(), site(), ROOT), "PATH": search_path(), "PYTHONUNBUFFERED": "1"}
    if wrapper:
        found = shutil.which(wrapper[0], path=paths["PATH"])
        if found is None:
            raise PhaseError(f"{wrapper[0]} was not found, neither on PATH nor next to nvcc")
        wrapper = (found, *wrapper[1:])
    call([*wrapper, sys.executable, *arguments], deadline, environment=paths | environment)


def pytest(*arguments: str | Path, confcutdir: Path = GPU_TESTS) -> list[str | Path]:
    """A command line of pytest, with the settings of the checkout.

    No conftest above tests/gpu is read: that of tests/ needs transformers, which a machine with a GPU may lack.
    """
    settings: list[str | Path] = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "--confcutdir", confcutdir]
    return ["-m", "pytest", *settings, "-p", "no:cacheprovider", "-q", *arguments]
