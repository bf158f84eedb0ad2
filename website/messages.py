"""All error messages of the package, read from its sources, and the page that lists them.

A message is found where an error is made: at a call of an error class, or of the parser's ``error``. What is inserted
into the message at run time is shown as ‹name›.
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "kslottery_fast"
ERRORS = ("InputError", "DivergedError", "TypeError", "ArgumentTypeError", "WorkerError", "error", "_damaged")
"""The calls that make an error from its message."""
ROOMS = {
    "base": "Arguments and files",
    "checkpoints": "Checkpoints",
    "ks": "KS tests",
    "ops": "Operators",
    "rows": "Rows of a model",
    "optim": "The optimizer",
    "tickets": "Tickets and comparisons",
    "evaluation": "Evaluation",
    "integrations": "Trainers and PEFT",
    "lab": "Experiments and the command line",
}
_GAP = "\0"  # before and after the name of what is inserted


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes
    ----------
    file : str
        The file that makes it, below ``kslottery_fast``.
    line : int
        The line of the call.
    parts : tuple of str
        Its texts, at the even places, and the names of what stands between them, at the odd places.
    """

    file: str
    line: int
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The message as the page shows it."""
        return "".join(f"‹{part}›" if i % 2 else part for i, part in enumerate(self.parts))

    @property
    def words(self) -> str:
        """What the message always says."""
        return " ".join(" ".join(self.parts[::2]).split())

    @property
    def anchor(self) -> str:
        """An id made of its first words."""
        words = re.findall(r"[a-z0-9]+", self.words.lower())
        return "-".join(words[:9]) or f"in-{Path(self.file).stem}"

    @property
    def pattern(self) -> re.Pattern[str]:
        """What a message of this kind matches."""
        return re.compile("".join(".*" if i % 2 else re.escape(part) for i, part in enumerate(self.parts)), re.DOTALL)


@functools.cache
def collect() -> tuple[Message, ...]:
    """Return all messages, in the order of the files."""
    found: dict[str, Message] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = _constants(tree)
        for call in error_calls(tree):
            for text in _texts(call.args[0], constants):
                message = Message(str(file.relative_to(PACKAGE)), call.lineno, tuple(text.split(_GAP)))
                if message.words:
                    found.setdefault(message.text, message)
    return tuple(found.values())


def error_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Find the calls that make an error from a message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ERRORS:
                yield node


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the strings that the module names, such as ``AGAIN``."""
    named = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts = list(_texts(node.value, named))
            if len(texts) == 1 and _GAP not in texts[0]:
                named[node.targets[0].id] = texts[0]
    return named


def _texts(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    """Return the texts that an expression can be, with gaps where something is inserted."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body, constants)
            yield from _texts(orelse, constants)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            for first in _texts(left, constants):
                yield from (first + second for second in _texts(right, constants))
        case ast.JoinedStr(values=values):
            whole = [""]
            for value in values:
                part = value.value if isinstance(value, ast.FormattedValue) else value
                whole = [before + after for before in whole for after in _texts(part, constants)]
            yield from whole
        case _:
            yield f"{_GAP}{_name(node)}{_GAP}"


def _name(node: ast.expr) -> str:
    """Name what is inserted: the last word of a variable or attribute, or that of the function that is called."""
    words = re.findall(r"[a-z]\w+", ast.unparse(node.func if isinstance(node, ast.Call) else node))
    return words[-1].strip("_") if words and len(words) <= 3 else "…"


def markdown() -> str:
    """Return the page with all messages, by what they are about."""
    messages = collect()
    lines = [
        "# All error messages",
        "",
        f"These are the {len(messages)} messages of this package, made from its sources. Each says what is wrong and,",
        "after a semicolon, what to do. ‹Names› stand for what the message shows of your data. The search finds",
        "a message by its words. [FAQ and troubleshooting](faq.md) explains those that people meet most.",
        "",
    ]
    seen: set[str] = set()
    for room, title in ROOMS.items():
        files: dict[str, list[Message]] = {}
        for message in messages:
            if message.file.startswith(f"{room}/"):
                files.setdefault(message.file, []).append(message)
        lines += [f"## {title}", ""]
        for file, held in files.items():
            heading = file.removeprefix(f"{room}/").removesuffix(".py").replace("/", ": ").replace("_", " ")
            lines += [f"### {heading}", "", '<ul class="messages">']
            lines += [_item(message, seen) for message in held] + ["</ul>", ""]
    return "\n".join(lines)


def _item(message: Message, seen: set[str]) -> str:
    """Return the message as an item of a list of HTML, with an id of its own, and the remedy in bold."""
    anchor, count = message.anchor, 1
    while anchor in seen:
        count += 1
        anchor = f"{message.anchor}-{count}"
    seen.add(anchor)
    what, separator, remedy = " ".join(message.text.split()).rpartition("; ")
    shown = f"{html.escape(what, quote=False)}; <b>{html.escape(remedy, quote=False)}</b>" if separator else html.escape(remedy, quote=False)
    return f'<li id="{anchor}">{shown}</li>'


if __name__ == "__main__":
    print(markdown(), end="")
