"""Adapter directories on their own: what is written, what is refused, and which base model is named."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TOKENS, V, batch, logits, make, tuned
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.adapter_file import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter, save_rows_adapter
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows
from kslottery_fast.rows.sets import row_sets, use_rows
from kslottery_fast.rows.tables import is_tied


def test_rows_without_a_model_make_the_same_adapter(tmp_path):
    model = tuned(make("llama", tied=False))
    save_adapter(model, tmp_path / "a", base_model_name_or_path="org/base")
    embedding = get_rows(model)
    save_rows_adapter(
        embedding.token_ids, embedding.rows, tmp_path / "b", vocab_size=V, base_model_name_or_path="org/base"
    )
    for name in (CONFIG_FILE, "README.md"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    (name, one), (other, two) = (load_file(tmp_path / path / WEIGHTS_FILE).popitem() for path in "ab")
    assert name == other
    assert torch.equal(one, two)


def test_saving_again_replaces_an_adapter_but_nothing_else(tmp_path):
    model = tuned(make("llama"))
    save_adapter(model, tmp_path / "a")
    get_rows(model).rows.data.add_(1)
    save_adapter(model, tmp_path / "a")
    assert torch.equal(get_rows(load_adapter(make("llama"), tmp_path / "a")).rows, get_rows(model).rows)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for path in ("mine", "file"):
        with pytest.raises(InputError, match="exists and is not an adapter directory"):
            save_adapter(model, tmp_path / path)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_bad_rows_are_not_saved(tmp_path):
    model = make("llama")
    with pytest.raises(InputError, match="no rows are attached"):
        save_adapter(model, tmp_path / "a")
    tuned(model, output="tied")
    with pytest.raises(InputError, match="base='untied' does not fit rows that the head follows"):
        save_adapter(model, tmp_path / "a", base="untied")
    with pytest.raises(InputError, match="base is 'x': expected 'auto' or 'untied'"):
        save_adapter(model, tmp_path / "a", base="x")
    get_rows(model).rows.data[2, 0] = float("nan")
    with pytest.raises(InputError, match=r"cannot save the adapter: 1 of 3 rows hold NaN or Inf \(token ids 40\)"):
        save_adapter(model, tmp_path / "a")
    with pytest.raises(InputError, match=r"rows has the shape \[2, 4\], expected \[3, d\]"):
        save_rows_adapter(TOKENS, torch.ones(2, 4), tmp_path / "a", vocab_size=V)
    assert not list(tmp_path.iterdir())


def test_adapters_that_do_not_fit_are_refused_and_the_model_stays_as_it_was(tmp_path):
    model = tuned(make("llama"))
    path = tmp_path / "a"
    save_adapter(model, path)
    config, tensors = json.loads((path / CONFIG_FILE).read_text()), load_file(path / WEIGHTS_FILE)
    head, rows = sorted(tensors)
    wide = make("llama")
    wide.resize_token_embeddings(64, mean_resizing=False)

    def refused(message: str, target: nn.Module | None = None, **changes: object) -> None:
        target = target or make("llama")
        (path / CONFIG_FILE).write_text(json.dumps(config | changes.get("config", {})))
        save_file(
            {**tensors, **changes.get("tensors", {})},
            path / WEIGHTS_FILE,
            metadata={"kslottery_vocab_size": "60", "kslottery_output": "frozen"},
        )
        with pytest.raises(InputError, match=message):
            load_adapter(target, path)
        assert not has_rows(target)

    names = config["trainable_token_indices"]
    refused(r"rows \[3, 16\], but the model needs \[3, 8\]", make("opt"))
    refused("is a PREFIX_TUNING adapter with more than rows", config={"peft_type": "PREFIX_TUNING"})
    refused("more than rows in it", tensors={"base_model.model.x.lora_A.weight": torch.ones(1)})
    refused("outside 0..59", config={"trainable_token_indices": names | {"model.embed_tokens": [1, 2, 60]}})
    refused("has 5 more than once", config={"trainable_token_indices": names | {"model.embed_tokens": [5, 5, 6]}})
    refused("has other rows for the head", tensors={head: tensors[head] + 1})
    refused("NaN or Inf", tensors={rows: tensors[rows] * float("nan")})
    refused("different rows for different embeddings", tensors={rows.replace("embed", "other"): tensors[rows] + 1})

    refused("adapter of a table with 60 rows, but this model's table has 64; .* call model.resize_token_emb", wide)
    refused("holds no rows of an input embedding", config={"trainable_token_indices": {"lm_head": [0]}})
    refused("must be lists of integers", config={"trainable_token_indices": {"model.embed_tokens": "x"}})
    refused("different tokens for different embed", config={"trainable_token_indices": names | {"other": [1, 2, 3]}})

    (path / WEIGHTS_FILE).write_bytes(b"junk")
    with pytest.raises(InputError, match="is damaged"):
        load_adapter(make("llama"), path)
    (path / CONFIG_FILE).write_text("[]")
    save_file(tensors, path / WEIGHTS_FILE)
    with pytest.raises(InputError, match="is not the configuration of an adapter"):
        load_adapter(make("llama"), path)
    (path / WEIGHTS_FILE).unlink()
    (path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"adapter_model.safetensors: no such file"):
        load_adapter(make("llama"), path)
    with pytest.raises(InputError, match=r"path .*nowhere is not a directory"):
        load_adapter(make("llama"), tmp_path / "nowhere")


def test_rows_that_the_head_follows_are_refused_by_an_untied_model(tmp_path):
    save_adapter(tuned(make("llama"), output="tied"), tmp_path / "a")
    with pytest.raises(InputError, match="changes the head too, but this model is not tied"):
        load_adapter(make("llama", tied=False), tmp_path / "a")


def test_adapters_load_beside_each_other_and_the_set_in_use_is_what_is_saved(tmp_path):
    base = make("llama")
    for name, tokens in (("a", TOKENS), ("b", [5, 9])):
        model = attach_rows(copy.deepcopy(base), tokens)
        with torch.no_grad():
            get_rows(model).rows.add_(torch.randn_like(get_rows(model).rows))
        save_adapter(model, tmp_path / name)
    model = load_adapter(copy.deepcopy(base), tmp_path / "a", name="a")
    alone = logits(model, batch(model))
    load_adapter(model, tmp_path / "b", name="b")
    assert row_sets(model) == ("a", "b")
    assert torch.equal(logits(model, batch(model)), alone)
    save_adapter(use_rows(model, "b"), tmp_path / "again")
    again = load_adapter(copy.deepcopy(base), tmp_path / "again")
    assert get_rows(again).token_ids.tolist() == [5, 9]
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))


def test_loading_beside_attached_rows_wants_a_new_name_and_the_same_head(tmp_path):
    model = tuned(make("llama"))
    save_adapter(model, tmp_path / "a")
    with pytest.raises(InputError, match="a set named 'default' is attached already; choose another name"):
        load_adapter(model, tmp_path / "a")
    save_adapter(tuned(make("llama"), output="tied"), tmp_path / "tied")
    with pytest.raises(InputError, match="output='tied', but the attached rows have output='frozen'"):
        load_adapter(model, tmp_path / "tied", name="tied")
    assert row_sets(model) == ("default",)
    assert is_tied(load_adapter(detach_rows(model), tmp_path / "a"))


@pytest.mark.parametrize("freeze", [True, False])
def test_loading_freezes_the_model_or_leaves_it_as_it_is(freeze, tmp_path):
    save_adapter(tuned(make("llama")), tmp_path / "a")
    model = load_adapter(make("llama"), tmp_path / "a", freeze=freeze)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "model.embed_tokens.row_sets.default.rows" in trained
    assert (len(trained) == 1) == freeze
    assert not get_rows(model).weight.requires_grad


def test_an_adapter_of_a_resized_table_loads_where_its_message_says(tmp_path):
    wide, model = make("llama"), make("llama")
    wide.resize_token_embeddings(V + 4, mean_resizing=False)
    attach_rows(wide, [V + 1])
    save_adapter(wide, tmp_path / "a")
    with pytest.raises(
        InputError, match=f"table with {V + 4} rows, but this model's table has {V}; load the base model"
    ):
        load_adapter(model, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS_FILE)
    save_file(tensors, tmp_path / "a" / WEIGHTS_FILE)  # as PEFT does, which does not write the size
    with pytest.raises(InputError, match=f"row for token {V + 1}, and this model's table has {V} rows; load the base"):
        load_adapter(model, tmp_path / "a")
    model.resize_token_embeddings(V + 4, mean_resizing=False)
    assert torch.equal(get_rows(load_adapter(model, tmp_path / "a")).rows, get_rows(wide).rows)


@pytest.mark.parametrize(
    ("came_from", "given", "recorded"),
    [
        ("org/model", None, "org/model"),
        ("", None, None),
        ("/somewhere/model", None, None),  # absolute, there or not
        (".", None, None),
        ("/somewhere/model", "org/model", "org/model"),
        ("org/model", "/somewhere/model", "/somewhere/model"),  # whoever asks for a path gets it
    ],
)
def test_the_base_model_is_named_so_that_another_machine_finds_it(came_from, given, recorded, tmp_path):
    model = tuned(make("llama"))
    model.config._name_or_path = came_from
    save_adapter(model, tmp_path / "a", base_model_name_or_path=given)
    assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["base_model_name_or_path"] == recorded
    card = (tmp_path / "a" / "README.md").read_text()
    assert (f"AutoModelForCausalLM.from_pretrained({recorded!r})" in card) == (recorded is not None)
    assert ('save_adapter(..., base_model_name_or_path="its id on the Hub")' in card) == (recorded is None)
    assert came_from == recorded or not came_from or came_from == "." or came_from not in card


def test_the_card_loads_the_class_of_the_model(tmp_path):
    for name, auto in (("t5", "AutoModelForSeq2SeqLM"), ("llama", "AutoModelForCausalLM")):
        save_adapter(tuned(make(name)), tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert f"from transformers import {auto}\n" in card
        assert f"base_model = {auto}.from_pretrained('BASE')" in card


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": [[1.0]]}, "rows is the list"),
        ({"path": None}, "path is None: expected a path"),
        ({"path": ""}, "path is empty"),
        ({"vocab_size": "60"}, "vocab_size is '60': expected an integer of at least 1"),
        ({"input_modules": "model.embed_tokens"}, "input_modules is 'model.embed_tokens'"),
        ({"input_modules": []}, "input_modules is empty"),
        ({"head_modules": 3}, "head_modules is 3: expected a list of module names"),
        ({"pinned": (3, torch.ones(2))}, "pinned is the tuple .*: expected None, or a token id and its row"),
        ({"task_type": 3}, "task_type is 3: expected a str or None"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name_and_nothing_is_written(wrong, message, tmp_path):
    arguments = {"token_ids": TOKENS, "rows": torch.ones(3, 4), "path": tmp_path / "a", "vocab_size": V}
    with pytest.raises((InputError, TypeError), match=message):
        save_rows_adapter(**arguments | wrong)
    assert not list(tmp_path.iterdir())
