"""Overlaps are those of sets that were chosen in the same way."""

from types import SimpleNamespace

import torch

from kslottery_fast.lab.experiment.specs import ArmSpec
from kslottery_fast.lab.report.ticket_facts import common_tickets, of_languages, of_seeds, words_of


class OneCell:
    """Ten rows by falling D, of which alpha selects the first ``significant``."""

    shop = SimpleNamespace(settings=SimpleNamespace(alpha=0.05, top_k=4))

    def __init__(self, first: int, significant: int) -> None:
        self.order, self.significant = torch.arange(first, first + 10), significant

    def size(self, spec: ArmSpec) -> int:
        return self.significant if spec.size == 0.05 else spec.size

    def choose(self, selector: str, spec: ArmSpec) -> torch.Tensor:
        assert selector == "ks"
        return self.order[: self.size(spec)]


def test_tickets_are_compared_by_alpha_where_every_cell_has_some():
    spec, sets = common_tickets([OneCell(0, 2), OneCell(1, 3)])
    assert words_of(spec) == "tickets at alpha = 0.05"
    assert sets == [{0, 1}, {1, 2, 3}]


def test_a_seed_without_tickets_has_all_seeds_compared_by_number():
    """One seed has a single ticket, the other none and the same order of rows: they agree."""
    spec, sets = common_tickets([OneCell(0, 1), OneCell(0, 0)])
    assert words_of(spec) == "4 rows of largest D"
    assert sets == [{0, 1, 2, 3}] * 2


def test_the_overlap_of_seeds_is_the_mean_over_pairs_and_names_its_sets():
    found = of_seeds([OneCell(0, 2), OneCell(0, 4), OneCell(2, 2)])
    assert found == {"overlap_of_seeds": (2 / 4 + 0 + 2 / 4) / 3, "overlap_of": "tickets at alpha = 0.05"}
    assert of_seeds([OneCell(0, 2)])["overlap_of_seeds"] is None


def test_the_overlap_of_languages_pairs_the_same_seeds():
    found = of_languages({"es": [OneCell(0, 2), OneCell(5, 2)], "ca": [OneCell(0, 4), OneCell(0, 2)]})
    assert found["matrix"] == [[1, (2 / 4 + 0) / 2], [(2 / 4 + 0) / 2, 1]]
    assert found["of"] == "tickets at alpha = 0.05"
