"""Models that differ in rows share predictions, and the shared ones are those that each would make."""

from __future__ import annotations

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.predictions import Predictions, next_token_predictions
from kslottery_fast.evaluation.reading import read_tokens
from kslottery_fast.evaluation.shared_predictions import merge_predictions, sentence_predictions, share_plan
from kslottery_fast.evaluation.worn_rows import wearing

TARGETS = (" 1+2=3", "4*5-6", " 1+2", "1234", "4*5+1+2+3", "9")


@pytest.fixture
def features(tiny_tokenizer):
    return [encode(tiny_tokenizer, Example("x", target)) for target in TARGETS]


def test_shared_predictions_are_those_that_every_model_makes_alone(features, tiny_llama):
    model, tokens = tiny_llama(), read_tokens([collate(features, 2)])
    ids = tokens.input_ids.unique()
    rows = -2 * model.get_input_embeddings().weight.detach()[ids]
    rare = [i for i in ids.tolist() if len(tokens.sentence[tokens.reads([i])].unique()) in (1, 2)]
    models = [ids, ids[ids != rare[0]], ids[~torch.isin(ids, torch.tensor(rare[:2]))], torch.tensor(rare[:1])]
    plan, found = share_plan(models, len(features), tokens), []
    for changed, share in zip(models, plan, strict=True):
        with wearing(model, changed, rows[torch.isin(ids, changed)]):
            news = sentence_predictions(model, features, share.sentences, pad_token_id=2, batch_size=4)
            alone = next_token_predictions(model, [collate([feature], 2) for feature in features])
        merged = news if share.source is None else merge_predictions(found[share.source], news)
        found.append(merged)
        for name in ("predicted", "target", "sentence"):
            assert torch.equal(getattr(merged, name), getattr(alone, name))
        assert torch.allclose(merged.margin, alone.margin, atol=1e-5)
    assert [share.source for share in plan[:3]] == [None, 0, 1]
    assert all(0 < len(share.sentences) < len(features) for share in plan[1:3])
    assert len({tuple(one.predicted.tolist()) for one in found}) == 4  # the models do differ


def test_a_head_that_follows_the_rows_shares_nothing():
    rows = [torch.tensor([1, 2]), torch.tensor([1, 2])]
    assert [share.sentences for share in share_plan(rows, 3, None)] == [[0, 1, 2]] * 2
    assert share_plan(rows, 3, None)[1].source is None


def test_predictions_of_other_positions_do_not_merge(features, tiny_llama):
    whole = sentence_predictions(tiny_llama(), features, range(4), pad_token_id=2)
    foreign = sentence_predictions(tiny_llama(), features, [5], pad_token_id=2)
    with pytest.raises(InputError, match="news is not of the same positions as source"):
        merge_predictions(whole, foreign)
    other = Predictions(whole.predicted, whole.margin, whole.target + 1, whole.sentence)
    with pytest.raises(InputError, match="news is not of the same positions as source"):
        merge_predictions(whole, other)
    with pytest.raises(InputError, match="sentences is empty"):
        sentence_predictions(tiny_llama(), features, [], pad_token_id=2)
    with pytest.raises(InputError, match="models is empty"):
        share_plan([], 3, None)
