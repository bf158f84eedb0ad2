"""Builds kslottery_fast._C with CMake and ninja; everything else about the package is in pyproject.toml.

Environment: KSL_CUDA=on|off|auto, KSL_CUDA_ARCHITECTURES=90-real (and the like; empty: all of a release),
KSL_SANITIZE=address|undefined|thread, KSL_WERROR=ON, CXX and CMAKE_ARGS as usual.
CMake works in build/, which is kept: a rebuild compiles only what changed.
KSL_GLIBC=2.28 makes a module for Linux with that glibc or a newer one (docs/install.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPTIONS = {  # with their defaults
    "KSL_CUDA": "auto",
    "KSL_CUDA_ARCHITECTURES": "",
    "KSL_SANITIZE": "",
    "KSL_GLIBC": "",
    "KSL_WERROR": "OFF",
}
COMPILERS = ["clang-cl", "cl"] if sys.platform == "win32" else ["c++", "g++", "clang++"]


def check_glibc(version: str) -> None:
    """Exit with one clear line if no module can be linked for this glibc, which would show only at the end."""
    if not re.fullmatch(r"2\.[0-9]{1,2}", version):
        raise SystemExit(f"error: KSL_GLIBC={version!r} is no version of glibc; expected one such as 2.28")
    if not sys.platform.startswith("linux"):
        raise SystemExit("error: KSL_GLIBC is for Linux; leave it out here")
    if importlib.util.find_spec("ziglang") is None:
        raise SystemExit(f"error: KSL_GLIBC={version} needs ziglang, whose linker it uses; `pip install ziglang`")


def need(what: str, remedy: str, *candidates: str | None) -> str:
    """Return the path of the first program that exists, or exit with one clear line."""
    for candidate in candidates:
        if candidate and (path := shutil.which(candidate)):
            return path
    raise SystemExit(f"error: building kslottery-fast needs {what}; {remedy}")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let builds in one folder wait for each other: pip may build while `make` does, and two would spoil the files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        with contextlib.suppress(ImportError):  # Windows has no fcntl
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class CMakeBuild(build_ext):
    """The command build_ext, in which CMake makes the module."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and copy kslottery_fast._C."""
        cmake = need("cmake 3.24 or newer", "install it with `pip install cmake`", "cmake")
        ninja = need("ninja", "install it with `pip install ninja`", "ninja")
        compiler = need(
            "a C++17 compiler",
            "install one (Debian and Ubuntu: `apt install g++`; macOS: `xcode-select --install`; Windows: run this in "
            "the x64 Native Tools prompt of Visual Studio) or set CXX",
            *([shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else COMPILERS),
        )
        if glibc := os.environ.get("KSL_GLIBC"):
            check_glibc(glibc)
        import pybind11

        kinds = [os.environ.get(name) for name in ("KSL_SANITIZE", "KSL_CUDA_ARCHITECTURES", "KSL_GLIBC")]
        flavour = "-".join(filter(None, kinds)).replace(";", "+") or "release"
        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{flavour}"
        definitions = {
            "CMAKE_CXX_COMPILER": compiler,
            "CMAKE_MAKE_PROGRAM": ninja,
            "KSL_VERSION": self.distribution.get_version(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            # Always given: what an earlier build was told must not live on in CMake's cache.
            **{name: os.environ.get(name, default) for name, default in OPTIONS.items()},
        }
        arguments = [f"-D{name}={value}" for name, value in definitions.items()]
        arguments += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = str(self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.cpu_count())
        with alone(folder):
            self._call([cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *arguments])
            self._call([cmake, "--build", str(folder), "--target", "_C", "--parallel", jobs])
        (built,) = folder.glob("_C*" + Path(self.get_ext_filename("_C")).suffix)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(built), str(target))

    def copy_file(self, infile: str, outfile: str, *_args: object, **_kwargs: object) -> tuple[str, bool]:  # type: ignore[override]
        """Write next to the target and rename, so that a process that imports the old module keeps it whole."""
        temporary = f"{outfile}.{os.getpid()}.tmp"
        shutil.copy2(infile, temporary)
        Path(temporary).replace(outfile)
        return outfile, True

    def _call(self, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            step = "compiling" if "--build" in command else "configuring"
            raise SystemExit(f"error: {step} the native core of kslottery-fast failed; see above") from error


setup(
    packages=find_packages(include=["kslottery_fast", "kslottery_fast.*"]),
    ext_modules=[Extension("kslottery_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
