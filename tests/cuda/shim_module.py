"""Build and load ksl_shim: the CUDA kernels, compiled by g++ and executed on the CPU (see tests/cuda/shim).

What is built lies in build/cuda-shim and is reused; a build that finds nothing new takes a fraction of a second.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def build(root: Path = ROOT, sanitize: str = "") -> Path:
    """The module's file, made from the checkout at `root`."""
    import pybind11

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise RuntimeError("building the CUDA shim needs cmake; install it with `pip install cmake ninja`")
    folder = root / "build" / f"cuda-shim-{sys.implementation.cache_tag}{sanitize and '-'}{sanitize}"
    definitions = {
        "KSL_SANITIZE": sanitize,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", root / "tests" / "cuda", "-B", folder, "-G", "Ninja"]
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in several processes, and each begins with this
        for command in (
            [*configure, *(f"-D{name}={value}" for name, value in definitions.items())],
            [cmake, "--build", folder, "--parallel", str(os.cpu_count())],
        ):
            done = subprocess.run(
                command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"building the CUDA shim failed:\n{done.stdout}{done.stderr}")
        (module,) = folder.glob("ksl_shim*.so")
    return module


def load(path: Path) -> ModuleType:
    """Import it."""
    spec = importlib.util.spec_from_file_location("ksl_shim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
