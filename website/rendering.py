"""A Markdown extension for pages and docstrings: lists as GitHub reads them, and roles of Sphinx as links."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

from website.api import LINKED

_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_ROLE = r":(?:mod|func|class|meth|attr|data|exc):`(~?)\.*([^`]+)`"


class Lists(Preprocessor):
    """Puts an empty line between a paragraph and a list that follows it: Python-Markdown needs one, GitHub does not."""

    def run(self, lines: list[str]) -> list[str]:
        spaced: list[str] = []
        for line in lines:
            before = spaced[-1] if spaced else ""
            if _ITEM.match(line) and before and not _ITEM.match(before) and not before.startswith(" "):
                spaced.append("")
            spaced.append(line)
        return spaced


class Roles(InlineProcessor):
    """Writes ``:func:`name``` as code, with a link to the reference if the name stands there."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:  # noqa: N802
        short, name = m[1], m[2]
        last = name.rpartition(".")[2]
        code = ElementTree.Element("code")
        code.text = last if short else name.removeprefix("kslottery_fast.")
        owner, _, attribute = name.rpartition(".")
        target = LINKED.get(last) or _method(owner.rpartition(".")[2], attribute)
        if target is None:
            return code, m.start(0), m.end(0)
        link = ElementTree.Element("autoref", {"identifier": target, "optional": ""})
        link.append(code)
        return link, m.start(0), m.end(0)


def _method(owner: str, name: str) -> str | None:
    return f"{LINKED[owner]}.{name}" if owner in LINKED else None


class Rendering(Extension):
    """Both of the above."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.preprocessors.register(Lists(md), "kslottery-lists", 15)  # after fenced blocks have been taken out
        md.inlinePatterns.register(Roles(_ROLE, md), "kslottery-roles", 195)  # before code in backquotes


def makeExtension(**options: Any) -> Rendering:  # noqa: N802
    """Return the extension; Python-Markdown calls this."""
    return Rendering(**options)
