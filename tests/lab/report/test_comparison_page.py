"""The page and the figure of a comparison of two tables."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from html_page import ATTACK, Page

from kslottery_fast import TableComparison, compare_tables
from kslottery_fast.base.visible import visible_token
from kslottery_fast.lab.report import comparison_page as page
from kslottery_fast.lab.report.comparison_figure import comparison_figure
from kslottery_fast.tickets.token_classes import TokenClasses


@pytest.fixture(scope="module")
def found() -> TableComparison:
    """25 rows are significant, 15 moved, one is reordered."""
    before = torch.randn(320, 32, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[10:35] += 3
    after[35:50] *= 1.01
    after[50] = before[50].flip(0)
    return compare_tables(before, after)


def page_of(texts: list[str | None]) -> str:
    """The page of as many rows, all of which moved, whose tokens have these texts."""
    before = torch.randn(len(texts), 16, generator=torch.Generator().manual_seed(0))
    found = compare_tables(before, before + torch.linspace(0.5, 4, len(texts))[:, None])
    leading = torch.zeros(len(texts), dtype=torch.bool)
    tokens = TokenClasses(tuple(texts), tuple("Latin" if text else "no token" for text in texts), leading)
    return page.comparison_page(replace(found, tokens=tokens))


def test_texts_are_escaped_and_the_page_loads_nothing():
    html = page_of([ATTACK, "</style></code>", "\u202e", "&lt;", "\n", None, " a"])
    parsed = Page(html)
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "://" not in html
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    for text in (visible_token(ATTACK), "</style></code>", "\\u202e", "&lt;", "↵", "␣a"):
        assert text in parsed.text
    assert parsed.tags["svg"] == parsed.tags["figure"] == 1
    assert 'href="comparison.png"' not in html


def test_tables_can_be_read_aloud_and_sorted(found, tiny_tokenizer):
    html = page.comparison_page(found.with_tokens(tiny_tokenizer))
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 5
    for table in tables[:4]:
        heads = re.search(r"<thead>(.*?)</thead>", table, re.DOTALL)[1]
        assert heads.count("<th") == heads.count('<th scope="col"')
        body = table.partition("<tbody>")[2]
        for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL):
            cells = re.findall(r"<(th|td)([^>]*)>", row)
            assert cells[0][0] == "th"
            assert 'scope="row"' in cells[0][1]
            assert len(cells) == heads.count("<th")
    *_, rows, _ = tables
    assert 'class="sortable"' in rows
    lines = re.findall(r"<tr>.*?</tr>", rows.partition("<tbody>")[2], re.DOTALL)
    cells = [re.findall(r'data-sort="([^"]*)"', line) for line in lines]
    shifts = [(float(d), float(l2)) for d, _, l2, *_ in cells]
    assert shifts == sorted(shifts, reverse=True)
    assert len(shifts) == found.changed
    text = Page(html).text
    assert "All 41 rows are in this table." in text
    assert "The training never touched the 279 identical rows" in text
    assert '<meta name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_at_most_so_many_rows_are_embedded_and_the_page_says_how_many_are_left_out(found, monkeypatch):
    monkeypatch.setattr(page, "MAX_ROWS", 30)
    html = page.comparison_page(found)
    assert html.count('<td class="text">significant</td>') == 25
    assert html.count('<td class="text">moved</td>') == 5
    assert "30 rows are in this table, 11 more are left out. The file of --csv has all rows." in Page(html).text


def test_classes_have_marks_of_their_own_and_small_ones_share_one(found, tiny_tokenizer):
    found = found.with_tokens(tiny_tokenizer)
    names = [f"class {row % 9}" for row in range(320)]
    many = replace(found, tokens=replace(found.tokens, classes=tuple(names)))
    for each, groups in ((found, len([c for c in found.by_class() if c.changed])), (many, 7)):
        (axes,) = comparison_figure(each).figure.axes
        clouds = axes.collections
        assert len(clouds) == groups
        looks = {(tuple(cloud.get_facecolor()[0]), len(cloud.get_paths()[0].vertices)) for cloud in clouds}
        assert len(looks) == len(clouds)
        assert sum(len(cloud.get_offsets()) for cloud in clouds) == found.changed
    assert axes.collections[-1].get_label().startswith("other classes (")
    heights = [line.get_ydata()[0] for line in axes.get_lines()]
    assert heights == [found.threshold_count / 32]
