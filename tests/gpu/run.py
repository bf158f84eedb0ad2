"""Everything that needs a GPU, in one go: what `make gpu` does. Nothing is downloaded and nothing installed.

    python tests/gpu/run.py [--dry] [--wheels FOLDER] [--only PHASE ...]

Builds the package with the kernels for this machine's GPU alone, which is what takes the time, into build/gpu; runs
tests/gpu on it, some of them under compute-sanitizer, and the benchmark. A phase that fails or takes longer than its
budget does not stop the others, the whole ends within eight minutes; the exit code is 1 if a phase failed. --dry does
all that needs no device: it compiles, executes the kernels on the CPU, collects the tests and runs the benchmark on the
CPU. KSL_COMMIT names the commit where the tree is a copy without its .git.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "gpu"
PACKAGE, SITE = WORK / "package", WORK / "site"
# Modules that the build and the tests import, besides torch. What this Python lacks, or has in a version older than
# pyproject.toml asks for, is taken from the wheels.
NEEDED = (
    *("setuptools", "pybind11", "numpy", "scipy", "safetensors"),
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"),
)
TOTAL = 480  # seconds
GPU_TESTS = ROOT / "tests" / "gpu"
DRY_ARCHITECTURE = "90-real"
DRY_PATIENCE = 5  # budgets are for a machine with a GPU; a dry run has to do on two busy cores
# Without the caching allocator every tensor is an allocation of its own, beyond which the sanitizer sees each access.
# Torch asks CUDA questions that are answered by an error and goes on; such answers are no finding.
SANITIZER = (
    *("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20"),
    *("--report-api-errors", "no"),
)


@dataclass(frozen=True)
class Phase:
    """A part of the run, and within how many seconds; what it does with a device and in a dry run, None for nothing.

    Both get the time by which they must have ended, on time.monotonic()'s clock.
    """

    name: str
    budget: float
    run: Callable[[float], None] | None
    dry: Callable[[float], None] | None = None


class PhaseError(Exception):
    """What the summary says about a phase."""


def seconds_until(deadline: float) -> float:
    """The seconds that are left. PhaseError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise PhaseError("no time was left for it")
    return seconds


def call(command: list[str | Path], deadline: float, cwd: Path | None = None, **environment: str) -> None:
    """Run a program, in WORK if nothing else is said; PhaseError if it fails or takes too long."""
    seconds = seconds_until(deadline)
    try:
        process = subprocess.Popen(command, cwd=cwd or WORK, env={**os.environ, **environment}, start_new_session=True)
    except FileNotFoundError:
        raise PhaseError(f"{command[0]} was not found") from None
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PhaseError(f"took longer than the {seconds:.0f} s it had") from None
    finally:
        if process.poll() is None:  # with the programs that it started: they would take the next phase's time
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise PhaseError(f"exit code {code}")


