"""The pages of the site: the documents, with links as the site needs them, and pages made from other files.

``python -m website.pages FOLDER`` writes all of them, for MkDocs to build.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

from website import api, messages, notebooks

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # where the site has what stands outside of docs/, and what programs make for it
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "examples": "examples.md",
    "website/api.py": "api/index.md",
    "website/messages.py": "errors.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def write(folder: Path) -> None:
    """Write all pages and assets into a folder, in the place of what it held."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in pages().items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "website" / "assets", folder / "assets")
    # In a process of their own, since they import marimo and set a style for all figures.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "website.notebooks", str(folder.resolve())], cwd=ROOT, env=environment, check=True
    )


def pages() -> dict[str, str]:
    """Return the Markdown of every page but those of the notebooks, by its path in the site."""
    documents = {file.name: _document(file, file.name) for file in sorted((ROOT / "docs").glob("*.md"))}
    others = {site: _document(ROOT / name, site) for name, site in ELSEWHERE.items() if name.endswith(".md")}
    reference = {page.path: api.markdown(page) for page in api.PAGES}
    made = {
        "api/index.md": api.overview(),
        "api/command-line.md": command_line(),
        "errors.md": messages.markdown(),
        "examples.md": examples(),
    }
    return others | documents | reference | made  # docs/index.md in the place of README.md


def _document(file: Path, page: str) -> str:
    folder = str(file.parent.relative_to(ROOT))
    return relinked(file.read_text(encoding="utf-8"), "" if folder == "." else folder, page)


def relinked(text: str, folder: str, page: str) -> str:
    """Return a document with links that lead to pages of the site.

    Parameters
    ----------
    text : str
        The document, with links as they work in the repository.
    folder : str
        Its folder in the repository, such as "docs".
    page : str
        Its path in the site.

    Returns
    -------
    str
        The document. A link to a file that the site does not have becomes the text of the link.
    """

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, target))
        notebook = ROOT / target
        if notebook in notebooks.FILES:
            target, anchor = notebooks.page_of(notebook), ""
        elif target.startswith("examples/"):
            target, anchor = "examples.md", "#" + _anchor(posixpath.basename(target))
        elif target in ELSEWHERE:
            target = ELSEWHERE[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return label
        return f"[{label}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(link, text)


def examples() -> str:
    """Return a page with all programs of examples/."""
    lines = [
        "# Examples",
        "",
        "Each program trains a tiny random model in seconds, and the tests run it. `tiny.py` makes the models.",
        "",
    ]
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        summary = docstring.partition("\n")[0]
        lines += [f"## {file.name} {{ #{_anchor(file.name)} }}", "", summary, ""]
        lines += ["```python", source.rstrip(), "```", ""]
    lines += ["## Notebooks", ""]
    for file in notebooks.FILES:
        title = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition(" A notebook:")[0]
        lines.append(f"- [{title.rstrip('.')}]({notebooks.page_of(file)})")
    lines += [
        "",
        "The pages show what they print and draw. `pip install '.[notebooks]'` brings marimo, which opens them:",
    ]
    lines += ["", "```text", *(f"marimo edit {file.relative_to(ROOT)}" for file in notebooks.FILES)]
    return "\n".join([*lines, "```", ""])


def _anchor(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


def command_line() -> str:
    """Return a page with the help of every command of ``kslottery``."""
    from kslottery_fast.lab.cli.main import parser

    whole = parser()
    commands = next(action.choices for action in whole._actions if isinstance(action.choices, dict))
    lines = ["# Command line", "", "```text", whole.format_help().rstrip(), "```", ""]
    for name, command in commands.items():
        lines += [f"## kslottery {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
