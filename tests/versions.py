"""The tests on other versions of the dependencies than the pinned ones: the oldest that are allowed, and the newest.

    python tests/versions.py oldest [arguments of pytest]
    python tests/versions.py newest [arguments of pytest]

Each has an environment of its own in build/envs. uv chooses the versions there and installs them. torch keeps its
pinned version, and the native core is the one of the source tree: it links neither torch nor numpy. At the end a table
of the versions is printed, which docs/versions.md records.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXTRAS = ("lab", "completion", "dask", "frames", "gguf", "notebooks", "peft", "ray", "spbleu", "trl")  # those of users
LIBRARIES = ("pandas", "polars")  # of the extra dev, but users' tables are made with them
TOOLS = ("hypothesis", "pytest", "pytest-benchmark", "pytest-xdist", "tensorboardX")
NEWEST_ALONE = ("sentence-transformers",)  # one example alone needs it
LEFT_OUT = (  # what no dependency reaches, or what is about the pinned versions and tools
    "tests/cuda",
    "tests/fuzz",
    "tests/gpu",
    "tests/test_build.py",
    "tests/test_floors.py",
    "tests/test_gpu_run.py",
    "tests/test_site.py",
    "tests/test_versions.py",
    "tests/test_wheels.py",
)


def lower_bounds() -> dict[str, str]:
    """The oldest version that pyproject.toml allows, by package, for every package that a user may have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    asked += [each for each in extras["dev"] if Requirement(each).name in LIBRARIES]
    found = {}
    for requirement in map(Requirement, asked):
        if requirement.name != "kslottery-fast":
            (found[requirement.name],) = (each.version for each in requirement.specifier if each.operator == ">=")
    return dict(sorted(found.items()))


def pins() -> dict[str, str]:
    """The pinned versions of constraints.txt for this Python, by package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in pinned
        if each.marker is None or each.marker.evaluate()
    }


def wanted(which: str) -> list[str]:
    """What uv is asked to install.

    The lower bound ">=1.11" becomes "==1.11.*", so that uv fails where another package asks for more.
    """
    bounds, pinned = lower_bounds(), pins()
    bounds.pop("torch")
    if which == "newest":
        return [*bounds, *TOOLS, *NEWEST_ALONE]
    return [
        *(f"{name}>={bound},=={bound}.*" for name, bound in bounds.items()),
        *(f"{name}=={pinned[canonicalize_name(name)]}" for name in TOOLS),
    ]


def prepare(which: str) -> Path:
    """Make the environment or bring it up to date, and return its Python."""
    folder = ROOT / "build" / "envs" / which
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    torch = f"torch=={pins()['torch']}"
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile", torch]
    subprocess.run(pip, check=True)  # as make test installs it, so that a build for CPUs is found where there is one
    listed = folder / "requirements.txt"
    listed.write_text("\n".join([*wanted(which), f"torch=={installed(folder)['torch']}"]) + "\n", encoding="utf-8")
    options = ["--quiet", "--upgrade", "--prerelease", "disallow", "--python", python]
    if which == "oldest":
        options += ["--resolution", "lowest-direct"]
    subprocess.run([sys.executable, "-m", "uv", "pip", "install", *options, "-r", listed], check=True)
    return python


def installed(folder: Path) -> dict[str, str]:
    """The versions in an environment, by canonical name."""
    (packages,) = folder.glob("lib/python*/site-packages")
    return {
        canonicalize_name(each.metadata["Name"]): each.version for each in metadata.distributions(path=[str(packages)])
    }


def table(which: str) -> str:
    """The versions in an environment of the packages that pyproject.toml names, as Markdown."""
    found = installed(ROOT / "build" / "envs" / which)
    names = [*lower_bounds(), *(NEWEST_ALONE if which == "newest" else ())]
    lines = [f"| {name} | {found[canonicalize_name(name)]} |" for name in sorted(names)]
    return "\n".join([f"| package | {which} |", "| --- | --- |", *lines])


def main(which: str, *arguments: str) -> int:
    """Run the tests in the environment and print its versions."""
    python = prepare(which)
    print(table(which), flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    left_out = [f"--ignore={each}" for each in LEFT_OUT if (ROOT / each).exists()]
    tests = [] if any(re.match(r"tests|kslottery_fast", each) for each in arguments) else ["tests", "kslottery_fast"]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, *tests, *arguments]
    return subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode


def run(words: list[str]) -> int:
    """Read the command line and obey it."""
    if words[:1] not in (["oldest"], ["newest"]):
        sys.exit("usage: python tests/versions.py oldest|newest [arguments of pytest]")
    return main(*words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
