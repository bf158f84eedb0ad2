"""The documentation site: it builds without a warning, its links lead somewhere, and it names everything it should."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import documents
import markdown
import pytest
import torch

from kslottery_fast import InputError, Tickets, attach_rows
from website import api, check, messages, notebooks, pages
from website.rendering import Rendering

ROOT = Path(__file__).parents[1]
MODULES = {"kernels", "native", "reference", "schemas"}  # of ops, public and not for users
HANDED_ON = {  # files that raise what another file, a library or another process has said
    "base/content.py",
    "base/files.py",
    "base/ticket_ids.py",
    "checkpoints/tensor_names.py",
    "ks/frame_csv.py",
    "ks/stream_result.py",
    "ks/twosample.py",
    "lab/experiment/cluster.py",
    "lab/experiment/run_folder.py",
    "lab/experiment/workers.py",
    "ops/native.py",
    "optim/row_adamw.py",
    "rows/adapter_load.py",
    "rows/new_token_rows.py",
    "tickets/scan_result.py",
    "tickets/select.py",
    "tickets/selected_rows.py",
    "tickets/stored.py",
    "tickets/ticket_fields.py",
    "tickets/ticket_file.py",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for old, new in (("build/pages", "pages"), ("build/site", "site"), ("paths: [.]", f"paths: [{ROOT}]")):
        assert old in text
        text = text.replace(old, new)
    (folder / "mkdocs.yml").write_text(text, encoding="utf-8")
    pages.write(folder / "pages")
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    return folder / "site"


def test_every_link_of_the_site_leads_somewhere_and_nothing_comes_from_another_host(site):
    found, count = check.problems(site)
    assert found == []
    assert count > 1000


def test_the_site_has_an_anchor_for_every_public_name_and_every_message(site):
    for page in api.PAGES:
        text = (site / page.path).with_suffix(".html").read_text(encoding="utf-8")
        assert [name for name in page.names if f'id="kslottery_fast.{name}"' not in text] == []
    errors = (site / "errors.html").read_text(encoding="utf-8")
    listed = re.findall(r'<li id="([^"]+)">', errors)
    assert len(set(listed)) == len(listed) == len(messages.collect())


def test_docstrings_are_rendered(site):
    text = (site / "api" / "tickets.html").read_text(encoding="utf-8")
    assert 'href="ks.html#kslottery_fast.ks.pvalues"' in text  # :func:`kslottery_fast.ks.significance.pvalues`
    assert 'id="kslottery_fast.Tickets.save"' in text  # of a class that Tickets inherits from
    everything = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.html"))
    assert not re.search(r":(?:func|class|meth|mod):", everything)


@pytest.mark.parametrize(
    ("name", "printed"), [("which-tokens", "of 259 rows changed"), ("new-tokens", "NLL of"), ("ks-lottery", "untuned")]
)
def test_each_notebook_is_a_page_with_what_it_prints_and_draws(site, name, printed):
    text = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert printed in text.partition("</article>")[0]
    (first, *_) = re.findall(rf'<img alt="([^"]+)" src="({name}-\d+\.svg)"', text)
    assert first[0] != "figure"
    assert (site / "notebooks" / first[1]).read_text(encoding="utf-8").startswith("<?xml")
    assert "mo.md" not in text  # the code of texts is hidden
    assert f"marimo edit examples/notebooks/{name.replace('-', '_')}.py" in text


NOTEBOOK = """
import marimo
app = marimo.App()

with app.setup(hide_code=True):
    def text(words):
        return type("Text", (), {"_repr_markdown_": lambda self: words})()

@app.cell(hide_code=True)
def _():
    text("# A title")
    return

@app.cell
def _(
    text,
):
    # Doubles it.
    double = [each * 2 for each in (1, 2)]
    print(double)
    return (double,)

@app.cell(hide_code=False)
def _(double):
    sum(double)
