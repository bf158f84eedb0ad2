"""Overlaps compare sets that were chosen in the same way."""

from types import SimpleNamespace

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.specs import ArmSpec
from kslottery_fast.lab.report.ticket_facts import common_tickets, of_languages, of_seeds


class OneCell:
    """Ten rows by falling D, of which the first ``moved`` did move and alpha selects the first ``significant``."""

    shop = SimpleNamespace(settings=SimpleNamespace(alpha=0.05, top_k=4))

    def __init__(self, first: int, significant: int, moved: int = 10) -> None:
        self.order, self.significant = torch.arange(first, first + moved), significant
        self.evidence = SimpleNamespace(counts=(torch.arange(10) < moved).long())

    def size(self, spec: ArmSpec) -> int:
        return self.significant if spec.size == 0.05 else spec.size

    def choose(self, selector: str, spec: ArmSpec) -> torch.Tensor:
        assert selector == "ks"
        if self.size(spec) > len(self.order):
            raise InputError("asks for more rows than moved")
        return self.order[: self.size(spec)]


def test_tickets_are_compared_by_alpha_where_every_cell_has_some():
    words, sets = common_tickets({"es": [OneCell(0, 2), OneCell(1, 3)]})
    assert words == "tickets at alpha = 0.05"
    assert sets == {"es": [{0, 1}, {1, 2, 3}]}


def test_a_seed_without_tickets_has_all_seeds_compared_by_number():
    """One seed has a single ticket and the other has none, but their rows have the same order, so they agree."""
    words, sets = common_tickets({"es": [OneCell(0, 1), OneCell(0, 0)]})
    assert words == "4 rows of largest D"
    assert sets == {"es": [{0, 1, 2, 3}] * 2}


def test_the_overlap_of_seeds_is_the_mean_over_pairs_and_names_its_sets():
    found = of_seeds([OneCell(0, 2), OneCell(0, 4), OneCell(2, 2)])
    assert found == {"overlap_of_seeds": (2 / 4 + 0 + 2 / 4) / 3, "overlap_of": "tickets at alpha = 0.05"}


@pytest.mark.parametrize("moved", [2, 10])
def test_a_single_seed_has_nothing_to_be_compared_with(moved):
    assert of_seeds([OneCell(0, 0, moved)]) == {"overlap_of_seeds": None, "overlap_of": None}


@pytest.mark.parametrize(("moved", "words"), [((10, 3), "3 rows of largest D"), ((1, 2), "1 row of largest D")])
def test_where_fewer_rows_moved_than_top_k_as_many_are_compared_as_moved_in_every_cell(moved, words):
    cells = [OneCell(first, 0, rows) for first, rows in enumerate(moved)]
    found, sets = common_tickets({"es": cells})
    assert found == words
    assert sets == {"es": [set(range(first, first + min(moved))) for first in range(2)]}


def test_the_overlap_of_languages_pairs_the_same_seeds():
    found = of_languages({"es": [OneCell(0, 2), OneCell(5, 2)], "ca": [OneCell(0, 4), OneCell(0, 2)]})
    assert found["matrix"] == [[1, (2 / 4 + 0) / 2], [(2 / 4 + 0) / 2, 1]]
    assert found["of"] == "tickets at alpha = 0.05"
