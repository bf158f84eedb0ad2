"""Run everything that needs a GPU, as `make gpu` does. Nothing is downloaded or installed.

    python tests/gpu/run.py [--dry] [--only PHASE,PHASE] [--cases TEXT] [--variants] [--results FOLDER] ...
    python tests/gpu/run.py --make-module 90-real    build a module to bring along, on a machine with nvcc

The package is built with the kernels for this machine's GPU alone, into build/gpu, or a module is taken that was
brought along in build/gpu-module. Then come the quick tests, the benchmark, the quick tests under the four tools of
compute-sanitizer beside each other, and the long tests. Each phase writes its result into the results folder as it
ends. A phase that fails or takes too long costs no other. Time that a phase leaves over goes to the later ones, and the
whole ends within five minutes. The exit code is 1 if a phase failed. --dry does all that needs no device: it compiles,
executes the kernels on the CPU, collects the tests, checks their types and runs the benchmark on the CPU. KSL_COMMIT
names the commit where the tree is a copy without its .git.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gpu_programs as programs
from gpu_building import TO_BUILD, architecture, build, make_module, take_module, unpack
from gpu_programs import GPU_TESTS, ROOT, PhaseError, call, call_python, log, pytest, search_path, seconds_until

TOTAL = 300  # seconds
DRY_ARCHITECTURE = "90-real"
DRY_PATIENCE = 5  # budgets are for a machine with a GPU; a dry run has to do on two busy cores
MODULE_PATIENCE = 3_600  # seconds to build a module to bring along
FORMAT = "kslottery-gpu-run/1"
PREPARING = ("wheels", "build")  # phases that all others need
TOOLS = {"memcheck": 25, "racecheck": 25, "synccheck": 15, "initcheck": 15}  # of compute-sanitizer, in seconds
# Without the caching allocator every tensor is an allocation of its own, beyond which the sanitizer sees each access.
# Torch asks CUDA questions that are answered by an error and goes on; such answers are no finding.
SANITIZER = (
    *("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20"),
    *("--report-api-errors", "no"),
)


@dataclass(frozen=True)
class Phase:
    """A part of the run, its time in seconds, and what it does with a device and in a dry run (None for nothing).

    Both get the time by which they must have ended, on time.monotonic()'s clock. ``beside``: it runs at the same time
    as the phases next to it that have this too, and they share the time of all of them.
    """

    name: str
    budget: float
    run: Callable[[float], None] | None
    dry: Callable[[float], None] | None = None
    beside: bool = False


@dataclass
class Result:
    """What a phase came to."""

    name: str
    seconds: float
    outcome: str  # "ok", "FAILED: ..." or "left out: ..."
    end: list[str] = field(default_factory=list)  # of what was printed

    @property
    def failed(self) -> bool:
        """Whether the whole run has failed with it."""
        return self.outcome.startswith("FAILED")


def describe(deadline: float) -> None:
    """Describe this machine."""
    path = search_path()
    code = "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
    for command in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        ["nvcc", "--version"],
        [sys.executable, "-c", code],
    ):
        if (program := shutil.which(command[0], path=path)) is None:
            log.say(f"{command[0]}: not found")
        else:
            call([program, *command[1:]], deadline, cwd=ROOT)


def prepare(module: Path) -> Callable[[float], None]:
    """The phase that gets the package: the module that was brought along if it fits, or else a build."""

    def run(deadline: float) -> None:
        here = architecture(deadline)
        if not take_module(module, here, deadline):
            build(deadline, here, strict=False)

    return run


def sanitize(tool: str) -> Callable[[float], None]:
    """A phase: the tests marked `reduced` under a tool of compute-sanitizer."""

    def run(deadline: float) -> None:
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "0"}
        call_python(pytest("-m", "reduced", GPU_TESTS), deadline, *SANITIZER, "--tool", tool, **environment)

    return run


def check_types(deadline: float) -> None:
    """The types of tests/gpu, where mypy is."""
    call_python(["-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--allow-untyped-defs", GPU_TESTS], deadline)


def measure(arguments: list[str | Path]) -> Callable[[float], None]:
    """A phase: the benchmark, which starts no further row shortly before its time is over."""

    def run(deadline: float) -> None:
        seconds = str(round(seconds_until(deadline) - 10, 1))
        call_python(["-m", "benchmarks.gpu_table", "--seconds", seconds, *arguments], deadline)

    return run


def phases(asked: argparse.Namespace) -> list[Phase]:
    """All phases, in the order of what a first run has to show. The budgets with a device add up to TOTAL."""
    cuda_tests = ROOT / "tests" / "cuda"
    rows: list[str | Path] = [
        *("--output", asked.results / "benchmark.json"),
        *(["--only", asked.cases] if asked.cases else []),
        *(["--variants"] if asked.variants else []),
    ]
    return [
        Phase("machine", 10, describe, describe),
        Phase("wheels", 5, lambda _: unpack(asked.wheels), lambda _: unpack(asked.wheels)),
        Phase("build", 75, prepare(asked.module), lambda end: build(end, DRY_ARCHITECTURE, strict=True)),
        Phase("kernels on the CPU", 90, None, lambda end: call_python(pytest(cuda_tests, confcutdir=cuda_tests), end)),
        Phase(
            "quick tests",
            25,
            lambda end: call_python(pytest("-m", "reduced", "--durations=3", GPU_TESTS), end),
            lambda end: call_python(pytest("--collect-only", GPU_TESTS), end),
        ),
        Phase("benchmark", 55, measure(rows), lambda end: measure(["--dry", *rows])(end + 1e6)),
        *(Phase(tool, seconds, sanitize(tool), beside=True) for tool, seconds in TOOLS.items()),
        Phase(
            "long tests",
            50,
            lambda end: call_python(pytest("-m", "not reduced", "--durations=5", GPU_TESTS), end),
            check_types,
        ),
    ]


def chosen(found: list[Phase], only: str) -> list[Phase]:
    """The phases that were asked for, and those that prepare them. All of them if none was named."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(names) - {phase.name for phase in found}:
        known = ", ".join(phase.name for phase in found)
        raise SystemExit(f"error: there is no phase {sorted(unknown)[0]!r}; expected one of: {known}")
    needed = {*names, *(PREPARING if set(names) - {"machine", *PREPARING} else ())}
    return [phase for phase in found if not names or phase.name in needed]


