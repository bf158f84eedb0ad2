"""Tickets that are pushed to a Hub and loaded by the id of their repository. The Hub is a server of the test."""

from __future__ import annotations

import pytest
from fake_hub import fake_hub

from kslottery_fast import InputError, Tickets

SETTINGS = {"vocab_size": 320, "dimension": 8, "threshold_count": 4, "alpha": 0.05}


@pytest.fixture
def hub(tmp_path):
    with fake_hub(tmp_path) as server:
        yield server


def test_tickets_come_back_equal_and_the_page_shows_them(hub, tiny_tokenizer):
    tickets = Tickets.from_counts([7, 300], [8, 5], **SETTINGS)
    url = tickets.push_to_hub("org/words", tokenizer=tiny_tokenizer, base_model_name_or_path="org/base")
    assert url.startswith(f"{hub.endpoint}/org/words/commit/")
    page = hub.files("org/words")["README.md"].decode()
    assert page.startswith('---\nbase_model: "org/base"\nlibrary_name: kslottery-fast\n')
    assert "# 2 tickets\n" in page
    assert "Tickets.load('org/words')" in page
    assert "| 1.0000 |" in page
    again = Tickets.load("org/words")
    assert again == tickets.with_texts(tiny_tokenizer)
    assert again.token_texts == tickets.with_texts(tiny_tokenizer).token_texts


def test_a_revision_names_a_branch(hub):
    first, second = (Tickets.from_counts([token], [8], **SETTINGS) for token in (3, 5))
    first.push_to_hub("org/words")
    second.push_to_hub("org/words", revision="other")
    assert Tickets.load("org/words") == first
    assert Tickets.load("org/words", revision="other") == second


def test_a_repository_without_tickets_is_refused(hub):
    hub.commit("org/bare", "main", {"README.md": b"x"})
    with pytest.raises(InputError, match=r"'org/bare': the repository on the Hub has no file tickets.json"):
        Tickets.load("org/bare")
    with pytest.raises(InputError, match=r"'org/none' is neither a local"):
        Tickets.load("org/none")
    hub.commit("org/broken", "main", {"tickets.json": b"{}"})
    with pytest.raises(InputError, match="org/broken: not a tickets file"):
        Tickets.load("org/broken")
