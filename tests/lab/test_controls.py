"""Which rows the controls train: checked against counts by hand."""

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.controls import frequency_ranks, frequency_rows, random_rows, token_counts

FEATURES = [{"input_ids": [5, 5, 1], "labels": [-100, -100, 1]}, {"input_ids": [5, 3], "labels": [-100, 3]}]


def test_counts_cover_prompt_and_target_and_unseen_tokens():
    assert token_counts(FEATURES, 7).tolist() == [0, 1, 0, 1, 0, 3, 0]


def test_the_last_token_of_an_example_counts_only_if_asked_for():
    assert token_counts(FEATURES, 7, last=False).tolist() == [0, 0, 0, 0, 0, 3, 0]


def test_frequency_rows_are_the_most_frequent_with_ties_by_lower_id():
    assert frequency_rows(token_counts(FEATURES, 7), 3).tolist() == [5, 1, 3]


def test_ranks_agree_with_the_order_of_frequency_rows():
    counts = token_counts(FEATURES, 7)
    assert frequency_ranks(counts)[frequency_rows(counts, 3)].tolist() == [1, 2, 3]


def test_random_rows_are_distinct_active_and_repeatable_and_depend_on_the_seed():
    counts = torch.zeros(1000, dtype=torch.int64)
    counts[::2] = 1
    first, again, other = (random_rows(counts, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 50
    assert (counts[first] > 0).all()


@pytest.mark.parametrize("k", [0, 4])
def test_more_rows_than_occur_are_refused(k):
    counts = token_counts(FEATURES, 7)
    for choose in (lambda: frequency_rows(counts, k), lambda: random_rows(counts, k, 0)):
        with pytest.raises(InputError, match=f"k is {k}; expected 1 to 3"):
            choose()
