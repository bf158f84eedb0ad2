"""The code blocks of README.md and docs/: collected, run and type-checked as they are printed.

    python tests/documents.py FOLDER        writes the Python blocks of each page as one program, for type checkers

The blocks of a page run one after the other and share their names, as a reader would run them.
"""

from __future__ import annotations

import re
import sys
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


def main(folder: str) -> None:
    """Write the programs of all pages that have Python blocks."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for old in Path(folder).glob("*.py"):
        old.unlink()
    for page in PAGES:
        if blocks(page, "python"):
            (Path(folder) / f"{page.stem.lower()}_blocks.py").write_text(program(page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
