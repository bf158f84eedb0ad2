"""Build the native core with a sanitizer and run the tests that reach it: what `make sanitize` does.

    python tests/sanitize.py address undefined cuda thread

"address" and "undefined" run the tests on a module and a copy of the package in build/sanitize/<kind>. The module that
the checkout uses is left alone. "cuda" runs tests/cuda, where the CUDA kernels execute on the CPU, under both of these
sanitizers. "thread" runs tests/native/races.cpp under ThreadSanitizer, without Python and torch, which are not
instrumented. Needs g++: the runtime of its sanitizers is loaded before Python. Exit code 1 unless every kind is clean.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/ops",
    "tests/ks/test_stats.py",
    "tests/ks/test_stream.py",
    "tests/tickets/test_selection.py",
    "tests/tickets/test_tickets.py",
    "tests/ks/test_ks_twosample.py",
    "tests/ks/test_ks_twosample_types.py",
    "tests/ks/test_pvalues.py",
    "tests/optim/test_optim.py",
    "tests/optim/test_optim_state.py",
    "tests/optim/test_optim_refusals.py",
    "tests/rows/test_rows.py",
    "tests/tickets/test_checkpoints.py",
    "tests/checkpoints/test_safetensors_files.py",
    "tests/checkpoints/test_unfit_checkpoints.py",
)
NOT_ON_THE_SHIM = ("test_cuda_build.py", "test_mutate.py")  # the compiler's output, and the sources as text
CUDA_TESTS = tuple(
    f"tests/cuda/{path.name}"
    for path in sorted((ROOT / "tests" / "cuda").glob("test_*.py"))
    if path.name not in NOT_ON_THE_SHIM
)
# Loaded before Python, which is not built with them. ASan has to find __cxa_throw at once, hence libstdc++.
RUNTIMES = {
    "address": ("libasan.so", "libstdc++.so"),
    "undefined": ("libubsan.so",),
    "cuda": ("libasan.so", "libubsan.so", "libstdc++.so"),
}
KINDS = (*RUNTIMES, "thread")
# Python and torch keep memory until they exit, so leaks are not looked for. Everything else ends the process, and its
# report goes to a file: pytest would swallow it.
SETTINGS = {
    # Not detect_stack_use_after_return: on its stacks GCC 12 aligns nothing to 64 bytes, and stores of AVX-512 fault.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:log_path={log}",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:log_path={log}",
}
# What cannot run under a sanitizer, and why. Printed with the result: nothing is left out silently.
LEFT_OUT: dict[str, dict[str, str]] = {
    "address": {
        "tests/ks/test_pvalues.py::test_thousands_of_deep_asymptotic_logarithms_take_less_than_two_seconds": (
            "a limit of time, and Python itself takes three times as long under this sanitizer"
        ),
    },
    "undefined": {},
    "cuda": {},
}
# Two sources of threads, each on plain code, where every access is seen, and on the widest vectors of this processor.
RACES = [(threads, isa) for threads in ("pool", "region") for isa in ("baseline", "")]


def build(kind: str, root: Path) -> Path:
    """The folder that has kslottery_fast with a sanitized native module."""
    library = root / "build" / "sanitize" / kind
    shutil.rmtree(library, ignore_errors=True)  # a file that was deleted in the checkout must not live on
    log = library.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", f"build/sanitize/{kind}-base"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    environment = {**os.environ, "KSL_SANITIZE": kind, "KSL_CUDA": "off", "PATH": path}
    with log.open("w") as output:
        done = subprocess.run(
            [*command, "--build-lib", str(library)],
            cwd=root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{log.read_text()}\nerror: the build with -fsanitize={kind} failed")
    return library


def runtime(kind: str) -> str:
    """The shared libraries for LD_PRELOAD."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    paths = []
    for name in RUNTIMES[kind]:
        command = [*compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(f"error: {compiler[0]} has no {name}; use g++ and install its libsanitizer")
        paths.append(path)
    return " ".join(paths)


def sanitized(kind: str, log: Path, package: Path) -> dict[str, str]:
    """The environment in which Python imports this package under a sanitizer. Reports of earlier runs are removed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    for old in log.parent.glob(f"{log.name}.*"):
        old.unlink()
    return {
        **os.environ,
        **{name: value.format(log=log) for name, value in SETTINGS.items()},
        "LD_PRELOAD": runtime(kind),
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def core_tests(kind: str, root: Path, arguments: list[str]) -> tuple[bool, str]:
    """Run the tests on a sanitized package. Return whether it is clean, and the output."""
    library = build(kind, root)
    log = library.with_name(f"{kind}-report")
    environment = sanitized(kind, log, library)
    environment["PYTHONPATH"] += f"{os.pathsep}{root}"  # for what the tests take from benchmarks/
    check = "import kslottery_fast._C as m; print(m.__file__)"
    loaded = subprocess.run(
        [sys.executable, "-c", check], cwd=library, env=environment, capture_output=True, text=True, check=False
    )
    if not loaded.stdout.startswith(str(library)):
        raise SystemExit(f"error: Python loads {loaded.stdout or loaded.stderr}, not the module in {library}")
    return run_tests(kind, log, environment, root, arguments or TESTS)


def cuda_tests(root: Path, arguments: list[str]) -> tuple[bool, str]:
    """Run tests/cuda on sanitized CUDA kernels. Return whether they are clean, and the output."""
    sys.path.insert(0, str(root / "tests" / "cuda"))
    import shim_module

    module = shim_module.build(root, "address,undefined")
    log = root / "build" / "sanitize" / "cuda-report"
    environment = {**sanitized("cuda", log, root), "KSL_SHIM": str(module)}
    return run_tests("cuda", log, environment, root, arguments or CUDA_TESTS)


def run_tests(
    kind: str, log: Path, environment: dict[str, str], root: Path, arguments: Sequence[str]
) -> tuple[bool, str]:
    """Return whether the tests passed without a report, and their output."""
    # The program, not `python -m pytest`, which would put the checkout before the sanitized package.
    pytest = [str(Path(sys.executable).with_name("pytest")), "-q", "-rs", "-p", "no:cacheprovider"]
    left_out = [f"--deselect={test}" for test in LEFT_OUT[kind]]
    done = subprocess.run(
        [*pytest, *left_out, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # Processes that a test starts write reports of their own.
    reports = [path.read_text() for path in sorted(log.parent.glob(f"{log.name}.*"))]
    return done.returncode == 0 and not reports, "\n".join([done.stdout, *reports, f"exit code {done.returncode}"])


def races(root: Path) -> tuple[bool, str]:
    """Run the threaded functions under ThreadSanitizer. Return whether no race was found, and the output."""
    import pybind11

    folder = root / "build" / "sanitize" / "thread"
    found = {"KSL_SANITIZE": "thread", "KSL_CUDA": "off", "pybind11_DIR": pybind11.get_cmake_dir()}
    found["Python_EXECUTABLE"] = sys.executable
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1:exitcode=66"
    targets = sorted({f"ksl_races_{threads}" for threads, _ in RACES})
    for command in (
        ["cmake", "-S", root, "-B", folder, "-G", "Ninja", *(f"-D{name}={value}" for name, value in found.items())],
        ["cmake", "--build", folder, "--target", *targets],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nerror: the build with -fsanitize=thread failed")
    planted = subprocess.run(
        [folder / targets[0], "planted"], env=environment, capture_output=True, text=True, check=False
    )
    caught = planted.returncode == 66 and "ThreadSanitizer: data race" in planted.stderr
    lines = [f"a planted race was {'found' if caught else 'NOT found: ' + planted.stderr}"]
    clean = caught
    for threads, isa in RACES:
        done = subprocess.run(
            [folder / f"ksl_races_{threads}", threads],
            env={**environment, **({"KSL_ISA": isa} if isa else {})},
            capture_output=True,
            text=True,
            check=False,
        )
        clean = clean and done.returncode == 0
        lines.append((done.stdout + done.stderr).strip())
    return clean, "\n".join(lines)


def check(kind: str, root: Path, arguments: list[str]) -> bool:
    """Build, test and print the result. Return whether it is clean."""
    start = time.monotonic()
    print(f"{kind}: building and testing", end="", flush=True)
    if kind == "thread":
        clean, report = races(root)
    else:
        clean, report = cuda_tests(root, arguments) if kind == "cuda" else core_tests(kind, root, arguments)
    print(f" ({time.monotonic() - start:.0f} s)")
    if not clean:
        print(report)
    of_interest = r"SKIPPED|(\d+ \w+, )*\d+ \w+ in |a planted|(pool|region), instruction set"
    summary = [text for text in report.splitlines() if re.match(of_interest, text)]
    print(f"{kind}: {'clean' if clean else 'NOT CLEAN'}", *summary, sep="\n  ")
    for test, reason in LEFT_OUT.get(kind, {}).items():
        print(f"{kind}: not run: {test}: {reason}")
    return clean


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="another checkout, for example one with a planted defect"
    )
    parser.add_argument("--tests", nargs="*", default=[], help="instead of all the tests that reach the core")
    arguments = parser.parse_args()
    results = [check(kind, arguments.root.resolve(), arguments.tests) for kind in arguments.kinds]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
