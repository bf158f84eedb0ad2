"""Adapters that are pushed to a Hub and loaded from it by their id. The Hub is a server of the test."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from fake_hub import fake_hub
from tiny_models import make, tuned

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.adapter_file import load_adapter
from kslottery_fast.rows.adapter_hub import push_adapter
from kslottery_fast.rows.attach import get_rows, has_rows


@pytest.fixture
def hub(tmp_path):
    with fake_hub(tmp_path) as server:
        yield server


def test_what_is_pushed_loads_by_its_id_and_its_page_is_the_card(hub):
    model = tuned(make("llama"))
    url = push_adapter(model, "org/tea", base_model_name_or_path="org/base", metrics={"NLL of a|b": 1.5})
    assert url.startswith(f"{hub.endpoint}/org/tea/commit/")
    assert set(hub.files("org/tea")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = hub.files("org/tea")["README.md"].decode()
    assert card.startswith('---\nbase_model: "org/base"\nlibrary_name: peft\n')
    assert "| NLL of a\\|b | 1.5 |" in card
    assert 'load_adapter(base_model, "org/tea")' in card
    assert "PATH OF" not in card
    again = load_adapter(make("llama"), "org/tea")
    assert torch.equal(get_rows(again).rows, get_rows(model).rows)
    assert "Bearer hf_of_the_test" in hub.tokens


def test_a_branch_is_made_and_a_revision_names_it(hub):
    first, second = tuned(make("llama")), tuned(make("llama"))
    push_adapter(first, "org/tea")
    push_adapter(second, "org/tea", revision="green", commit_message="Green tea")
    for revision, model in ((None, first), ("green", second), (hub.branches["org/tea"]["main"], first)):
        again = load_adapter(make("llama"), "org/tea", revision=revision)
        assert torch.equal(get_rows(again).rows, get_rows(model).rows)
    card = hub.files("org/tea", "green")["README.md"].decode()
    assert 'load_adapter(base_model, "org/tea", revision="green")' in card


def test_offline_the_cache_serves_and_nothing_is_asked(hub, monkeypatch):
    push_adapter(tuned(make("llama")), "org/tea")
    load_adapter(make("llama"), "org/tea")
    asked = len(hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert has_rows(load_adapter(make("llama"), "org/tea"))
    with pytest.raises(InputError, match=r"path 'org/other' is neither a local path nor .*LocalEntryNotFound"):
        load_adapter(make("llama"), "org/other")
    assert len(hub.requests) == asked


def test_what_is_not_there_is_said_and_the_model_stays_as_it_was(hub):
    model = make("llama")
    with pytest.raises(InputError, match=r"path 'org/none' is neither a local path nor a repository that the Hub"):
        load_adapter(model, "org/none")
    hub.commit("org/bare", "main", {"README.md": b"x"})
    with pytest.raises(InputError, match=r"'org/bare': the repository on the Hub has no file adapter_config.json"):
        load_adapter(model, "org/bare")
    with pytest.raises(InputError, match="RevisionNotFound"):
        load_adapter(model, "org/bare", revision="none")
    assert not has_rows(model)


def test_a_local_folder_comes_first_and_takes_no_revision(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tea").mkdir(parents=True)
    with pytest.raises(InputError, match=r"adapter_config.json: no such file"):
        load_adapter(make("llama"), "org/tea")
    with pytest.raises(InputError, match="revision is 'main', but path org/tea is not the id of a repository"):
        load_adapter(make("llama"), "org/tea", revision="main")
    with pytest.raises(TypeError, match="revision is 3: expected a branch, tag or commit"):
        load_adapter(make("llama"), "org/none", revision=3)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repo_id": 3}, "repo_id is 3: expected the id of a repository"),
        ({"repo_id": "a/b/c"}, "repo_id is 'a/b/c'"),
        ({"revision": 3}, "revision is 3: expected a str"),
        ({"private": "no"}, "private is 'no': expected True or False"),
        ({"commit_message": 3}, "commit_message is 3"),
        ({"base": "x"}, "base is 'x'"),
        ({"model": make("llama")}, "no rows are attached"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(wrong, message, hub):
    arguments = {"model": tuned(make("llama")), "repo_id": "org/tea"} | wrong
    with pytest.raises((InputError, TypeError), match=message):
        push_adapter(**arguments)
    assert hub.requests == []


def test_a_hub_that_refuses_is_an_input_error(hub, monkeypatch):
    monkeypatch.setattr(hub, "commit", lambda *_: 1 / 0)  # the connection breaks
    monkeypatch.setattr(hub, "handle_error", lambda *_: None)
    with pytest.raises(InputError, match=r"repo_id 'org/tea': the Hub did not take the files"):
        push_adapter(tuned(make("llama")), "org/tea")
