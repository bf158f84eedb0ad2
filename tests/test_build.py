"""The build: one version number, and clear words where a tool is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kslottery_fast

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not run from a source tree")


def setup_py(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pyproject_has_the_only_version_number():
    assert f'\nversion = "{kslottery_fast.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert setup_py("--version").stdout.split()[-1] == kslottery_fast.__version__


def test_the_changelog_says_when_this_version_was_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(kslottery_fast.__version__)} - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (
            "cmake",
            "error: building kslottery-fast needs cmake 3.24 or newer; install it with `pip install cmake`",
        ),
        ("ninja", "error: building kslottery-fast needs ninja; install it with `pip install ninja`"),
        ("c++", "error: building kslottery-fast needs a C++17 compiler; install one"),
    ],
)
def test_a_missing_tool_is_named_in_one_line(tmp_path, missing, words):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in {"cmake", "ninja", "c++"} - {missing}:
        (tools / tool).write_text("#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    build = ("build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    result = setup_py(*build, PATH=str(tools), CXX="")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(words)


def test_a_compiler_that_does_not_exist_is_named():
    result = setup_py("build_ext", CXX="no-such-compiler")
    assert result.returncode == 1
    assert "needs a C++17 compiler" in result.stderr.strip().splitlines()[-1]


OBJECTS = sorted(ROOT.glob("build/cmake-*-release/CMakeFiles/ksl.dir/csrc/cpu/ks_avx*.o"))


@pytest.mark.skipif(not OBJECTS or shutil.which("nm") is None, reason="needs the objects of a build, and nm")
def test_code_for_newer_instruction_sets_shares_no_function_with_code_for_older_ones():
    """The linker keeps one copy of an inline function. It must not be one that not every CPU can run."""
    for found in OBJECTS:
        listed = subprocess.run(["nm", "-C", "--defined-only", found], capture_output=True, text=True, check=True)
        symbols = [line.split(maxsplit=2)[1:] for line in listed.stdout.splitlines()]
        shared = [name for kind, name in symbols if kind.isupper() or kind in "uvw"]
        assert len(shared) == 1, found
        assert shared[0].endswith("Kernels"), shared
