"""Everything that needs a GPU, in one go: what `make gpu` does. Nothing is downloaded and nothing installed.

    python tests/gpu/run.py [--dry] [--wheels FOLDER] [--only PHASE ...]

Builds the package with the kernels for this machine's GPU alone, which is what takes the time, into build/gpu; runs
tests/gpu on it, some of them under compute-sanitizer, and the benchmark. A phase that fails or takes longer than its
budget does not stop the others; the exit code is 1 if there was one. --dry does all that needs no device: it compiles,
executes the kernels on the CPU, collects the tests and runs the benchmark on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
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
# Modules that the build and the tests import, beside torch. What this Python lacks is taken from the wheels.
NEEDED = (
    *("setuptools", "pybind11", "numpy", "scipy", "safetensors", "transformers", "tokenizers"),
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"),
    *("sacrebleu", "portalocker", "regex", "tabulate", "colorama", "lxml"),
)
DRY_ARCHITECTURE = "90-real"
DRY_PATIENCE = 5  # budgets are for a machine with a GPU; a dry run has to do on two busy cores
# Without the caching allocator every tensor is an allocation of its own, beyond which the sanitizer sees each access.
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20")


@dataclass(frozen=True)
class Phase:
    """A part of the run, and within how many seconds; what it does with a device and in a dry run, None for nothing."""

    name: str
    budget: float
    run: Callable[[float], None] | None
    dry: Callable[[float], None] | None = None


class PhaseError(Exception):
    """What stands in the summary beside a phase."""


def call(command: list[str | Path], seconds: float, cwd: Path = WORK, **environment: str) -> None:
    """Run a program; PhaseError if it fails or takes too long."""
    try:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **environment}, start_new_session=True)
    except FileNotFoundError:
        raise PhaseError(f"{command[0]} was not found") from None
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PhaseError(f"took longer than its {seconds:.0f} s") from None
    finally:
        if process.poll() is None:  # with the programs that it started: they would take the next phase's time
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise PhaseError(f"exit code {code}")


def python_path() -> str:
    """Before the checkout, whose package has no kernels: what was built. In WORK, so that nothing comes before it."""
    return os.pathsep.join(map(str, (PACKAGE, SITE, ROOT)))


def call_python(arguments: list[str | Path], seconds: float, *wrapper: str, **environment: str) -> None:
    """Run this Python on the package that was built."""
    call([*wrapper, sys.executable, *arguments], seconds, PYTHONPATH=python_path(), **environment)


def pytest(*arguments: str | Path) -> list[str | Path]:
    """A command line of pytest, with the settings of the checkout."""
    return [
        "-m",
        "pytest",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        ROOT,
        "-p",
        "no:cacheprovider",
        "-q",
        *arguments,
    ]


def architecture() -> str:
    """The GPU's, as CMake takes it; asked in another process, so that this one needs no torch."""
    code = "import torch; print('{}{}-real'.format(*torch.cuda.get_device_capability()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PhaseError(f"torch finds no CUDA device: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def describe(seconds: float) -> None:
    """What this machine has."""
    for command in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        ["nvcc", "--version"],
        [
            sys.executable,
            "-c",
            "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)",
        ],
    ):
        if shutil.which(command[0]) is None:
            print(f"{command[0]}: not found")
        else:
            call(command, seconds, cwd=ROOT)


def unpack(wheels: Path) -> None:
    """Put what is missing into SITE, from wheels that `make gpu-wheels` fetched."""
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing here, taken from {wheels}: {', '.join(missing)}")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                modules = {name.split("/")[0].removesuffix(".py") for name in archive.namelist()}
                if modules & set(missing):
                    archive.extractall(SITE)
    left = [name for name in missing if not any(SITE.glob(f"{name}*"))]
    if left:
        raise PhaseError(
            f"no wheel for {', '.join(left)}: run `make gpu-wheels` where there is a network, bring {wheels}"
        )


def build(seconds: float, architectures: str) -> None:
    """The package with its kernels, for these architectures alone."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    folders = ["--build-base", str(WORK / "base"), "--build-lib", str(PACKAGE)]
    environment = {"KSL_CUDA": "on", "KSL_WERROR": "ON", "KSL_CUDA_ARCHITECTURES": architectures}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja of a venv
    start = time.monotonic()
    command = [sys.executable, "setup.py", "-q", "build", *folders]
    call(command, seconds, cwd=ROOT, PYTHONPATH=str(SITE), PATH=path, **environment)
    code = (
        f"import kslottery_fast as k; print(k.ops.info()); assert k.__file__.startswith({str(PACKAGE)!r}), k.__file__"
    )
    call_python(["-c", code], max(30, seconds - (time.monotonic() - start)))
    arch = f"sm_{architectures.removesuffix('-real')}"
    code = f"from benchmarks import gpu_device as d; d.compile_library(d.target_of_library(), {arch!r})"
    call_python(["-c", code], 60)


def sanitize(tool: str) -> Callable[[float], None]:
    """A phase: the tests marked `reduced` under a tool of compute-sanitizer."""

    def run(seconds: float) -> None:
        tests = pytest("-m", "reduced", ROOT / "tests" / "gpu")
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "0"}
        call_python(tests, seconds, *SANITIZER, "--tool", tool, **environment)

    return run


def phases(wheels: Path, output: Path | None) -> list[Phase]:
    """All of them; the budgets of those that run on a device make eight minutes."""
    written = ["--output", output] if output else []
    dry_output = ["--output", WORK / "dry.json"]
    bench = ["-m", "benchmarks.gpu_table"]
    gpu_tests = ROOT / "tests" / "gpu"
    return [
        Phase("machine", 20, describe, describe),
        Phase("wheels", 20, lambda _: unpack(wheels), lambda _: unpack(wheels)),
        Phase("build", 150, lambda s: build(s, architecture()), lambda s: build(s, DRY_ARCHITECTURE)),
        Phase("kernels on the CPU", 90, None, lambda s: call_python(pytest(ROOT / "tests" / "cuda"), s)),
        Phase(
            "tests", 90, lambda s: call_python(pytest("--durations=5", gpu_tests), s),
            lambda s: call_python(pytest("--collect-only", gpu_tests), s),
        ),
        Phase("memcheck", 50, sanitize("memcheck")),
        Phase("racecheck", 50, sanitize("racecheck")),
        Phase(
            "benchmark", 100, lambda s: call_python([*bench, "--seconds", str(s - 25), *written], s),
            lambda s: call_python([*bench, "--dry", *dry_output], s),
        ),
    ]  # fmt: skip


def main() -> int:
    """Run the command line; the exit code."""
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
        budget = phase.budget * (DRY_PATIENCE if arguments.dry else 1)
        print(f"\n== {phase.name}, at most {budget:.0f} s", flush=True)
        begun = time.monotonic()
        try:
            run(budget)
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
