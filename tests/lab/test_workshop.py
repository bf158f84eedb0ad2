"""The active rows are those that training can move, and no others."""

import pytest
import torch

from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.workshop import Workshop
from kslottery_fast.rows.attach import attach_rows, get_rows

EOS = 2


class Loaded:
    def __init__(self, model):
        self.model = model


@pytest.fixture
def shop(tiny_llama, tiny_tokenizer, tmp_path):
    """``shop(role, pad_token_id)``: a workshop with a tied model and two training examples."""

    def make(role: str, pad_token_id: int) -> Workshop:
        made = Workshop(RunSettings(output_role=role), RunFolder(tmp_path), RunConsole())
        made.loaded = Loaded(tiny_llama(tied=True, pad_token_id=pad_token_id))
        made.train_features = [encode(tiny_tokenizer, Example("The house", f" La casa {word}")) for word in "ab"]
        return made

    return make


def rows_with_gradient(shop: Workshop) -> set[int]:
    attach_rows(shop.model, torch.arange(320), output=shop.settings.output_role)
    shop.model(**collate(shop.train_features, shop.model.config.pad_token_id)).loss.backward()
    return set(get_rows(shop.model).rows.grad.abs().sum(1).nonzero().flatten().tolist())


@pytest.mark.parametrize("pad_token_id", [0, EOS])
def test_with_a_frozen_head_the_counted_tokens_are_those_whose_rows_get_a_gradient(shop, pad_token_id):
    found = shop("auto", pad_token_id)
    assert set(found.counts.nonzero().flatten().tolist()) == rows_with_gradient(found)
    assert found.counts[EOS] == 0


def test_with_a_head_that_follows_the_end_token_counts_since_its_row_trains(shop):
    found = shop("tied", 0)
    assert found.counts[EOS] == len(found.train_features)
    assert EOS in rows_with_gradient(found)
