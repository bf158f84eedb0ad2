"""All error messages and warnings of the package, read from its sources, and the page that lists them.

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
CALLS = (
    "InputError",
    "DivergedError",
    "TypeError",
    "ArgumentTypeError",
    "WorkerError",
    "error",
    "_damaged",
    "warn_caller",
)
"""The calls that make an error or a warning from its message."""
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
NAMES = {
    "error": "reason",
    "first": "the first ones",
    "first_line": "reason",
    "join": "names",
    "len": "number",
    "list": "shape",
    "shown": "value",
    "strerror": "reason",
    "sum": "number",
}
"""What a variable or function of the sources is called on the page, where its own name says little."""
_WRITER = re.compile("message|warning|note$|_why_")  # functions that write what another file raises or warns of
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
    for file, tree in _trees().items():
        reader = _Reader(tree)
        made = [(call.lineno, text) for call in error_calls(tree) for text in reader.texts(call.args[0])]
        for function in reader.functions.values():
            if _WRITER.search(function.name) and ast.unparse(function.returns or ast.Constant("")).startswith("str"):
                made += [(function.lineno, text) for text in reader.returned(function)]
        for line, text in made:
            message = Message(file, line, tuple(text.split(_GAP)))
            if message.words:
                found.setdefault(message.text, message)
    return tuple(found.values())


def unread() -> list[str]:
    """Return the places of the calls whose message is made elsewhere, so that no text of it is found."""
    return [
        f"{file}:{call.lineno}"
        for file, tree in _trees().items()
        for reader in [_Reader(tree)]
        for call in error_calls(tree)
        if not any(_says_something(text) for text in reader.texts(call.args[0]))
    ]


def _says_something(text: str) -> bool:
    return re.search(r"[a-z]", "".join(text.split(_GAP)[::2])) is not None


@functools.cache
def _trees() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {str(file.relative_to(PACKAGE)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def error_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Find the calls that make an error from a message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) in CALLS:
            yield node


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@functools.cache
def _constants() -> dict[str, str]:
    """Return the strings that modules of the package name, such as ``AGAIN``."""
    named: dict[str, str] = {}
    for tree in _trees().values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                match node.value:
                    case ast.Constant(value=str(text)):
                        named[node.targets[0].id] = text
    return named


class _Reader:
    """Finds the texts that expressions of a module can be, with gaps where something is inserted."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.open: list[str] = []  # functions that are being read, so that none is read inside of itself

    def texts(self, node: ast.expr) -> Iterator[str]:
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper() and name in _constants():
                yield _constants()[name]
            case ast.IfExp(body=body, orelse=orelse):
                yield from self.texts(body)
                yield from self.texts(orelse)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self._joined([left, right])
            case ast.JoinedStr(values=values):
                yield from self._joined([v.value if isinstance(v, ast.FormattedValue) else v for v in values])
            case ast.Call() if _called(node) in self.functions and _called(node) not in (*self.open, *NAMES):
                yield from self.returned(self.functions[_called(node)]) or [f"{_GAP}{_name(node)}{_GAP}"]
            case _:
                yield f"{_GAP}{_name(node)}{_GAP}"

    def _joined(self, parts: list[ast.expr]) -> Iterator[str]:
        whole = [""]
        for part in parts:
            whole = [before + after for before in whole for after in self.texts(part)]
        yield from whole

    def returned(self, function: ast.FunctionDef) -> list[str]:
        """Read a function that writes a message, or a part of one."""
        self.open.append(function.name)
        returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        written = [text for value in returns for text in self.texts(value)]
        self.open.pop()
        return [text for text in written if _says_something(text)]


def _name(node: ast.expr) -> str:
    """Name what is inserted: the last word of a variable or attribute, or what a function is called with."""
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        if node.args and function in ("str", "repr", "tuple", "int", "set"):
            return _name(node.args[0])
        return _word(function)
    return _word(ast.unparse(node))


def _word(code: str) -> str:
    words = [word.strip("_") for word in re.findall(r"[A-Za-z_]\w+", code)]
    if not words or len(words) > 3:
        return "…"
    return "class" if code.endswith("__name__") else NAMES.get(words[-1], words[-1])


def markdown() -> str:
    """Return the page with all messages, by what they are about."""
    messages = collect()
    lines = [
        "# All error messages",
        "",
        f"These are the {len(messages)} errors and warnings of this package, made from its sources. Each says what is",
        "wrong and, after a semicolon, what to do. ‹Names› stand for what the message shows of your data. The search",
        "finds a message by its words. [FAQ and troubleshooting](faq.md) explains those that people meet most.",
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
    *what, remedy = [html.escape(part, quote=False) for part in " ".join(message.text.split()).rsplit("; ", 1)]
    shown = f"{what[0]}; <b>{remedy}</b>" if what else remedy
    return f'<li id="{anchor}">{shown}</li>'


if __name__ == "__main__":
    print(markdown(), end="")
