"""The glossary: one text for reports and documents, and links to it."""

import re
from pathlib import Path

import pytest

from kslottery_fast.lab.report.glossary import TERMS, link_first_uses, markdown

DOCUMENT = Path(__file__).parents[3] / "docs" / "glossary.md"


def test_the_document_is_the_glossary_of_the_report():
    """Otherwise: python -m kslottery_fast.lab.report.glossary > docs/glossary.md."""
    assert DOCUMENT.read_text(encoding="utf-8") == markdown()


def test_terms_are_in_order_have_anchors_of_their_own_and_two_sentences():
    names = [term.name.lower() for term in TERMS]
    assert names == sorted(names)
    assert len({term.anchor for term in TERMS}) == len(TERMS)
    for term in TERMS:
        assert re.fullmatch("[a-z-]+", term.anchor)
        assert len(re.findall(r"\.(?= |$)", term.meaning)) == 2, term.name


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>The NLL and the NLL</p>", '<p>The <a class="term" href="#nll">NLL</a> and the NLL</p>'),
        ("<li>a</li><li>arms, arm</li>", '<li>a</li><li><a class="term" href="#arm">arms</a>, arm</li>'),
        ("<h2>NLL</h2><td>NLL</td>", "<h2>NLL</h2><td>NLL</td>"),
        ("<p><code>alpha</code><b>D</b></p>", "<p><code>alpha</code><b>D</b></p>"),
        ('<p title="NLL">harm DNA D-3</p>', '<p title="NLL">harm DNA D-3</p>'),
        ("<p>&lt;p&gt;</p>", "<p>&lt;p&gt;</p>"),
    ],
)
def test_the_first_use_in_prose_is_linked(html, expected):
    assert link_first_uses(html) == expected
