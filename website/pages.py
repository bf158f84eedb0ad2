"""Pages of the site that are made from other files, and links between documents as the site needs them."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from website import api, messages

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # where the site has what stands outside of docs/
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "examples": "examples.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def made() -> dict[str, str]:
    """Return the Markdown of every page that is no file of docs/, by its path in the site."""
    copied = {
        site: relinked((ROOT / name).read_text(encoding="utf-8"), "", site)
        for name, site in ELSEWHERE.items()
        if name.endswith(".md") and name != "README.md"
    }
    reference = {page.path: api.markdown(page) for page in api.PAGES}
    return copied | reference | {
        "api/index.md": api.overview(),
        "api/command-line.md": command_line(),
        "errors.md": messages.markdown(),
        "examples.md": examples(),
    }


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
        if target.startswith("examples/"):
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
        lines += [f"## {file.name} {{ #{_anchor(file.name)} }}", "", summary, "", "```python", source.rstrip(), "```", ""]
    return "\n".join(lines)


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
