"""The contracts in pyproject.toml about imports: the report names in plain words what breaks them."""

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
    """A copy of the package and its contracts, which a test may break."""
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
        "A package imports only from the layers below it, not from its own layer or those above BROKEN",
        "kslottery_fast.base.errors -> kslottery_fast.rows.overlay",
        "Inside lab: commands, reports, the experiment, models, data BROKEN",
        "kslottery_fast.lab.data.readers -> kslottery_fast.lab.models",
        "No import cycles between packages, or between files of one package BROKEN",
        "No cycles are allowed in kslottery_fast.rows.",
        "from the file that defines it, not from kslottery_fast BROKEN",
    ):
        assert words in report
