"""The notebooks as pages of the site: their text, their code, and what the code prints and draws when it runs.

``python -m website.notebooks FOLDER`` runs all notebooks and writes a page and the figures of each. marimo's own export
is a program in the browser that it loads from another host, and its text is not found by the search of the site.
"""

from __future__ import annotations

import ast
import contextlib
import io
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples" / "notebooks").glob("*.py"))


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: its code, whether the page shows it, and the expression at its end, whose value it does."""

    code: str
    hidden: bool
    statements: ast.Module
    value: ast.Expression | None


def page_of(file: Path) -> str:
    """Return the path of a notebook's page in the site."""
    return f"notebooks/{file.stem.replace('_', '-')}.md"


def cells(source: str) -> Iterator[Cell]:
    """Read the cells of a notebook, in their order. marimo writes each as a function or, the first one, as a with."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
        elif isinstance(node, ast.FunctionDef) and node.decorator_list:
            call = node.decorator_list[0]
        else:
            continue
        hidden = isinstance(call, ast.Call) and any(map(_hides, call.keywords))
        body = [each for each in node.body if not isinstance(each, ast.Return)]
        if not body:
            continue
        first, last = body[0].lineno - 1, body[-1].end_lineno
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
        code = textwrap.dedent("\n".join(lines[first:last]))
        value = body.pop() if isinstance(body[-1], ast.Expr) else None
        yield Cell(
            code,
            hidden,
            ast.Module(body, []),
            ast.Expression(value.value) if isinstance(value, ast.Expr) else None,
        )


def _hides(option: ast.keyword) -> bool:
    return option.arg == "hide_code" and isinstance(option.value, ast.Constant) and option.value.value is True


def render(file: Path, figures: Path) -> str:
    """Run a notebook, write its figures into a folder, and return its page.

    Parameters
    ----------
    file : pathlib.Path
        The notebook.
    figures : pathlib.Path
        The folder of the page, which has to exist.

    Returns
    -------
    str
        The page in Markdown.
    """
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
    parts: list[str] = []
    for number, cell in enumerate(cells(file.read_text(encoding="utf-8"))):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell.statements, str(file), "exec"), names)
            value = eval(compile(cell.value, str(file), "eval"), names) if cell.value else None
        if not cell.hidden:
            parts.append(f"```python\n{cell.code}\n```")
        if printed.getvalue():
            parts.append(_printed(printed.getvalue()))
        if value is not None:
            parts.append(_shown(value, figures / f"{file.stem.replace('_', '-')}-{number}.svg"))
    parts.insert(1, f"`make docs` has run this notebook. `marimo edit examples/notebooks/{file.name}` opens it.")
    return "\n\n".join(parts) + "\n"


def _shown(value: Any, figure: Path) -> str:
    """What a page shows of a value: its Markdown, the picture, its HTML, or its representation."""
    if hasattr(value, "_repr_markdown_"):
        return str(value._repr_markdown_()).strip()
    if hasattr(value, "savefig"):
        value.savefig(figure, format="svg", metadata={"Date": None})
        (axes, *_) = value.axes
        return f"![{axes.get_title(loc='left') or 'figure'}]({figure.name})"
    if hasattr(value, "_repr_html_"):
        return f'<div class="notebook-output" markdown="0">\n{value._repr_html_().strip()}\n</div>'
    return _printed(repr(value))


def _printed(text: str) -> str:
    """A block whose long lines are broken."""
    return f"``` {{ .text .notebook-printed }}\n{text.rstrip()}\n```"


def write(folder: Path) -> None:
    """Run all notebooks, and write their pages and figures."""
    import matplotlib

    for file in FILES:
        page = folder / page_of(file)
        page.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"backend": "agg", "svg.hashsalt": file.stem}):  # the notebook sets a style
            page.write_text(render(file, page.parent), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
