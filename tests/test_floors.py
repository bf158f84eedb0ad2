"""The contracts in pyproject.toml that hold the floors: what breaks them is named in plain words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not run from a source tree")


def lint_imports(folder):
    """The exit code and the report of import-linter on the package in a folder."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def copy(tmp_path):
    """The package and its contracts, to be spoilt."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "kslottery_fast", tmp_path / "kslottery_fast", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_that_go_up_or_round_are_named_with_the_contract_that_they_break(copy):
    package = copy / "kslottery_fast"
    for file, line in (
        ("base/errors.py", "from kslottery_fast.rows.overlay import RowEmbedding"),  # up
        ("lab/data/readers.py", "from kslottery_fast.lab.models import loading"),  # up, inside lab
        ("rows/tables.py", "from .attach import attach_rows"),  # round: attach imports tables
        ("ops/native.py", "from kslottery_fast import certify"),  # up, through the package's own lazy names
    ):
        with (package / file).open("a", encoding="utf-8") as source:
            source.write(f"{line}\n")
    code, report = lint_imports(copy)
    assert code == 1
    for words in (
        "Imports run down the floors: a room knows those below it, and none on its own floor or above BROKEN",
        "kslottery_fast.base.errors -> kslottery_fast.rows.overlay",
        "The experiment as a program: commands, reports, the experiment, models, data BROKEN",
        "kslottery_fast.lab.data.readers -> kslottery_fast.lab.models",
        "No circle: nowhere do two rooms, or two files of a room, need each other BROKEN",
        "No cycles are allowed in kslottery_fast.rows.",
        "from the file that defines it, not through the front door BROKEN",
    ):
        assert words in report