"""


def test_a_notebook_becomes_a_page_with_its_texts_its_code_and_its_results(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(NOTEBOOK, encoding="utf-8")
    assert notebooks.render(file, tmp_path).split("\n\n") == [
        "# A title",
        "`make docs` has run this notebook. `marimo edit examples/notebooks/small.py` opens it.",
        "```python\n# Doubles it.\ndouble = [each * 2 for each in (1, 2)]\nprint(double)\n```",
        "``` { .text .notebook-printed }\n[2, 4]\n```",
        "```python\nsum(double)\n```",
        "``` { .text .notebook-printed }\n6\n```\n",
    ]


def test_the_search_finds_messages(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("rows are attached to this model already" in entry["text"] for entry in index["docs"])


def test_the_reference_has_every_public_name_and_no_other():
    public = set()
    for home in ("kslottery_fast", *(f"kslottery_fast.{room}" for room in ("ks", "ops", "optim", "rows", "tickets"))):
        public |= set(importlib.import_module(home).__all__)
    assert public - set(api.LINKED) - MODULES == {"SmallSampleWarning"}  # scipy's own class
    for page in api.PAGES:
        for name in page.names:
            home, _, attribute = f"kslottery_fast.{name}".rpartition(".")
            assert hasattr(importlib.import_module(home), attribute), name


def test_the_navigation_has_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/-]+\.md", text[text.index("\nnav:") :])
    assert sorted(listed) == sorted([*pages.pages(), *map(notebooks.page_of, notebooks.FILES)])


def test_the_first_page_leads_to_every_document():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert linked | {"index.md"} == {file.name for file in (ROOT / "docs").glob("*.md")}


def test_every_message_is_found_unless_its_text_is_made_elsewhere():
    assert {place.partition(":")[0] for place in messages.unread()} <= HANDED_ON


def test_what_the_package_raises_is_among_the_messages():
    table = torch.nn.Embedding(10, 4)
    for call in (
        lambda: attach_rows(table, []),
        lambda: attach_rows(table, [10]),
        lambda: attach_rows(table, ["a"]),
        lambda: Tickets.load("nothing.json"),
        lambda: attach_rows(attach_rows(table, [1]), [2]),
    ):
        with pytest.raises((InputError, TypeError)) as raised:
            call()
        assert matching(str(raised.value)), raised.value


def matching(text: str) -> list[messages.Message]:
    """The messages that can be this text, of those that have words of their own."""
    return [one for one in messages.collect() if len(one.words) > 12 and one.pattern.fullmatch(text)]


FAQ = [block.text.strip() for block in documents.blocks(ROOT / "docs" / "faq.md", "text")]


@pytest.mark.parametrize("text", FAQ, ids=lambda text: text[:30])
def test_the_faq_quotes_messages_of_the_package(text):
    assert matching(text)


def test_the_faq_has_the_twenty_errors_that_people_meet_most():
    assert len(set(FAQ)) >= 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](training.md#adapters)", "[a](training.md#adapters)"),
        ("[a](../CONTRIBUTING.md#rules)", "[a](contributing.md#rules)"),
        ("[a](../examples/plain_loop.py)", "[a](examples.md#plain-loop-py)"),
        ("[a](../examples/notebooks)", "[a](examples.md#notebooks)"),
        ("[a](../examples/notebooks/new_tokens.py)", "[a](notebooks/new-tokens.md)"),
        ("[a](../website/messages.py)", "[a](errors.md)"),
        ("[a](../csrc/ksl.h)", "a"),
        ("[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("[a](#here)", "[a](#here)"),
    ],
)
def test_links_of_documents_lead_to_pages_of_the_site(text, expected):
    assert pages.relinked(text, "docs", "page.md") == expected


def test_links_of_pages_in_folders_begin_there():
    assert pages.relinked("[a](docs/training.md)", "", "api/page.md") == "[a](../training.md)"


def test_a_list_needs_no_empty_line_and_a_role_becomes_code():
    text = "It takes:\n- one\n  more\n- two, see :func:`~kslottery_fast.attach_rows` and :class:`Mine`"
    html = markdown.markdown(text, extensions=[Rendering()])
    assert html.count("<li>") == 2
    assert '<autoref identifier="kslottery_fast.attach_rows" optional=""><code>attach_rows</code></autoref>' in html
    assert "<code>Mine</code>" in html


def test_faults_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">x</a><a href="b.html#there">x</a><a href="c.html">x</a><a href="http://host.org">x</a>'
        '<a href="../outside.html">x</a><a href="https://host.org">x</a><img src="//host.org/a.png">'
        '<script src="https://host.org/a.js"></script><pre class="mermaid">x</pre>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<p id="here">x</p><a href="a.html">x</a>', encoding="utf-8")
    (tmp_path / "a.css").write_text("@font-face { src: url(https://host.org/font) }", encoding="utf-8")
    found, count = check.problems(tmp_path)
    assert [line.partition(": ")[2] for line in found] == [
        "loads //host.org/a.png from another host",
        "loads https://host.org/a.js from another host",
        "has a diagram",
        "b.html#there leads to no place of that page",
        "c.html leads to no file of the site",
        "http://host.org is no https address",
        "../outside.html leads to no file of the site",
        "loads from another host",
    ]
    assert count == 7
    assert check.main(str(tmp_path)) == 1
