"""What `make gpu` tests: the package with its kernels, built for one GPU, or brought along as a module."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import gpu_programs as programs
from gpu_programs import ROOT, PhaseError, call, call_python, log, python_path, search_path, seconds_until

# Modules that the build and the tests import, besides torch. What this Python lacks, or has in a version older than
# pyproject.toml asks for, is taken from the wheels.
TO_BUILD = ("setuptools", "pybind11")
NEEDED = (
    *(*TO_BUILD, "numpy", "scipy", "safetensors"),
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"),
)
SOURCES = ("CMakeLists.txt", "setup.py", "benchmarks/gpu_read.cu", "csrc")  # of the native code
READER = Path("build") / "benchmarks" / "gpu_read.so"  # the benchmark's library


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare it by: (84, 2, 1) of "84.2.1", (3, 0) of "3.0.0rc1"."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def least_versions() -> dict[str, str]:
    """The least versions in pyproject.toml, by name. It is read as text, since tomllib is not in Python 3.10."""
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))


def lacking(needed: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """The modules that this Python lacks or has in too old a version, and which of the two it is."""
    found, least = {}, least_versions()
    for name in needed:
        if importlib.util.find_spec(name) is None:
            found[name] = "missing"
        elif name in least:
            version = importlib.metadata.version(name)
            if version_of(version) < version_of(least[name]):
                found[name] = f"{version}, {least[name]} is needed"
    return found


def unpack(wheels: Path, needed: tuple[str, ...] = NEEDED) -> None:
    """Put what is missing or too old into a folder, from wheels that `make gpu-wheels` fetched."""
    shutil.rmtree(programs.site(), ignore_errors=True)
    programs.site().mkdir(parents=True)
    wanted = lacking(needed)
    if wanted:
        log.say(f"taken from {wheels}: {', '.join(f'{name} ({why})' for name, why in wanted.items())}")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                modules = {name.split("/")[0].removesuffix(".py") for name in archive.namelist()}
                if modules & set(wanted):
                    archive.extractall(programs.site())
    left = [f"{name} ({why})" for name, why in wanted.items() if not any(programs.site().glob(f"{name}*"))]
    if left:
        raise PhaseError(
            f"no wheel for {', '.join(left)}: run `make gpu-wheels` where there is a network, bring {wheels}"
        )


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


def sources(root: Path) -> dict[str, Path]:
    """The files of the native code, by their names in the checkout."""
    tops = [root / name for name in SOURCES]
    files = [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*")))]
    return {path.relative_to(root).as_posix(): path for path in files if path.suffix != ".pyc" and path.is_file()}


def fingerprint(root: Path) -> str:
    """A number that changes with the native code."""
    whole = hashlib.sha256()
    for name, path in sources(root).items():
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def keep_times(root: Path, stamps: Path) -> None:
    """Give files of unchanged content the times that they had at the last build.

    A tree that was copied anew has new times, and a build would compile everything again.
    """
    known = json.loads(stamps.read_text()) if stamps.exists() else {}
    for name, path in sources(root).items():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        before = known.get(name, {})
        if before.get("content") == content:
            os.utime(path, ns=(before["time"], before["time"]))
        known[name] = {"content": content, "time": path.stat().st_mtime_ns}
    stamps.parent.mkdir(parents=True, exist_ok=True)
    stamps.write_text(json.dumps(known))


def build_package(deadline: float, architectures: str, *, strict: bool) -> None:
    """Compile the package with its kernels, for these architectures alone. What has not changed is kept.

    ``strict``: warnings are errors. Not on somebody's machine: its compiler may warn of what no other does.
    """
    keep_times(ROOT, programs.WORK / "times.json")
    shutil.rmtree(programs.package(), ignore_errors=True)
    folders = ["--build-base", str(programs.WORK / "base"), "--build-lib", str(programs.package())]
    settings = {"KSL_CUDA": "on", "KSL_WERROR": "ON" if strict else "OFF", "KSL_CUDA_ARCHITECTURES": architectures}
    paths = {"PYTHONPATH": python_path(programs.site()), "PATH": search_path(Path(sys.executable).parent)}  # of a venv
    command = [sys.executable, "setup.py", "-q", "build", *folders]
    call(command, deadline, cwd=ROOT, environment=settings | paths)


def check_package(deadline: float, architectures: str, *, strict: bool = False, device: bool = True) -> None:
    """Import what was built, say what it is, and build the benchmark's library. PhaseError if it has no kernels."""
    arch = f"sm_{architectures.removesuffix('-real')}"
    code = f"""
import kslottery_fast as k
from benchmarks import gpu_device
info = k.ops.info()
print(info)
assert k.__file__.startswith({str(programs.package())!r}), k.__file__
assert info["native"] and (info["cuda"] or not {device}), info
gpu_device.compile_if_stale({arch!r}, strict={strict})
"""
    call_python(["-c", code], deadline)


def build(deadline: float, architectures: str, *, strict: bool) -> None:
    """Build the package and check it."""
    build_package(deadline, architectures, strict=strict)
    check_package(deadline, architectures, strict=strict, device=not strict)


def tag() -> str:
    """The Python that a module is for."""
    return f"{sys.implementation.cache_tag} {sysconfig.get_platform()}"


def make_module(folder: Path, architectures: str, deadline: float) -> None:
    """Build a module to bring along: for this Python, which needs no torch, and these architectures."""
    build_package(deadline, architectures, strict=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (module,) = (programs.package() / "kslottery_fast").glob("_C*.so")
    shutil.copy2(module, folder)
    nvcc = shutil.which("nvcc", path=search_path())
    assert nvcc is not None
    arch = f"-arch=sm_{architectures.removesuffix('-real')}"
    flags = ["-O3", "-std=c++17", arch, "-shared", "-Xcompiler=-fPIC", "--cudart=static"]
    reader = folder / READER.name
    call([nvcc, *flags, ROOT / "benchmarks" / "gpu_read.cu", "-o", reader], deadline)
    about = {"sources": fingerprint(ROOT), "python": tag(), "architectures": architectures}
    (folder / "module.json").write_text(json.dumps(about, indent=1))
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import _C; print(_C.version, _C.cuda_reason or 'with CUDA')"
    )
    call([sys.executable, "-c", code], deadline)


def why_not(folder: Path, architectures: str) -> str:
    """Why a module that was brought along cannot be taken, or "" if it can."""
    path = folder / "module.json"
    if not path.exists():
        return f"there is none in {folder}"
    about = json.loads(path.read_text())
    for name, here in (("sources", fingerprint(ROOT)), ("python", tag()), ("architectures", architectures)):
        if about.get(name) != here:
            shown = "these sources" if name == "sources" else f"{here}, it is for {about.get(name)}"
            return f"it is not for {shown}"
    return ""


def take_module(folder: Path, architectures: str, deadline: float) -> bool:
    """Make the package of the checkout and a module that was brought along. False if it does not fit or run here."""
    if reason := why_not(folder, architectures):
        log.say(f"no module was brought along: {reason}")
        return False
    shutil.rmtree(programs.package(), ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so")
    target = programs.package() / "kslottery_fast"
    shutil.copytree(ROOT / "kslottery_fast", target, ignore=unwanted)
    for module in folder.glob("_C*.so"):
        shutil.copy2(module, target)
    reader = ROOT / READER
    reader.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / READER.name, reader)
    try:
        check_package(deadline, architectures)
    except PhaseError as error:
        log.say(f"the module that was brought along does not run here ({error})")
        reader.unlink()
        return False
    log.say(f"the module of {folder} is taken")
    return True
