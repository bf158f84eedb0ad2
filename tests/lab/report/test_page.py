"""The page of an experiment, for realistic and for awkward data."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest
from html_page import ATTACK, Page
from report_samples import ARMS, Sample, comparison, realistic, top_k

from kslottery_fast.lab.report.figures import pictures
from kslottery_fast.lab.report.page import render
from kslottery_fast.lab.report.row_figures import ecdf, histogram
from kslottery_fast.lab.report.words import arm_label


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
    assert parsed.tags["svg"] == {"page": 6, "compared": 19}[name]
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


def test_page_loads_nothing_and_runs_only_the_script_that_its_policy_names(compared):
    parsed = Page(compared)
    assert "://" not in compared
    assert "@import" not in compared
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for value in parsed.values("src"))
    (script,) = re.findall("<script>(.*?)</script>", compared, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    assert policy in parsed.values("content")
    assert not re.search("innerHTML|eval|fetch|import|http", script)


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
    assert parsed.tags["script"] == 1
    assert "img" not in parsed.tags
    assert not [value for value in parsed.values("href") if "alert" in value]
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


def test_rows_that_are_not_significant_are_marked_at_the_top_before_their_section_and_in_their_table():
    text = Page(render_text(top_k())).text
    words = "18 rows of largest D, none significant at alpha = 0.05"
    assert text.count(words) == 2
    assert f"{words}, out of 200 active rows" in text
    assert f"{words}. The rows below are those of largest D" in text
    assert "The rows of largest D (not significant)" in text
    assert "The rows below are those of largest D" not in Page(render_text(realistic(rows=60))).text


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
    headings = re.findall(r"<h2 id=[^>]*>([^<]+)</h2>", page)
    first = ["Findings", "Models", "Training and costs", "Tickets", "Certification", "Sample translations"]
    assert headings == [*first, "Settings", "Environment", "Reproduce", "Glossary", "Cite"]
    assert "<h3" not in page
    assert "55 tickets at alpha = 0.05, out of 300 active rows in a table of 49,152\u00a0×\u00a0576" in text
    assert "The model of Partial Transfer predicts the same token" in text
    assert not re.search("In template|Shapley|Raw gain|Controls minus", text)


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
        "Chosen by",
        "18 trained",
        "yes+0.0123+0.0103…+0.0143",  # effects of a ticket
        "embed: all three+0.900+0.800…+1.000–",
        "Training seed 2. The check does not use the criterion. The model with the transferred tickets predicts",
        "positions on average (measured: 77.0%).",
        "Mean over languages",
    ):
        assert words in text, words
    assert re.findall(r"<h2 id=[^>]*>([^<]+)</h2>", compared)[:3] == ["Spanish", "Catalan", "Mean over languages"]
    assert "Gain, paraphrased" in compared
    without = comparison(rows=60)
    for found in without.spanish["arms"].values():
        found.pop("paraphrased_against_untuned", None)
    assert '<th scope="col">Gain, paraphrased' not in render_text(without)


def test_the_verdict_is_the_first_sentence_of_a_page_and_of_every_language(page, compared):
    found = re.search(r'</h1>\s*<p class="verdict">([^\n]*)</p>\s*<p class="lead">([^\n]*)</p>', page)
    assert found
    answer, tested = (Page(part).text for part in found.groups())
    assert answer == "On the validation pairs, 55 trained rows are enough for 95% of Embed Tuning's gain."
    assert tested.startswith("On the test pairs, training the 55 rows of largest D recovers 95% (92% to 98%) of Embed")
    assert Page(page).text.count(answer) == 1, "the findings do not repeat it"
    assert len(re.findall('<p class="verdict">', compared)) == 3
    assert re.search(r'<h2 id="language-ca">Catalan</h2>\s*<p class="verdict">', compared)


def test_the_certification_begins_with_what_was_certified_and_how_often_that_was_wrong(page):
    text = Page(page).text
    start = text[text.index("Sample translations") :]
    section = start[start.index("Certification\n") :].split("\n", 2)[1:]
    assert (
        " ".join(section).lstrip().startswith("49.5% of 1,100 positions are certified at alpha = 0.05; the certificate")
    )


def test_the_certification_shows_what_is_certified_by_reading_and_an_older_folder_has_no_such_column():
    new, old = realistic(rows=60), realistic(rows=60)
    for level in old.spanish["certificates"]["0"]["levels"]:
        del level["read_positions"], level["read_violations"]
    html, plain = render_text(new), render_text(old)
    assert '<th scope="col">By reading' in html
    assert "<td>5.0%</td></tr>" in html  # 55 of 1,100 positions at the level 0.05
    assert "This is a proof: both compute the same function of the same rows." in html
    assert "By reading" not in plain


@pytest.mark.parametrize("name", ["page", "compared"])
def test_the_contents_list_every_heading(name, request):
    html = request.getfixturevalue(name)
    nav = html[html.index("<nav") : html.index("</nav>")]
    listed = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', nav)
    assert listed == re.findall(r'<h[23] id="([^"]+)">([^<]+)</h[23]>', html)


def test_the_first_use_of_a_term_is_linked_to_the_glossary_and_no_other(compared):
    links = re.findall(r'<a class="term" href="#([^"]+)">([^<]+)</a>', compared)
    anchors = [anchor for anchor, _ in links]
    assert len(anchors) == len(set(anchors))
    assert {"ticket", "alpha", "nll", "embed-tuning", "held-out", "d", "coverage", "arm"} <= set(anchors)
    body = compared[compared.index("</nav>") :]
    assert body.index('href="#ticket"') < body.index('id="section-models-es"')


def test_figures_and_wide_tables_have_a_visible_hint_that_they_scroll(compared):
    parsed = Page(compared)
    boxes = [tag for tag, name, value in parsed.attributes if name == "class" and value.startswith("scroll")]
    assert len(boxes) == parsed.tags["svg"] + parsed.tags["table"], "nothing wide is outside a box"
    cues = compared.count('<p class="cue" aria-hidden="true">The figure')
    assert cues == parsed.tags["figure"]
    assert compared.count('<p class="cue" aria-hidden="true">The table') >= 6
    assert len(re.findall('<p class="cue(?: rare)?" aria-hidden="true">', compared)) == len(boxes)
    assert '<p class="cue rare" aria-hidden="true">The table' in compared, "shown by the script where it is needed"
    assert "box.scrollWidth > box.clientWidth" in compared
    css = compared[compared.index("<style>") : compared.index("</style>")]
    assert "--shade), transparent) right top / 1rem calc(100% - 2px) scroll" in css


def test_the_ticket_table_sorts_by_the_values_behind_its_texts(compared):
    table = compared[compared.index('<table class="sortable">') :]
    head, row = table[: table.index("</thead>")], table[table.index("<tbody>") :].partition("</tr>")[0]
    assert re.findall(r"<th[^>]*>([^<]+)", head) == [
        *("Token", "Token id", "D", "p", "Count in corpus", "Frequency rank", "In template", "Alone", "Left out"),
    ]
    listed = comparison("ca").spanish["tickets"]["list"][0]
    names = ("token_id", "statistic", "pvalue", "count", "rank")
    values = [float(value) for value in re.findall(r'data-sort="([^"]*)"', row)]
    assert values == [*(listed[name] for name in names), 1.0, 0.0123, 0.004]


def test_environment_is_a_table_without_the_path_of_a_model_of_this_machine():
    data = realistic(rows=60)
    data.environment["model"] = {"name": "smollm2-135m", "kind": "wheel", "path": "/home/someone/models/x"}
    page = render_text(data)
    text = " ".join(Page(page).text.split())
    assert "/home/someone" not in page
    assert '<th scope="rowgroup" colspan="2">System</th>' in page
    assert '<tr><th scope="row">CPU</th><td>a processor</td></tr>' in page
    assert "smollm2-135m" in text
    data.environment["model"] = {"kind": "hub", "path": "HuggingFaceTB/SmolLM2-135M"}
    assert "HuggingFaceTB/SmolLM2-135M" in render_text(data)


def test_scores_are_linked_as_csv_and_latex_and_rows_by_language(compared):
    files = {value for value in Page(compared).values("href") if not value.startswith("#")}
    assert {"scores.csv", "scores.tex", "summary.json", "rows-es.csv", "rows-ca.csv", "losses-es.png"} - files == {
        "losses-es.png"
    }, "these pages have no losses"
    assert "costs-ca.png" in files


def test_a_percentage_has_no_space_before_its_sign(page, compared):
    for text in (Page(page).text, Page(compared).text):
        assert not re.search(r"\d[ \u00a0]%", text)
