"""The page of an experiment, for realistic and for awkward data."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_samples import ARMS, Sample, comparison, realistic, top_k

from kslottery_fast.lab.report.figures import pictures
from kslottery_fast.lab.report.page import render
from kslottery_fast.lab.report.row_figures import ecdf, histogram
from kslottery_fast.lab.report.words import arm_label


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


def render_page(data: Sample) -> str:
    return render(data.summary, data.environment, pictures(data.summary, data.rows))


def render_text(data: Sample) -> str:
    """The page without its figures, which take most of the time."""
    return render(data.summary, data.environment, [])


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(realistic(rows=300))


@pytest.fixture(scope="module")
def compared() -> str:
    return render_page(comparison("ca"))


@pytest.mark.parametrize("name", ["page", "compared"])
def test_page_is_well_formed_and_every_figure_has_title_description_and_caption(name, request):
    parsed = Page(request.getfixturevalue(name))
    assert parsed.tags["svg"] == parsed.tags["figure"] == parsed.tags["figcaption"] == parsed.tags["desc"]
    assert parsed.tags["svg"] == {"page": 5, "compared": 17}[name]
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    for label in parsed.values("aria-labelledby"):
        assert set(label.split()) <= set(ids)


@pytest.mark.parametrize("name", ["page", "compared"])
def test_figures_and_tables_are_numbered_in_their_order(name, request):
    text = Page(request.getfixturevalue(name)).text
    for kind in ("Figure", "Table"):
        numbers = [int(number) for number in re.findall(rf"{kind} (\d+)\.", text)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= 3


def test_every_reference_inside_the_page_leads_somewhere(compared):
    ids = set(Page(compared).values("id"))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', compared)
    assert targets
    assert set(targets) <= ids


def test_page_loads_and_runs_nothing(compared):
    parsed = Page(compared)
    assert "://" not in compared
    assert "@import" not in compared
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for value in parsed.values("src"))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in parsed.values("content")


ATTACK = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def test_whatever_comes_from_data_is_escaped():
    data = comparison("ca", rows=60)
    rows = replace(data.rows["es"], selection=ATTACK)
    for language in data.summary["languages"].values():
        language |= {"name": ATTACK, "advice": [ATTACK]}
        language["interpretation"] = {ATTACK: language["interpretation"]["embed"]}
        language["arms"] = {**language["arms"], f"lora@{ATTACK}": {**language["arms"]["lora@18"], "label": ATTACK}}
        language["samples"] = [dict.fromkeys(sample, ATTACK) for sample in language["samples"]]
        language["controls"][0]["control"] = ATTACK
        language["tickets"]["list"] = [{**ticket, "token": ATTACK} for ticket in language["tickets"]["list"]]
        language["certificates"] = {ATTACK: language["certificates"]["0"]}
    changed = {"title": ATTACK, "settings": {ATTACK: {ATTACK: [ATTACK]}}, "signatures": {ATTACK: ATTACK}}
    summary, environment = {**data.summary, **changed}, {ATTACK: ATTACK, "commands": [ATTACK]}
    page = render(summary, environment, [histogram("es", rows), ecdf("es", rows)])
    parsed = Page(page)
    assert not {"script", "img"} & set(parsed.tags)
    assert parsed.text.count("alert(1)") > 50
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_a_prompt_with_markup_is_read_as_it_is():
    data = realistic(rows=60)
    data.summary["settings"]["template"] = "<b>Translate</b> & answer: {source}\n"
    page = render_text(data)
    assert "<b>Translate</b> & answer: {source}" in Page(page).text
    assert "&lt;b&gt;Translate&lt;/b&gt; &amp; answer" in page


def test_tokens_and_outputs_are_shown_visibly():
    shown = {
        "$x_1$": "$x_1$",
        "翻译": "翻译",
        "\ud800": "\\ud800",
        "\x00\x1b[31m": "\\u0000\\u001b[31m",
        "\u202e": "\\u202e",
        " ": "␣",
        "": "(empty)",
    }
    data = realistic(tickets=len(shown), rows=40)
    for ticket, token in zip(data.spanish["tickets"]["list"], shown, strict=True):
        ticket["token"] = token
    text = render_text(data)
    for visible in shown.values():
        assert f"<code>{visible}</code>" in text
    assert "Enter a valid email address.↵ English" in text
    assert "(536 characters)" in text
    assert "(nothing)" in text


def test_top_k_is_marked_in_every_table_of_it_and_before_the_list():
    text = Page(render_text(top_k())).text
    words = "top 18 by D; alpha = 0.05 selected none"
    for place in (1, 2, 3):
        caption = text[text.index(f"Table {place}.") :].split(". ")
        assert words in ". ".join(caption[:3])
    assert f"{words}. The rows below are those of the largest D" in text
    assert "The rows below are those of the largest D" not in Page(render_text(realistic(rows=60))).text


def test_no_number_is_shown_as_none_or_nan(page, compared):
    for text in (Page(page).text, Page(compared).text):
        assert not re.search(r"\b(nan|inf|None|NaN)\b", text)


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
    for spec, (label, values, _, trained, _) in ARMS.items():
        row = table[table.index(arm_label(spec, {"label": label})) :][:200]
        assert f"{values[0]:.3f}" in row
        assert f"{0.93 * values[0]:.2f}–{1.07 * values[0]:.2f}" in row
        assert f"{trained:,}" in row


def test_a_plain_run_reads_as_one_page_without_what_is_about_several(page):
    text = Page(page).text
    headings = re.findall(r"<h2>([^<]+)</h2>", page)
    assert headings[:5] == ["Findings", "Models", "Tickets", "Certification", "Sample translations"]
    assert headings[5:] == ["Settings", "Environment", "Reproduce", "Cite"]
    assert "<h3>" not in page
    assert "55 tickets at alpha = 0.05, out of 300 active rows of a table of 49,152\u00a0×\u00a0576" in text
    assert "The check: the model of this run's Partial Transfer predicts" in text
    assert not re.search("training seeds|In template|Shapley|Raw gain|Controls minus|Memory", text)


def test_a_comparison_shows_seeds_gains_costs_controls_effects_positions_and_languages(compared):
    text = Page(compared).text
    for words in (
        "55 tickets at alpha = 0.05, Spanish, training seed 0",
        "Partial Tuning (KS) @64",
        "NLL minus Embed T.",
        "+8.95+7.8…+10.0",  # raw gain and its interval
        "50" + "6…90",  # rows of three seeds
        "7 min 42 s",
        "1.5 GB",
        "frequency@18 minus partial@18",
        "yes+0.0123+0.0103…+0.0143",  # effects of a ticket
        "embed: all three+0.900+0.800…+1.000–",
        "Training seed 2. The check: the model with the transferred tickets predicts",
        "positions on average (measured 77.0\u00a0%), whatever",
        "Mean over languages",
    ):
        assert words in text, words
    assert re.findall(r"<h2>([^<]+)</h2>", compared)[:3] == ["Spanish", "Catalan", "Mean over languages"]
    assert "Gain, paraphrased" in compared
    without = comparison(rows=60)
    for found in without.spanish["arms"].values():
        found.pop("paraphrased_against_untuned", None)
    assert '<th scope="col">Gain, paraphrased' not in render_text(without)
