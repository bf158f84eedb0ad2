"""The report: figures and page for realistic and for awkward data, self-contained, escaped, always the same bytes."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from rich.console import Console

from kslottery_fast.errors import InputError
from kslottery_fast.lab import picture, row_figures
from kslottery_fast.lab.figures import pictures
from kslottery_fast.lab.page import render
from kslottery_fast.lab.picture import Picture, token_label
from kslottery_fast.lab.report import ReportData, Shift, TicketRow, print_table, write_report
from kslottery_fast.lab.report_data import model_label

MODELS = {
    # nll, bleu_raw, bleu_first_line, chrf_raw, chrf_first_line, ended, mean_chars, trained_parameters
    "untuned": (3.558, 0.16, 1.45, 8.10, 14.20, 0.29, 201.0, 0),
    "embed_tuning": (1.781, 14.05, 18.11, 36.41, 39.02, 0.97, 36.4, 1_297_728),
    "partial_transfer": (2.178, 2.06, 6.03, 20.60, 24.18, 0.97, 41.0, 0),
    "partial_tuning": (1.863, 9.11, 10.90, 31.27, 32.04, 0.99, 35.2, 31_680),
    "frequency_tuning": (1.798, 10.53, 11.50, 32.90, 33.51, 0.99, 34.9, 31_680),
    "random_tuning": (3.524, 0.18, 1.65, 8.33, 14.71, 0.31, 196.5, 31_680),
}
KEYS = (
    "nll",
    "bleu_raw",
    "bleu_first_line",
    "chrf_raw",
    "chrf_first_line",
    "ended",
    "mean_chars",
    "trained_parameters",
)
TOKENS = (
    " Spanish",
    " list",
    " El",
    " de",
    " English",
    ".",
    " the",
    "\n",
    ":",
    " Translate",
    " to",
    " en",
    " la",
    "$",
)


def realistic(tickets: int = 55, rows: int = 2200, d: int = 576, seed: int = 0) -> ReportData:
    """Data of the shape and size of the demo: D falls with frequency, with noise; alpha 0.05 cuts at 47/576."""
    rng = np.random.default_rng(seed)
    frequency = np.maximum(1, (9000 / np.arange(1, rows + 1) ** 1.05).astype(np.int64))
    score = np.log(frequency) / np.log(9000) + rng.gumbel(0, 0.09, rows)
    top = 47 / d
    order = np.argsort(-score, kind="stable")
    statistic = np.empty(rows)
    tail = top + 0.16 * np.linspace(1, 0, tickets) ** 2.2
    body = (top - 2 / d) * np.linspace(1, 0.12, rows - tickets) ** 1.6
    statistic[order] = np.rint(np.concatenate([tail, body]) * d) / d
    token_ids = np.arange(rows) * 17 + 11
    listed = [
        TicketRow(
            int(token_ids[row]),
            TOKENS[place] if place < len(TOKENS) else f" word{place}",
            float(statistic[row]),
            float(2 * np.exp(-d * statistic[row] ** 2)),
            int(frequency[row]),
            int(row) + 1,
        )
        for place, row in enumerate(order[:tickets])
    ]
    shifts = []
    for ticket in listed[:6]:
        before = rng.normal(0, 0.04, d).astype(np.float32)
        shifts.append(Shift(ticket.token_id, ticket.token, before, before + rng.normal(0.012, 0.04, d)))
    models = {name: dict(zip(KEYS, values, strict=True)) for name, values in MODELS.items()}
    return ReportData(
        title="KS-Lottery on SmolLM2-135M, English to Spanish",
        summary={
            "format": 1,
            "title": "KS-Lottery on SmolLM2-135M, English to Spanish",
            "settings": {
                "model": "smollm2",
                "corpus": "django+wagtail",
                "languages": "en-es",
                "alpha": 0.05,
                "steps": 120,
                "batch_size": 8,
                "learning_rate": 0.01,
                "seed": 0,
                "correction": None,
                "bfloat16": True,
            },
            "models": models,
            "intervals": {
                name: {key: _interval(key, value) for key, value in model.items() if key in KEYS[:7]}
                for name, model in models.items()
            },
            "signatures": {
                "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
                "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
            },
            "tickets": {
                "count": tickets,
                "alpha": 0.05,
                "selected_by": "alpha",
                "token_ids": [ticket.token_id for ticket in listed],
                "threshold": top,
                "dimension": d,
                "vocab_size": 49152,
                "active_rows": rows,
            },
            "certificate": certificate(),
            "findings": [
                "Partial Tuning of 55 of 49,152 rows reaches 95 % of the NLL gain of Embed Tuning.",
                "Frequency Tuning is better than the tickets in NLL (1.798 against 1.863); the intervals "
                "overlap.",
                "Random rows stay where the untuned model is.",
            ],
        },
        environment={
            "kslottery_fast": "0.1.0",
            "python": "3.11.2",
            "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
            "cpu": "a processor, 2 cores, avx512",
            "seed": 0,
            "finished": "2026-11-21",
            "command": ["kslottery", "run", "--out", "runs/my run"],
        },
        active_token_ids=token_ids,
        statistic=statistic,
        frequency=frequency,
        threshold=top,
        tickets=listed,
        shifts=shifts,
        samples=[
            {
                "source": "Enter a valid email address.",
                "reference": "Introduzca una dirección de correo válida.",
                "untuned": "Enter a valid email address.\nEnglish: Enter a valid email address.\n" * 8,
                "embed_tuning": "Introduzca una dirección de correo electrónico válida.",
                "partial_transfer": "Enter una dirección de correo.",
                "partial_tuning": "Introduzca un correo válido.",
                "frequency_tuning": "Introduzca un correo electrónico.",
                "random_tuning": "Enter a valid email address.",
            },
            {
                "source": "Delete selected pages",
                "reference": "Eliminar las páginas seleccionadas",
                "untuned": "",
                "embed_tuning": "Eliminar páginas seleccionadas",
                "partial_transfer": "Eliminar selected pages",
                "partial_tuning": "Eliminar páginas",
                "frequency_tuning": "Eliminar las páginas",
                "random_tuning": "Delete selected pages",
            },
        ],
    )


def _interval(key: str, value: float) -> list[float]:
    if key == "ended":
        return [max(0, value - 0.06), min(1, value + 0.03)]
    return [value * (0.93 if key == "nll" else 0.82), value * (1.07 if key == "nll" else 1.21)]


def certificate(checked: bool = True) -> dict[str, Any]:
    alphas = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)
    levels = []
    for place, alpha in enumerate(alphas):
        share = 0.22 + 0.055 * place
        levels.append(
            {
                "alpha": alpha,
                "tau": float(np.sqrt(-np.log(alpha / 2) / 576)),
                "certified_positions": int(1100 * share),
                "certified": share,
                "certified_accuracy": share * (0.97 - 0.015 * place),
                "violations": 3 + 7 * place if checked else None,
                "violating_sentences": 2 + 3 * place if checked else None,
                "violating_sentences_upper": 0.06 + 0.03 * place if checked else None,
            }
        )
    interval = {"value": 0.78, "low": 0.74, "high": 0.81}
    return {
        "dimension": 576,
        "positions": 1100,
        "sentences": 96,
        "accuracy": 0.655,
        "confidence": 0.95,
        "levels": levels,
        "checked": checked,
        "text": "...",
        "agreement": {"positions": interval, "sentences": {"value": 0.3, "low": 0.22, "high": 1.0}}
        if checked
        else None,
    }


def with_tickets(data: ReportData, **changes: Any) -> ReportData:
    """The same data with other entries in ``summary["tickets"]``."""
    return replace(data, summary={**data.summary, "tickets": {**data.summary["tickets"], **changes}})


def top_k(rows: int = 200, count: int = 18) -> ReportData:
    """alpha selected nothing, the largest D were taken."""
    data = realistic(tickets=count, rows=rows)
    data = replace(data, statistic=np.rint(data.statistic * 576 / 4) / 576, threshold=47 / 576)
    data = replace(
        data, tickets=[replace(t, statistic=round(t.statistic * 576 / 4) / 576) for t in data.tickets]
    )
    return with_tickets(data, selected_by="top_k", count=count)


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


def test_figures_leave_matplotlib_as_it_was_and_do_not_need_pyplot():
    before = dict(matplotlib.rcParams)
    pictures(realistic(rows=50))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, kslottery_fast.lab.report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failure_keeps_the_old_page_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    write_report(tmp_path, realistic(rows=50))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Picture, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Picture, "write_png", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, realistic(rows=60))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
        for start in range(0, len(AWKWARD), 6):
            write_report(tmp_path, replace(data, tickets=tickets, shifts=shifts[start : start + 6]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in ("$x_1$", "翻译", "🙂", "\\ud800", "\\u0000\\u001b[31m", "\\u202e", "␣", "(empty)", "مرحبا"):
        assert f"<code>{shown}</code>" in page


@pytest.mark.parametrize("token", ["翻译", "🙂", "مر"])
def test_glyphs_that_the_font_lacks_become_escapes_in_figures(token):
    label = token_label(token)
    assert set(label) <= {chr(code) for code in picture._glyphs()}


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
    unasked = replace(
        data, threshold=None, summary=with_tickets(replace(data, threshold=None), alpha=None).summary
    )
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
        "unchecked certificate": replace(
            data, summary={**data.summary, "certificate": certificate(checked=False)}
        ),
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
    assert "no row moved far enough" in Page(render_page(cases["no ticket"])).text
    assert "no ticket at alpha = 0.05" in Page(render_page(cases["no ticket"])).text
    assert "No certificate was made" in Page(render_page(cases["no certificate"])).text
    unchecked = Page(render_page(cases["unchecked certificate"])).text
    assert "Not checked: the transfer model was not run" in unchecked
    assert "not measured" in [
        text.get_text() for text in pictures(cases["nothing measured"])[0].figure.findobj(Text)
    ]


def test_ecdf_marks_the_statistic_of_scipy_where_scipy_finds_it():
    data = realistic(tickets=6, rows=50)
    for shift in data.shifts:
        expected = scipy.stats.ks_2samp(shift.before, shift.after)
        at, before, after = row_figures._ks_location(shift)
        assert abs(after - before) == pytest.approx(expected.statistic, abs=1e-12)
        assert at == pytest.approx(expected.statistic_location)


def test_histogram_counts_every_row_once_and_parts_tickets_at_the_threshold():
    data = realistic(rows=500)
    axes = row_figures.histogram(data).figure.axes[0]
    others, tickets = axes.containers
    assert sum(bar.get_height() for bar in others) == 445
    assert sum(bar.get_height() for bar in tickets) == 55
    assert all(bar.get_x() >= data.threshold - 0.5 / 576 - 1e-9 for bar in tickets if bar.get_height())
    assert all(bar.get_x() < data.threshold - 0.5 / 576 - 1e-9 for bar in others if bar.get_height())


def test_labels_of_tickets_do_not_overlap():
    figure = next(each.figure for each in pictures(realistic(rows=500)) if each.name == "frequency")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = [text for text in figure.axes[0].texts]
    assert len(labels) >= 10
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    for place, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:place]) == 0, labels[place].get_text()


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
    for name, values in MODELS.items():
        row = text[text.rindex(model_label(name), 0, text.index("Figure 1.")) :][:200]
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