def search_path(*before: str | Path) -> str:
    """A value for PATH: these folders, those of PATH, and where the CUDA toolkit is where PATH does not name it."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    toolkits = [str(Path(home) / "bin") for home in (*homes, "/usr/local/cuda")]
    return os.pathsep.join([*map(str, before), *filter(None, [os.environ.get("PATH")]), *toolkits])


def python_path(*before: str | Path) -> str:
    """A value for PYTHONPATH: these folders, and those that this process was given, where its torch may be."""
    return os.pathsep.join([*map(str, before), *filter(None, [os.environ.get("PYTHONPATH")])])


def call_python(arguments: list[str | Path], deadline: float, *wrapper: str, **environment: str) -> None:
    """Run this Python on the package that was built; in WORK, so that nothing comes before it.

    It comes before the checkout, whose package has no kernels.
    """
    paths = {"PYTHONPATH": python_path(PACKAGE, SITE, ROOT), "PATH": search_path()}
    if wrapper:
        found = shutil.which(wrapper[0], path=paths["PATH"])
        if found is None:
            raise PhaseError(f"{wrapper[0]} was not found, neither on PATH nor next to nvcc")
        wrapper = (found, *wrapper[1:])
    call([*wrapper, sys.executable, *arguments], deadline, **paths, **environment)


def pytest(*arguments: str | Path, confcutdir: Path = GPU_TESTS) -> list[str | Path]:
    """A command line of pytest, with the settings of the checkout.

    No conftest above tests/gpu is read: that of tests/ needs transformers, which a machine with a GPU may lack.
    """
    return [
        "-m",
        "pytest",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        ROOT,
        "-p",
        "no:cacheprovider",
        "--confcutdir",
        confcutdir,
        "-q",
        *arguments,
    ]


def architecture(deadline: float) -> str:
    """The architecture of the GPU as CMake takes it. Another process asks for it, so that this one needs no torch."""
    code = "import torch; print('{}{}-real'.format(*torch.cuda.get_device_capability()))"
    command, seconds = [sys.executable, "-c", code], seconds_until(deadline)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PhaseError(f"torch did not name the GPU within {seconds:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise PhaseError(f"torch finds no CUDA device: {last}")
    return done.stdout.strip()


def describe(deadline: float) -> None:
    """What this machine has."""
    path = search_path()
    for command in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        ["nvcc", "--version"],
        [
            sys.executable,
            "-c",
            "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)",
        ],
    ):
        if (program := shutil.which(command[0], path=path)) is None:
            print(f"{command[0]}: not found", flush=True)
        else:
            call([program, *command[1:]], deadline, cwd=ROOT)


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare it by: (84, 2, 1) of "84.2.1", (3, 0) of "3.0.0rc1"."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def least_versions() -> dict[str, str]:
    """What pyproject.toml asks for with ">=", by name; read as text, since tomllib is not in Python 3.10."""
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))


def lacking() -> dict[str, str]:
    """The modules of NEEDED that this Python does not have, or has in too old a version; and which of the two it is."""
    found, least = {}, least_versions()
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            found[name] = "missing"
        elif name in least:
            version = importlib.metadata.version(name)
            if version_of(version) < version_of(least[name]):
                found[name] = f"{version}, {least[name]} is needed"
    return found


def unpack(wheels: Path) -> None:
    """Put what is missing or too old into SITE, from wheels that `make gpu-wheels` fetched."""
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    wanted = lacking()
    if wanted:
        print(f"taken from {wheels}: {', '.join(f'{name} ({why})' for name, why in wanted.items())}", flush=True)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                modules = {name.split("/")[0].removesuffix(".py") for name in archive.namelist()}
                if modules & set(wanted):
                    archive.extractall(SITE)
    left = [f"{name} ({why})" for name, why in wanted.items() if not any(SITE.glob(f"{name}*"))]
    if left:
        raise PhaseError(
            f"no wheel for {', '.join(left)}: run `make gpu-wheels` where there is a network, bring {wheels}"
        )


def build(deadline: float, architectures: str, *, strict: bool) -> None:
    """The package with its kernels, for these architectures alone.

    ``strict``: warnings are errors. Not on somebody's machine: its compiler may warn of what no other does.
    """
    shutil.rmtree(PACKAGE, ignore_errors=True)
    folders = ["--build-base", str(WORK / "base"), "--build-lib", str(PACKAGE)]
    settings = {"KSL_CUDA": "on", "KSL_WERROR": "ON" if strict else "OFF", "KSL_CUDA_ARCHITECTURES": architectures}
    path = search_path(Path(sys.executable).parent)  # cmake and ninja of a venv
    command = [sys.executable, "setup.py", "-q", "build", *folders]
    call(command, deadline, cwd=ROOT, PYTHONPATH=python_path(SITE), PATH=path, **settings)
    code = (
        f"import kslottery_fast as k; print(k.ops.info()); assert k.__file__.startswith({str(PACKAGE)!r}), k.__file__"
    )
    call_python(["-c", code], deadline)
    arch = f"sm_{architectures.removesuffix('-real')}"
    code = (
        f"from benchmarks import gpu_device as d; d.compile_library(d.target_of_library(), {arch!r}, strict={strict})"
    )
    call_python(["-c", code], deadline)


def sanitize(tool: str) -> Callable[[float], None]:
    """A phase: the tests marked `reduced` under a tool of compute-sanitizer."""

    def run(deadline: float) -> None:
        tests = pytest("-m", "reduced", GPU_TESTS)
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "0"}
        call_python(tests, deadline, *SANITIZER, "--tool", tool, **environment)

    return run


def measure(output: Path | None) -> Callable[[float], None]:
    """A phase: the benchmark, told to start no further row shortly before its time is over."""

    def run(deadline: float) -> None:
        written = ["--output", output] if output else []
        seconds = str(round(seconds_until(deadline) - 15, 1))
        call_python(["-m", "benchmarks.gpu_table", "--seconds", seconds, *written], deadline)

    return run


def phases(wheels: Path, output: Path | None) -> list[Phase]:
    """All phases. The budgets of those that run on a device add up to eight minutes."""
    cuda_tests = ROOT / "tests" / "cuda"
    dry_bench = ["-m", "benchmarks.gpu_table", "--dry", "--output", WORK / "dry.json"]
    return [
        Phase("machine", 20, describe, describe),
        Phase("wheels", 20, lambda _: unpack(wheels), lambda _: unpack(wheels)),
        Phase(
            "build", 150, lambda end: build(end, architecture(end), strict=False),
            lambda end: build(end, DRY_ARCHITECTURE, strict=True),
        ),
        Phase("kernels on the CPU", 90, None, lambda end: call_python(pytest(cuda_tests, confcutdir=cuda_tests), end)),
        Phase(
            "tests", 90, lambda end: call_python(pytest("--durations=5", GPU_TESTS), end),
            lambda end: call_python(pytest("--collect-only", GPU_TESTS), end),
        ),
        Phase("memcheck", 50, sanitize("memcheck")),
        Phase("racecheck", 50, sanitize("racecheck")),
        Phase("benchmark", 100, measure(output), lambda end: call_python(dry_bench, end)),
    ]  # fmt: skip


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="what needs no device")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="what `make gpu-wheels` fetched")
    parser.add_argument(
        "--output", type=Path, help="the benchmark's JSON; default benchmarks/results/<gpu>-<date>.json"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="PHASE", help="these phases alone")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    summary = []
    start = time.monotonic()
    for phase in phases(arguments.wheels.resolve(), arguments.output and arguments.output.resolve()):
        if arguments.only and phase.name not in arguments.only:
            continue
        run = phase.dry if arguments.dry else phase.run
        if run is None:
            if arguments.dry:
                summary.append((phase.name, 0.0, "left out: needs a device"))
            continue
        begun = time.monotonic()
        left = max(0.0, start + TOTAL - begun)
        budget = phase.budget * DRY_PATIENCE if arguments.dry else min(phase.budget, left)
        print(f"\n== {phase.name}, at most {budget:.0f} s", flush=True)
        try:
            run(begun + budget)
            outcome = "ok"
        except PhaseError as failure:
            outcome = f"FAILED: {failure}"
        summary.append((phase.name, time.monotonic() - begun, outcome))
        print(f"== {phase.name}: {outcome} ({summary[-1][1]:.0f} s)", flush=True)
    print(f"\n{'dry run, ' if arguments.dry else ''}{time.monotonic() - start:.0f} s in all")
    for name, seconds, outcome in summary:
        print(f"{name:30}{seconds:6.0f} s  {outcome}")
    return int(any(outcome.startswith("FAILED") for *_, outcome in summary))


if __name__ == "__main__":
    sys.exit(main())
