"""Hooks of MkDocs: it adds the pages that are made from other files, and adapts the links of documents."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File

from website import pages


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    for path, text in pages.made().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave docs/ lead to pages of the site."""
    if page.file.generated_by:
        return markdown
    return pages.relinked(markdown, "docs", page.file.src_uri)
