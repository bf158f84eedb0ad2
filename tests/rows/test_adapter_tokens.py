"""Adapters of added tokens: a fresh base and tokenizer grow as in the training, or the message says what differs."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import make
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.adapter_file import WEIGHTS_FILE, load_adapter, save_adapter, save_rows_adapter
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows, untie_output
from kslottery_fast.rows.tables import embedding_table

NEW = ["<tea>", "<cup>"]


def grown(model: nn.Module, tokenizer, tokens=NEW, **options: str) -> tuple[nn.Module, object]:
    """A model whose table begins as tall as its tokenizer, with rows of new tokens that moved."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(tokens[:1], special_tokens=True)
    tokenizer.add_tokens(tokens[1:])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    attach_rows(model, [*tokenizer.convert_tokens_to_ids(tokens), 5], **options)
    with torch.no_grad():
        get_rows(model).rows.normal_()
    return model, tokenizer


@pytest.fixture
def fresh(tiny_llama, tiny_tokenizer):
    def make(tied: bool = True) -> nn.Module:
        return tiny_llama(tied, vocab_size=len(tiny_tokenizer))

    return make


def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_a_fresh_base_and_tokenizer_grow_as_in_the_training(fresh, tiny_tokenizer, tmp_path):
    model, trained = grown(fresh(), tiny_tokenizer, output="tied")
    save_adapter(model, tmp_path / "a", tokenizer=trained, metrics={"NLL": 1.25})
    base, tokenizer = fresh(), copy.deepcopy(tiny_tokenizer)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        load_adapter(base, tmp_path / "a", tokenizer=tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    ids = trained("big <tea> in a <cup>", add_special_tokens=False)["input_ids"]
    assert tokenizer("big <tea> in a <cup>", add_special_tokens=False)["input_ids"] == ids
    assert not set(trained.convert_tokens_to_ids(NEW)).isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == trained.decode(ids, skip_special_tokens=True)
    assert torch.equal(logits(base, ids), logits(model, ids))
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"| {trained.convert_tokens_to_ids('<tea>')} | `<tea>` |" in card
    assert "| NLL | 1.25 |" in card
    assert f"base_model.resize_token_embeddings({len(trained)})" in card
    assert "tokenizer=tokenizer)" in card


def test_rows_of_an_untied_head_that_the_adapter_lacks_are_the_mean_and_are_told(fresh, tiny_tokenizer, tmp_path):
    model, trained = grown(fresh(tied=False), tiny_tokenizer)
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    base = fresh(tied=False)
    mean = base.lm_head.weight.detach().mean(dim=0)
    with pytest.warns(RuntimeWarning, match="does not hold 2 of the 2 new rows of the output head; they are the mean"):
        load_adapter(base, tmp_path / "a", tokenizer=copy.deepcopy(tiny_tokenizer))
    torch.testing.assert_close(base.lm_head.weight[-2:], mean.expand(2, -1))


def test_a_table_that_is_tall_enough_stays_and_only_the_tokenizer_grows(tiny_llama, tiny_tokenizer, tmp_path):
    model, trained = tiny_llama(True, vocab_size=330), copy.deepcopy(tiny_tokenizer)
    trained.add_tokens(NEW)
    attach_rows(model, trained.convert_tokens_to_ids(NEW))
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    base = load_adapter(tiny_llama(True, vocab_size=330), tmp_path / "a", tokenizer=tokenizer)
    assert tokenizer.convert_tokens_to_ids(NEW) == get_rows(base).token_ids.tolist()
    assert len(embedding_table(base)) == 330


def test_the_message_says_what_differs_and_nothing_changes(fresh, tiny_tokenizer, tmp_path):
    model, trained = grown(fresh(), tiny_tokenizer)
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    V = len(tiny_tokenizer)

    def refused(message: str, tokenizer=None, base=None) -> None:
        base = base or fresh()
        before, size = embedding_table(base), len(tokenizer) if tokenizer is not None else 0
        with pytest.raises(InputError, match=message):
            load_adapter(base, tmp_path / "a", tokenizer=tokenizer)
        assert embedding_table(base) is before
        assert not has_rows(base)
        assert tokenizer is None or len(tokenizer) == size

    refused(rf"table with {V + 2} rows, .* has {V}; .*pass tokenizer=, .*\('<tea>', '<cup>'\)")
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<cup>"])
    refused(rf"tokenizer has the token '<cup>' already, as {V}, but in .* it is {V + 1}", other)
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<other>"])
    refused(rf"would give the token '<tea>' the id {V + 1}, but in .* it is {V}; .* which had {V} tokens", other)
    tall = fresh()
    tall.resize_token_embeddings(V + 9, mean_resizing=False)
    refused(rf"table with {V + 2} rows, but this model's table has {V + 9}", copy.deepcopy(tiny_tokenizer), tall)
    with pytest.raises(TypeError, match="tokenizer is 3: expected a tokenizer"):
        load_adapter(fresh(), tmp_path / "a", tokenizer=3)


def test_a_row_of_another_string_is_refused(fresh, tiny_tokenizer, tmp_path):
    save_adapter(attach_rows(fresh(), [5, 9]), tmp_path / "a", tokenizer=tiny_tokenizer)
    with safe_open(tmp_path / "a" / WEIGHTS_FILE, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["kslottery_tokens"])
    assert record["rows"] == [[token, tiny_tokenizer.convert_ids_to_tokens(token)] for token in (5, 9)]
    record["rows"][1][1] = "zz"
    tensors = load_file(tmp_path / "a" / WEIGHTS_FILE)
    save_file(tensors, tmp_path / "a" / WEIGHTS_FILE, metadata | {"kslottery_tokens": json.dumps(record)})
    with pytest.raises(InputError, match=r"as token 9, but .* has a row for 'zz' there"):
        load_adapter(fresh(), tmp_path / "a", tokenizer=tiny_tokenizer)
    assert has_rows(load_adapter(fresh(), tmp_path / "a"))
    save_file(tensors, tmp_path / "a" / WEIGHTS_FILE, metadata | {"kslottery_tokens": "{}"})
    with pytest.raises(InputError, match="damaged record of its tokens"):
        load_adapter(fresh(), tmp_path / "a")


def test_what_was_grown_shrinks_again_when_the_rows_cannot_be_attached(fresh, tiny_tokenizer, tmp_path, monkeypatch):
    model, trained = grown(fresh(), tiny_tokenizer)
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    base, tokenizer = fresh(), copy.deepcopy(tiny_tokenizer)
    want = embedding_table(base).detach().clone()
    base.get_input_embeddings().max_norm = 1.0  # which rows do not support
    with pytest.raises(InputError, match="max_norm"):
        load_adapter(base, tmp_path / "a", tokenizer=tokenizer)
    assert torch.equal(embedding_table(base), want)
    assert len(tokenizer) == len(tiny_tokenizer)


def test_attached_rows_keep_a_table_from_growing(fresh, tiny_tokenizer, tmp_path):
    model, trained = grown(fresh(), tiny_tokenizer)
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    base = attach_rows(fresh(), [5])
    with pytest.raises(InputError, match="with attached rows cannot grow; detach_rows or merge_rows first"):
        load_adapter(base, tmp_path / "a", name="b", tokenizer=copy.deepcopy(tiny_tokenizer))


def test_a_tokenizer_without_the_token_of_a_row_is_refused_and_nothing_is_written(tiny_llama, tiny_tokenizer, tmp_path):
    model = attach_rows(tiny_llama(True, vocab_size=330), [329])
    with pytest.raises(InputError, match="tokenizer has no token 329, for which the model has a row"):
        save_adapter(model, tmp_path / "a", tokenizer=tiny_tokenizer)
    assert not list(tmp_path.iterdir())


def test_rows_without_a_model_keep_their_strings_too(tiny_tokenizer, tiny_llama, tmp_path):
    spelling = tiny_tokenizer.convert_ids_to_tokens(300)
    save_rows_adapter(
        [tiny_tokenizer.decode([300])], torch.ones(1, 32), tmp_path / "a", vocab_size=320, tokenizer=tiny_tokenizer
    )
    with safe_open(tmp_path / "a" / WEIGHTS_FILE, "pt") as file:
        assert json.loads(file.metadata()["kslottery_tokens"])["rows"] == [[300, spelling]]
    assert get_rows(load_adapter(tiny_llama(), tmp_path / "a", tokenizer=tiny_tokenizer)).token_ids.tolist() == [300]


@pytest.mark.parametrize("metrics", [3, ["NLL"], {"NLL": "low"}, {3: 1.0}, {"NLL": True}])
def test_metrics_are_names_and_numbers(metrics, tiny_llama, tmp_path):
    with pytest.raises(TypeError, match=r"metrics (is|has)"):
        save_adapter(attach_rows(tiny_llama(), [3]), tmp_path / "a", metrics=metrics)


def test_a_model_whose_copies_of_the_table_do_not_all_grow_is_refused_and_as_it_was(tiny_tokenizer, tmp_path):
    base = make("m2m100")
    base.resize_token_embeddings(len(tiny_tokenizer), mean_resizing=False)
    untie_output(base)
    for part in (base.model.encoder, base.model.decoder):  # copies, which transformers does not resize
        part.embed_tokens = copy.deepcopy(base.model.shared)
    trained = copy.deepcopy(tiny_tokenizer)
    trained.add_tokens(NEW)
    modules = ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"]
    options = {"vocab_size": len(trained), "input_modules": modules, "tokenizer": trained}
    save_rows_adapter(NEW, torch.ones(2, 16), tmp_path / "a", **options)
    before = {name: (value, value.clone()) for name, value in base.state_dict(keep_vars=True).items()}
    with pytest.raises(InputError, match="grew some of its tables, but left one with"):
        load_adapter(base, tmp_path / "a", tokenizer=copy.deepcopy(tiny_tokenizer))
    for name, value in base.state_dict(keep_vars=True).items():
        assert value is before[name][0], name
        assert torch.equal(value, before[name][1]), name
    assert base.config.vocab_size == len(tiny_tokenizer)


def test_a_model_that_fails_while_it_grows_is_as_it_was(fresh, tiny_tokenizer, tmp_path, monkeypatch):
    model, trained = grown(fresh(), tiny_tokenizer)
    save_adapter(model, tmp_path / "a", tokenizer=trained)
    base = fresh()
    table, resize = embedding_table(base), type(base).resize_token_embeddings

    def half(self: nn.Module, *args: object, **kwargs: object) -> None:
        resize(self, *args, **kwargs)
        raise MemoryError("no memory")

    monkeypatch.setattr(type(base), "resize_token_embeddings", half)
    with pytest.raises(MemoryError):
        load_adapter(base, tmp_path / "a", tokenizer=copy.deepcopy(tiny_tokenizer))
    assert embedding_table(base) is table
    assert base.config.vocab_size == len(tiny_tokenizer)
