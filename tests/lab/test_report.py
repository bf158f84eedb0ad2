"""The report: page, figures and table, for realistic and for awkward data."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from kslottery_fast.lab.report.report import print_table, write_report
from kslottery_fast.lab.report.report_data import ReportData, Shift, model_label
from matplotlib.text import Text
from report_samples import KEYS, MODELS, certificate, realistic, top_k, with_tickets
from rich.console import Console

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.report import row_figures
from kslottery_fast.lab.report.figures import pictures, scores
from kslottery_fast.lab.report.page import render
from kslottery_fast.lab.report.picture import Picture


class Page(HTMLParser):
    """Collects what the tests ask about, and fails on tags that do not nest."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def render_page(data: ReportData) -> str:
    return render(data, pictures(data))


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(realistic(rows=300))


NAMES = ["scores", "histogram", "frequency", "ecdf", "certificate"]


def test_page_and_one_png_a_figure_are_written_and_nothing_else(tmp_path):
    paths = write_report(tmp_path, realistic(rows=300))
    assert [path.name for path in paths] == ["report.html", *(f"{name}.png" for name in NAMES)]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths[1:]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width = int.from_bytes(content[16:20], "big")
        assert width == 1400, "7 inches at 200 dpi"
        assert len(content) > 10_000


def test_same_data_give_the_same_bytes_whatever_the_users_matplotlibrc(tmp_path):
    first = write_report(tmp_path / "a", realistic(rows=100))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "pink", "text.usetex": True}):
        second = write_report(tmp_path / "b", realistic(rows=100))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_failure_keeps_the_old_page_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    for name in ("report.html", "scores.png"):
        (tmp_path / name).write_bytes(b"old")

    def full(self: Picture, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Picture, "write_png", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, realistic(tickets=5, rows=60))
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"report.html": b"old", "scores.png": b"old"}


def test_page_is_well_formed_and_every_figure_has_title_description_and_caption(page):
    parsed = Page(page)
    assert parsed.tags["svg"] == parsed.tags["figure"] == parsed.tags["figcaption"] == len(NAMES)
    assert parsed.tags["desc"] == len(NAMES)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    for label in parsed.values("aria-labelledby"):
        assert set(label.split()) <= set(ids)


def test_every_reference_inside_the_page_leads_somewhere(page):
    ids = set(Page(page).values("id"))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert targets
    assert set(targets) <= ids


def test_page_loads_and_runs_nothing(page):
    parsed = Page(page)
    assert "://" not in page
    assert "@import" not in page
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for value in parsed.values("src"))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in parsed.values("content")


ATTACK = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def test_whatever_comes_from_data_is_escaped():
    data = realistic(tickets=3, rows=20)
    summary = {
        **data.summary,
        "title": ATTACK,
        "findings": [ATTACK],
        "settings": {ATTACK: ATTACK},
        "signatures": {ATTACK: ATTACK},
        "models": {**data.summary["models"], ATTACK: data.summary["models"]["untuned"]},
    }
    page = render_page(
        replace(
            data,
            title=ATTACK,
            summary=summary,
            environment={ATTACK: {ATTACK: [ATTACK]}, "command": ["kslottery", ATTACK]},
            tickets=[replace(ticket, token=ATTACK) for ticket in data.tickets],
            shifts=[replace(shift, token=ATTACK) for shift in data.shifts],
            samples=[{"source": ATTACK, "reference": ATTACK, "untuned": ATTACK, ATTACK: ATTACK}],
        )
    )
    parsed = Page(page)
    assert not {"script", "img"} & set(parsed.tags)
    assert parsed.text.count("alert(1)") > 20
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


AWKWARD = [
    "$x_1$",
    "$",
    "\\frac{1}",
    "翻译",
    "🙂",
    "\ud800",
    "\x00\x1b[31m",
    "‮",
    " ",
    "",
    "_hidden",
    "a" * 300,
    "مرحبا",
]


