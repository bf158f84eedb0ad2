"""The models of a certificate share predictions: each reads only the sentences on which it differs from another."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.predictions import next_token_predictions
from kslottery_fast.evaluation.reading import read_tokens
from kslottery_fast.evaluation.worn_rows import wearing
from kslottery_fast.lab.experiment.certificate import predict_models
from kslottery_fast.lab.experiment.trained import TrainedRows


class Shop:
    """What a Workshop offers to a certificate. It counts the sentences that its model reads."""

    def __init__(self, model) -> None:
        self.model, self.pad_token_id, self.read = model, 2, 0
        self.settings = SimpleNamespace(eval_batch_size=3)
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _module, _arguments, named) -> None:
        self.read += len(named["input_ids"])

    def wearing(self, rows):
        ids = torch.empty(0, dtype=torch.int64) if rows is None else rows.token_ids
        return wearing(self.model, ids, torch.empty(0, 32) if rows is None else rows.rows)


def test_models_read_what_differs_and_predict_as_they_would_alone(tiny_llama, tiny_tokenizer):
    features = [encode(tiny_tokenizer, Example("x", target)) for target in ("1+2", "4*5", "1+1", "12", "2+2")]
    tokens, seen = read_tokens([collate(features, 2)]), []
    ids = tokens.input_ids.unique()
    model = tiny_llama()
    tuned = TrainedRows(ids, -2 * model.get_input_embeddings().weight.detach()[ids], [])
    rare = tiny_tokenizer("4*")["input_ids"]  # read by one of the five sentences
    none = torch.empty(0, dtype=torch.int64)
    models = [none, ids, ids[~torch.isin(ids, torch.tensor(rare))], ids]
    shop, whole = Shop(model), Shop(tiny_llama())
    shared = predict_models(shop, features, tuned, models, tokens, lambda *at: seen.append(at))
    alone = predict_models(whole, features, tuned, models, None, lambda *_: None)
    assert (shop.read, whole.read) == (5 + 0 + 1 + 5, 4 * 5)
    assert seen == [(3, 11), (5, 11), (6, 11), (9, 11), (11, 11)]
    for one, other, changed in zip(shared, alone, models, strict=True):
        with shop.wearing(tuned.only(changed) if len(changed) else None) as worn:
            plain = next_token_predictions(worn, [collate(features, 2)])
        for name in ("predicted", "target", "sentence"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert torch.equal(getattr(one, name), getattr(plain, name))
    assert not torch.equal(shared[0].predicted, shared[1].predicted)
    assert not torch.equal(shared[2].predicted, shared[1].predicted)
