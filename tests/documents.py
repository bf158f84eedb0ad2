"""The code blocks of README.md and docs/: collected, run and type-checked as they are printed.

    python tests/documents.py FOLDER        writes the Python blocks of each page as one program, for type checkers
    python tests/documents.py --run PAGE    runs a page with what is installed, and compares what it prints

The blocks of a page run one after the other and share their names, as a reader would run them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, of these languages only if any are given."""
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in _BLOCK.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def program(page: Path) -> str:
    """The Python blocks of a page as one program, each on the lines that it has on the page."""
    lines: list[str] = []
    for block in blocks(page, "python"):
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


class BlockError(Exception):
    """A block that fails, or that prints something else than its page says."""


def run(page: Path, command: Callable[[list[str]], None]) -> int:
    """Run the blocks of a page in the current folder, and compare what they print with its ``text`` blocks.

    ``command`` runs the words of a line of an ``sh`` block, and prints what that prints. Returns how many outputs were
    compared. BlockError names the page and the line of the block, and has its output.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    printed, compared = "", 0
    for block in blocks(page, "python", "sh", "text"):
        where = f"{page.name}, {block.language} block of line {block.line}"
        if block.language == "text":
            if [line.rstrip() for line in printed.splitlines()] != block.text.splitlines():
                raise BlockError(f"{where}: this was printed instead:\n{printed}")
            compared += 1
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            try:
                if block.language == "python":
                    exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
                else:
                    for line in block.text.replace("\\\n", "").splitlines():
                        command(shlex.split(line, comments=True))
            except (Exception, SystemExit) as error:
                raise BlockError(f"{where} fails:\n{output.getvalue()}{traceback.format_exc()}") from error
        printed = output.getvalue()
    return compared


def installed_command(words: list[str]) -> None:
    """Run a program of the environment, and print what it prints."""
    program = shutil.which(words[0])
    if program is None:
        raise FileNotFoundError(f"{words[0]} is not on PATH")
    environment = {**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [program, *words[1:]], env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"`{shlex.join(words)}` ended with {done.returncode}: {done.stderr}")


def try_page(page: Path) -> int:
    """Run a page in an empty folder with what is installed, and say what came of it. Return the exit code."""
    page = page.resolve()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            compared = run(page, installed_command)
        except BlockError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            os.chdir(before)  # Windows removes no folder that a process is in
    print(f"{page.name} runs, and prints what it says: {compared} output{'s' * (compared != 1)} compared")
    return 0


def main(folder: str) -> None:
    """Write the programs of all pages that have Python blocks."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for old in Path(folder).glob("*.py"):
        old.unlink()
    for page in PAGES:
        if blocks(page, "python"):
            (Path(folder) / f"{page.stem.lower()}_blocks.py").write_text(program(page), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        sys.exit(try_page(Path(sys.argv[2])))
    main(sys.argv[1])
