"""What positions have read, and that two models agree where no row that they read differs."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.predictions import next_token_predictions
from kslottery_fast.evaluation.reading import ReadTokens, read_tokens


@pytest.fixture
def batches(tiny_tokenizer):
    """Two batches, five sentences, of which some begin alike."""
    pairs = [("x", " 1+2=3"), ("y", "4*5-6"), ("x", " 1+2"), ("xy", "1234"), ("y", "4*5+1+2+3")]
    features = [encode(tiny_tokenizer, Example(prompt, target)) for prompt, target in pairs]
    return [collate(features[:3], 2), collate(features[3:], 2)]


def test_the_last_token_of_a_position_precedes_its_target(batches, tiny_llama):
    tokens, predictions = read_tokens(batches), next_token_predictions(tiny_llama(), batches)
    assert torch.equal(tokens.input_ids[tokens.last + 1], predictions.target)
    assert torch.equal(tokens.sentence, predictions.sentence)
    tokens.check_same(predictions)
    assert int(tokens.length.sum()) == sum(int(batch["attention_mask"].sum()) for batch in batches)


def test_reading_is_what_a_loop_over_prefixes_finds(batches):
    tokens, wanted = read_tokens(batches), []
    asked = {int(batches[0]["input_ids"][0, 3]), int(batches[1]["input_ids"][0, 1])}
    for batch in batches:
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            wanted += [bool(asked & set(ids[:place])) for place in range(1, len(ids)) if labels[place] != -100]
    assert tokens.reads(sorted(asked)).tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)
    assert not tokens.reads([]).any()


def test_padding_on_the_left_reads_the_same(batches):
    flipped = []
    for batch in batches:
        padding = (1 - batch["attention_mask"]).sum(dim=1).tolist()
        rolled = {name: list(map(torch.roll, tensor, padding)) for name, tensor in batch.items()}
        flipped.append({name: torch.stack(rows) for name, rows in rolled.items()})
    assert not torch.equal(flipped[0]["input_ids"], batches[0]["input_ids"])
    for name in ("input_ids", "length", "last"):
        assert torch.equal(getattr(read_tokens(flipped), name), getattr(read_tokens(batches), name))


def test_two_models_agree_wherever_no_row_that_was_read_differs(batches, tiny_llama):
    """And they do differ elsewhere, so that the test could fail."""
    model, tokens = tiny_llama(), read_tokens(batches)
    changed = tokens.input_ids[tokens.last[[2, 9]]].unique()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.embed_tokens.weight[changed] *= -3
    mine, theirs = (next_token_predictions(one, batches) for one in (model, other))
    unread = ~tokens.reads(changed)
    assert 0 < int(unread.sum()) < len(unread)
    assert torch.equal(mine.predicted[unread], theirs.predicted[unread])
    assert torch.equal(mine.margin[unread], theirs.margin[unread])
    assert (mine.predicted != theirs.predicted)[~unread].any()


def test_read_tokens_survive_their_file_and_a_damaged_one_is_refused(batches, tmp_path):
    tokens, path = read_tokens(batches), tmp_path / "t.safetensors"
    tokens.save(path)
    loaded = ReadTokens.load(path)
    good = {name: getattr(tokens, name) for name in ("input_ids", "length", "last")}
    assert all(torch.equal(getattr(loaded, name), tensor) for name, tensor in good.items())
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds no tokens that were read"):
        ReadTokens.load(path)
    for name, tensor in [("length", tokens.length + 1), ("last", tokens.last - 50), ("last", tokens.last.double())]:
        save_file({**good, name: tensor}, path, metadata={"kind": "kslottery-read-tokens"})
        with pytest.raises(InputError, match="the lengths do not fit the tokens; make it again"):
            ReadTokens.load(path)


def test_tokens_of_other_positions_and_bad_arguments_are_refused(batches, tiny_llama):
    predictions = next_token_predictions(tiny_llama(), batches)
    with pytest.raises(InputError, match="not of the same positions as the predictions"):
        read_tokens(batches[:1]).check_same(predictions)
    with pytest.raises(InputError, match="not of the same positions as the predictions"):
        read_tokens(batches[::-1]).check_same(predictions)
    silent = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    with pytest.raises(InputError, match="batches supervise no position"):
        read_tokens([silent])
    with pytest.raises(InputError, match="expected the same shape, as a decoder-only model needs it"):
        read_tokens([{"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 2).long()}])
    with pytest.raises(TypeError, match=r"token_ids is .*: expected integers"):
        read_tokens(batches).reads(torch.tensor([0.5]))