def commit() -> str:
    """The commit of this checkout, or "unknown"."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


class Summary:
    """The results of all phases so far. The file is written again as each of them ends."""

    def __init__(self, path: Path, *, dry: bool) -> None:
        self.path, self.dry, self.results = path, dry, list[Result]()
        self.start, self._lock = time.monotonic(), threading.Lock()
        self.commit = os.environ.get("KSL_COMMIT") or commit()

    def add(self, result: Result) -> None:
        """Keep a result."""
        with self._lock:
            self.results.append(result)
            about: dict[str, Any] = {
                "format": FORMAT,
                "dry_run": self.dry,
                "commit": self.commit,
                "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.monotonic() - self.start, 1),
                "phases": [asdict(each) for each in self.results],
            }
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
            temporary.replace(self.path)

    def show(self) -> None:
        """Print the outcomes."""
        log.say(f"\n{'dry run, ' if self.dry else ''}{time.monotonic() - self.start:.0f} s in all, {self.path.parent}")
        for result in self.results:
            log.say(f"{result.name:30}{result.seconds:6.0f} s  {result.outcome}")


def go_through(phases: list[Phase], summary: Summary) -> None:
    """Run one phase after the other. Each has to end when its own time and that of all before it are over."""
    deadline = summary.start
    for together, group in itertools.groupby(phases, key=lambda phase: phase.beside):
        for some in [list(group)] if together else [[phase] for phase in group]:
            ready = [phase for phase in some if (phase.dry if summary.dry else phase.run) is not None]
            for phase in some:
                if phase not in ready and summary.dry:
                    summary.add(Result(phase.name, 0.0, "left out: needs a device"))
            deadline += sum(phase.budget for phase in ready) * (DRY_PATIENCE if summary.dry else 1)
            threads = [threading.Thread(target=go, args=(phase, deadline, summary)) for phase in ready[1:]]
            for thread in threads:
                thread.start()
            if ready:
                go(ready[0], deadline, summary)
            for thread in threads:
                thread.join()


def go(phase: Phase, deadline: float, summary: Summary) -> None:
    """Run one phase. Whatever happens in it becomes its result."""
    run = phase.dry if summary.dry else phase.run
    assert run is not None
    begun = time.monotonic()
    log.begin(phase.name, beside=phase.beside)
    log.say(f"\n== {phase.name}, at most {max(0.0, deadline - begun):.0f} s")
    try:
        run(deadline)
        outcome = "ok"
    except PhaseError as failure:
        outcome = f"FAILED: {failure}"
    except Exception as failure:  # no phase may cost another one
        outcome = f"FAILED: {type(failure).__name__}: {failure}"
    result = Result(phase.name, round(time.monotonic() - begun, 1), outcome, log.end_of(phase.name))
    log.say(f"== {phase.name}: {outcome} ({result.seconds:.0f} s)")
    summary.add(result)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="what needs no device")
    parser.add_argument("--only", default="", metavar="PHASE,...", help="these phases, and the build before them")
    parser.add_argument(
        "--cases", default="", metavar="TEXT", help="rows of the benchmark with this in their name: a|b"
    )
    parser.add_argument("--variants", action="store_true", help="the benchmark compares variants of the kernels")
    parser.add_argument("--results", type=Path, default=programs.WORK / "results", help="folder for what comes out")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="what `make gpu-wheels` fetched")
    parser.add_argument(
        "--module", type=Path, default=ROOT / "build" / "gpu-module", help="what `make gpu-module` built"
    )
    parser.add_argument("--make-module", metavar="ARCHITECTURE", help="build such a module for this Python: 90-real")
    asked = parser.parse_args()
    for name in ("results", "wheels", "module"):
        setattr(asked, name, getattr(asked, name).resolve())
    return asked


def main() -> int:
    """Run the command line. Return the exit code."""
    asked = parsed()
    programs.WORK.mkdir(parents=True, exist_ok=True)
    asked.results.mkdir(parents=True, exist_ok=True)
    log.open(asked.results / "log.txt")
    if asked.make_module:
        deadline = time.monotonic() + MODULE_PATIENCE
        try:
            unpack(asked.wheels, TO_BUILD)
            make_module(asked.module, asked.make_module, deadline)
        except PhaseError as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
        size = sum(path.stat().st_size for path in asked.module.iterdir())
        print(f"{asked.module}: {size / 2**20:.1f} MiB, for {sys.implementation.cache_tag} and {asked.make_module}")
        return 0
    summary = Summary(asked.results / "summary.json", dry=asked.dry)
    go_through(chosen(phases(asked), asked.only), summary)
    log.begin("summary")
    summary.show()
    return int(any(result.failed for result in summary.results))


if __name__ == "__main__":
    sys.exit(main())
