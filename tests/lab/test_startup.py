"""What the command line says at once, before anything slow is imported; and without the extra `lab`."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from kslottery_fast.base.extras import LAB

try:
    VERSION = metadata.version("kslottery-fast")
except metadata.PackageNotFoundError:  # as `make oldest` runs the tests
    VERSION = "unknown (not installed)"
SLOW = ("matplotlib", "numpy", "rich", "sacrebleu", "scipy", "torch", "transformers")


def kslottery(*arguments, without=()):
    """The exit code of a fresh `kslottery`, what it wrote to stdout and stderr, and what it imported of SLOW.

    ``without``: packages that it finds to be missing.
    """
    code = f"""
import sys
for name in {without!r}:
    sys.modules[name] = None
from kslottery_fast.lab.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(*sorted(name for name in {SLOW!r} if sys.modules.get(name)))
sys.exit(code)
"""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *output, imported = done.stdout.splitlines() or [""]
    return done.returncode, "\n".join(output), done.stderr, imported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "compare"),
        (["--help"], "compare"),
        (["--version"], f"kslottery-fast {VERSION}"),
        (["run", "--help"], "--alpha"),
        (["scan", "--help"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_version_come_before_anything_slow(arguments, words):
    code, output, errors, imported = kslottery(*arguments)
    assert (code, errors, imported) == (0, "", "")
    assert words in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-q", "info"], "option -q comes after the command: kslottery info -q; see kslottery info --help"),
        (["selct", "a", "b"], "unknown command 'selct' (did you mean select?); see kslottery --help"),
        (["help"], "unknown command 'help' (the commands are select, scan, drift, run, compare, job, report, certify"),
        (["info", ""], "argument PATH: the path is empty; see kslottery info --help"),
        (["--loud"], "unknown option --loud; see kslottery --help"),
        (["run", "--alpha", "two"], "argument --alpha: 'two' is not a number; see kslottery run --help"),
        (["compare", "--taget", "es"], "unknown option --taget (did you mean --target?); see kslottery compare --help"),
        (["compare", "--tar", "es"], "unknown option --tar"),
        (["certify", "a", "b"], "unexpected argument 'b'; see kslottery certify --help"),
        (["select", "a", "b", "--json", "--output", "c"], "--json writes no file; leave out --output"),
        (["run", "--target", "klingon"], "klingon"),
        (["compare", "--arms", "nothing"], "nothing"),
        (
            ["select", "--metod", "exact"],
            "unknown option --metod (did you mean --method?); see kslottery select --help",
        ),
        (["select"], "the following arguments are required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_before_anything_slow(arguments, words):
    code, _, errors, imported = kslottery(*arguments)
    assert (code, imported) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("kslottery: error: ")
    assert words in line


def test_without_the_extra_help_comes_and_commands_say_in_one_line_what_to_install():
    assert kslottery("--help", without=LAB)[0] == 0
    code, output, errors, _ = kslottery("info", without=LAB)
    assert (code, output) == (2, "")
    missing = ", ".join(LAB)
    assert errors == f"kslottery: error: the command line needs {missing}; pip install 'kslottery-fast[lab]'\n"


@pytest.mark.parametrize("module", ["kslottery_fast", "kslottery_fast.lab.cli"])
def test_the_command_line_is_a_module_too(module):
    command = [sys.executable, "-m", module, "select"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("kslottery: error: the following arguments are required")
