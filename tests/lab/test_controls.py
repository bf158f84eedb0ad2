"""How often the corpus shows each token: checked against counts by hand."""

from kslottery_fast.lab.experiment.controls import frequency_ranks, token_counts

FEATURES = [{"input_ids": [5, 5, 1], "labels": [-100, -100, 1]}, {"input_ids": [5, 3], "labels": [-100, 3]}]


def test_counts_cover_prompt_and_target_and_unseen_tokens():
    assert token_counts(FEATURES, 7).tolist() == [0, 1, 0, 1, 0, 3, 0]


def test_the_last_token_of_an_example_counts_only_if_asked_for():
    assert token_counts(FEATURES, 7, last=False).tolist() == [0, 0, 0, 0, 0, 3, 0]


def test_ranks_begin_with_the_most_frequent_and_ties_go_to_the_lower_id():
    assert frequency_ranks(token_counts(FEATURES, 7)).tolist() == [4, 2, 5, 3, 6, 1, 7]
