"""Checks a built site: every link leads somewhere, and no page asks another host for anything.

``python -m website.check FOLDER`` prints what is wrong, or where the site is.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
"""The tags that make a browser load a file, and the attribute that names it."""
_FOREIGN = re.compile(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"](?:https?:)?//")


class _Page(HTMLParser):
    """What a page holds: ids, links, and files that the browser loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.diagrams = False  # for which the theme would load a program from another host
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in _LOADING and _LOADING[tag] in values and values.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(values[_LOADING[tag]])
        self.diagrams |= "mermaid" in values.get("class", "").split()


def problems(site: Path) -> tuple[list[str], int]:
    """Check all pages of a site.

    Parameters
    ----------
    site : pathlib.Path
        The folder of the site.

    Returns
    -------
    found : list of str
        One line for everything that is wrong.
    count : int
        How many links were checked.
    """
    pages = {file: _Page(file.read_text(encoding="utf-8")) for file in sorted(site.resolve().rglob("*.html"))}
    site = site.resolve()
    found: list[str] = []
    for file, page in pages.items():
        name = file.relative_to(site)
        found += [f"{name}: loads {url} from another host" for url in page.loaded if _is_foreign(url)]
        found += [f"{name}: has a diagram" for _ in range(page.diagrams)]
        if name.name != "404.html":  # its links begin at the root of a server
            found += [f"{name}: {what}" for link in page.links if (what := _wrong(link, file, site, pages))]
    for style in site.rglob("*.css"):
        if _FOREIGN.search(style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(site)}: loads from another host")
    return found, sum(len(page.links) for page in pages.values())


def _is_foreign(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def _wrong(link: str, file: Path, site: Path, pages: dict[Path, _Page]) -> str | None:
    """Say what is wrong with a link, if anything is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None if parts.scheme == "https" and "." in parts.netloc else f"{link} is no https address"
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file() or not target.is_relative_to(site):
        return f"{link} leads to no file of the site"
    place, page = unquote(parts.fragment), pages.get(target)
    if place and page is not None and place not in page.ids and not place.startswith("__"):
        return f"{link} leads to no place of that page"
    return None


def main(folder: str) -> int:
    """Print what is wrong, or in one line where the site is."""
    site = Path(folder)
    found, count = problems(site)
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    print(f"The site is {site / 'index.html'} ({count:,} links checked)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