def test_awkward_tokens_are_drawn_without_warnings_and_shown_visibly(tmp_path):
    data = realistic(tickets=len(AWKWARD), rows=40)
    tickets = [replace(ticket, token=token) for ticket, token in zip(data.tickets, AWKWARD, strict=True)]
    shifts = [replace(data.shifts[0], token=token) for token in AWKWARD]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, replace(data, tickets=tickets, shifts=shifts[:6]))
        for start in range(6, len(AWKWARD), 6):
            row_figures.ecdf(replace(data, shifts=shifts[start : start + 6])).svg()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in ("$x_1$", "翻译", "🙂", "\\ud800", "\\u0000\\u001b[31m", "\\u202e", "␣", "(empty)", "مرحبا"):
        assert f"<code>{shown}</code>" in page


def test_top_k_is_marked_in_every_title_caption_and_table():
    data = top_k()
    words = "top 18 by D; alpha = 0.05 selected none"
    drawn = pictures(data)
    assert len(drawn) == len(NAMES)
    for each in drawn:
        assert words in each.title
        assert words in each.caption
        texts = [text.get_text() for text in each.figure.findobj(Text)]
        assert each.title in texts
    text = Page(render(data, drawn)).text
    for place in (1, 2, 3):
        caption = text[text.index(f"Table {place}.") :].split(". ")
        assert words in ". ".join(caption[:3])
    assert f"{words}. The rows below are those of the largest D" in text


def test_top_k_says_so_when_alpha_would_have_selected_some():
    data = with_tickets(realistic(tickets=18, rows=100), selected_by="top_k")
    assert data.selection == "top 18 by D; alpha = 0.05 selected 18"
    unasked = replace(data, threshold=None, summary=with_tickets(replace(data, threshold=None), alpha=None).summary)
    assert unasked.selection == "top 18 by D; no alpha was asked for"


def _without_certificate(data: ReportData) -> ReportData:
    return replace(data, summary={**data.summary, "certificate": None})


def _edge_cases() -> dict[str, ReportData]:
    data = realistic(tickets=1, rows=30)
    none = with_tickets(replace(data, tickets=[], shifts=[], statistic=data.statistic / 10), count=0)
    models = {name: dict.fromkeys(KEYS) for name in MODELS}
    models["untuned"]["nll"] = math.nan
    still = replace(data.shifts[0], after=data.shifts[0].before, before=data.shifts[0].before)
    constant = replace(data.shifts[0], before=np.zeros(576), after=np.zeros(576))
    one_level = {**certificate(), "levels": certificate()["levels"][:1]}
    return {
        "one ticket": data,
        "no ticket": none,
        "no threshold": replace(none, threshold=None),
        "no certificate": _without_certificate(data),
        "unchecked certificate": replace(data, summary={**data.summary, "certificate": certificate(checked=False)}),
        "one level": replace(data, summary={**data.summary, "certificate": one_level}),
        "no samples": replace(data, samples=[], environment={}),
        "no intervals": replace(data, summary={**data.summary, "intervals": {}}),
        "nothing measured": replace(data, summary={**data.summary, "models": models, "intervals": {}}),
        "one unknown model": replace(
            data, summary={**data.summary, "models": {"prefix": data.summary["models"]["untuned"]}}
        ),
        "a row that did not move": replace(data, shifts=[still, constant]),
        "no row moved": replace(none, statistic=np.zeros(30)),
        "counts of zero": replace(data, frequency=np.zeros(30, dtype=np.int64)),
        "one active row": replace(
            none, active_token_ids=np.array([5]), statistic=np.array([0.5]), frequency=np.array([3])
        ),
        "two panels": replace(data, shifts=[data.shifts[0]] * 2),
        "four panels": replace(data, shifts=[data.shifts[0]] * 4),
    }


