"""Where tests/native/driver.cpp runs: how it is built and started for each system, compiler and CPU."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from native_calls import Call, Result, read_results, write_calls

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "native"
ISAS = ("avx512", "avx2", "baseline")


class MissingToolError(Exception):
    """A tool is not there. The message says which, and how to get it."""


class Tool(NamedTuple):
    """A program, the package of Debian and Ubuntu that has it, and its first arguments."""

    program: str
    package: str
    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """How it is started, or MissingToolError."""
        if shutil.which(self.program, path=search_path()) is None:
            raise MissingToolError(f"{self.program} not found; install it (Debian, Ubuntu: apt install {self.package})")
        return [self.program, *self.arguments]


class Target(NamedTuple):
    """A system with its compiler, CMake's options for it, what runs its programs here, and instruction sets to ask for.

    Without a compiler, the program of another target runs. An instruction set "" is the one that the program chooses.
    """

    what: str
    compiler: Tool | None
    options: tuple[str, ...] = ()
    runner: Tool | None = None
    isas: tuple[str, ...] = ISAS
    chosen: str = ""
    program: str = "ksl_driver"
    built_as: str = ""


def _x86(model: str) -> Tool:
    return Tool("qemu-x86_64", "qemu-user", ("-cpu", model))


TARGETS = {
    "host": Target("this machine", Tool("c++", "g++")),
    "nehalem": Target("an x86-64 CPU of 2008, emulated", None, (), _x86("Nehalem"), ("",), "baseline", built_as="host"),
    "haswell": Target("an x86-64 CPU of 2013, emulated", None, (), _x86("Haswell"), ("",), "avx2", built_as="host"),
    "clang": Target("this machine, compiled by Clang", Tool("clang++", "clang")),
    "aarch64": Target(
        "Linux on aarch64, emulated",
        Tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
        ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        Tool("qemu-aarch64", "qemu-user", ("-L", "/usr/aarch64-linux-gnu")),
        ("baseline",),
    ),
    "windows": Target(
        "Windows on x86-64, compiled by MinGW, under Wine",
        Tool("x86_64-w64-mingw32-g++-posix", "g++-mingw-w64-x86-64-posix"),
        (
            "-DCMAKE_SYSTEM_NAME=Windows",
            "-DCMAKE_SYSTEM_PROCESSOR=AMD64",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
        ),
        Tool("wine", "wine64"),
        program="ksl_driver.exe",
    ),
    "msvc": Target(
        "the same with what csrc/platform.h has for MSVC",
        Tool("x86_64-w64-mingw32-g++-posix", "g++-mingw-w64-x86-64-posix"),
        (
            "-DCMAKE_SYSTEM_NAME=Windows",
            "-DCMAKE_SYSTEM_PROCESSOR=AMD64",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
            "-DCMAKE_CXX_FLAGS=-DKSL_MSVC -Wno-unknown-pragmas",
        ),
        Tool("wine", "wine64"),
        ("baseline",),
        program="ksl_driver.exe",
    ),
}


def search_path() -> str:
    """PATH with the folder of this Python first, where its cmake and ninja are."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _checked(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, env={**os.environ, "PATH": search_path()}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nerror: building the driver in {folder} failed")


def build(name: str) -> Path:
    """Build the driver of a target in build/native, and return its path. What is built there is kept."""
    target = TARGETS[name]
    if target.compiler is None:
        return build(target.built_as)
    compiler = os.environ.get("CXX") if name == "host" else None
    options = [f"-DCMAKE_CXX_COMPILER={compiler or target.compiler.command()[0]}", *target.options]
    for tool in (Tool("cmake", "cmake"), Tool("ninja", "ninja-build")):
        tool.command()
    folder = FOLDER / name
    _locked_build(folder, ["-S", str(ROOT), "-G", "Ninja", "-DKSL_PYTHON=OFF", "-DKSL_WERROR=ON", *options])
    return folder / target.program


def build_beside_module() -> Path:
    """Build the driver from what setup.py has compiled for kslottery_fast._C, or, where that is gone, as `build`."""
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-release"
    if not (folder / "build.ninja").exists():
        return build("host")
    _locked_build(folder, None)
    return folder / "ksl_driver"


def _locked_build(folder: Path, configuration: list[str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # setup.py takes the same lock
        if configuration is not None:
            _checked(["cmake", "-B", str(folder), *configuration], folder)
        _checked(["cmake", "--build", str(folder), "--target", "ksl_driver"], folder)


def run(name: str, driver: Path, isa: str, calls: list[Call], folder: Path) -> tuple[str, list[Result]] | None:
    """Make the calls with the driver. Return the instruction set and the results, or None if the CPU lacks the set."""
    target = TARGETS[name]
    files = folder / "calls", folder / "results"
    if not files[0].exists():
        write_calls(files[0], calls)
    runner = target.runner.command() if target.runner else []
    environment = {**os.environ, "KSL_ISA": isa, "WINEDEBUG": "-all", "WINEPREFIX": str(FOLDER / "wine")}
    done = subprocess.run(
        [*runner, str(driver), *map(str, files)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 2 and "this CPU does not have it" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"error: {name}: the driver ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip(), read_results(files[1], calls)