@pytest.mark.parametrize("case", _edge_cases())
def test_edge_case_is_rendered_without_warnings_and_without_nan(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = Page(render_page(_edge_cases()[case])).text
    assert not re.search(r"\b(nan|inf|None|NaN)\b", text)


def test_missing_parts_are_said_in_words():
    cases = _edge_cases()
    none = Page(render_page(cases["no ticket"])).text
    assert "no row moved far enough" in none
    assert "no ticket at alpha = 0.05" in none
    assert "No certificate was made" in Page(render_page(cases["no certificate"])).text
    unchecked = Page(render_page(cases["unchecked certificate"])).text
    assert "Not checked: the transfer model was not run" in unchecked
    assert "not measured" in [text.get_text() for text in scores(cases["nothing measured"]).figure.findobj(Text)]


def test_a_large_vocabulary_becomes_a_bitmap_inside_a_page_of_moderate_size():
    page = render_page(realistic(tickets=600, rows=20_000))
    assert 'href="data:image/png;base64' in page
    assert len(page) < 3_000_000


def test_every_colour_of_a_figure_follows_the_theme_of_the_page(page):
    css = page[page.index("<style>") : page.index("</style>")]
    for variable in set(re.findall(r"var\((--[a-z-]+)\)", page)):
        assert css.count(f"{variable}:") == 2, f"{variable} needs a light and a dark value"
    figures = page[page.index("<svg") :]
    assert not re.search(r"(?:fill|stroke): #", figures)


def test_values_of_all_models_stand_in_the_page_with_their_intervals(page):
    text = Page(page).text
    table = text[text.index("Table 1.") : text.index("Signatures:")]
    for name, values in MODELS.items():
        row = table[table.index(model_label(name)) :][:200]
        assert f"{values[0]:.3f}" in row
        assert f"{0.93 * values[0]:.2f}–{1.07 * values[0]:.2f}" in row
        assert f"{values[7]:,}" in row


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("colour", [True, False])
def test_table_fits_the_terminal_and_shows_all_models(width, colour):
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    print_table(
        realistic(rows=60).summary,
        Console(file=stream, width=width, color_system=system, force_terminal=colour),
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert ("\x1b" in stream.getvalue()) == colour
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name, values in MODELS.items():
        for word in model_label(name).split():
            assert word in text
        assert f"{values[0]:.3f}" in text
        assert f"{values[1]:.2f}" in text
    assert "1.66–1.91" in text
    assert "55 tickets at alpha = 0.05" in text


def test_table_marks_top_k_and_prints_a_title_with_brackets_as_it_is():
    stream = io.StringIO()
    summary = {**top_k().summary, "title": "my [bold]model[/bold]"}
    print_table(summary, Console(file=stream, width=100))
    assert "top 18 by D; alpha = 0.05 selected none" in stream.getvalue()
    assert "my [bold]model[/bold]" in stream.getvalue()


def _broken_summary(**changes: Any) -> dict[str, Any]:
    return {"summary": {**realistic(tickets=1, rows=5).summary, **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_broken_summary(models={}), "summary: no 'models'"),
        (_broken_summary(tickets={"count": 1}), r"summary\['tickets'\]: no alpha, dimension, selected_by"),
        (
            _broken_summary(tickets={"count": 1, "alpha": None, "selected_by": "alpha", "dimension": 576}),
            "'alpha'",
        ),
        ({"frequency": np.ones(4)}, "expected the same length, at least 1; got 5, 5 and 4"),
        (
            {"statistic": np.array([0.1, 0.2, np.nan, 0, 0])},
            r"D lies in \[0, 1\], but the row of token 45 has nan",
        ),
        ({"statistic": np.array([0.1, 0.2, 0, 0, 1.5])}, "the row of token 79 has 1.5"),
        (
            {"shifts": [Shift(7, "x", np.zeros(3), np.array([0, np.inf, 0]))]},
            "the row of token 7 holds NaN or Inf",
        ),
        (
            {"shifts": [Shift(7, "x", np.zeros(3), np.zeros(2))]},
            "the row of token 7 has 3 values before and 2 after",
        ),
    ],
)
def test_broken_data_are_refused_with_the_reason(changes, message):
    with pytest.raises(InputError, match=message):
        replace(realistic(tickets=1, rows=5), **changes)
