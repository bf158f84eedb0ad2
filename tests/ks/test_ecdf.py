"""Where two distribution functions are furthest apart."""

import numpy as np
import pytest
import scipy.stats
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.ecdf import largest_gap


@pytest.mark.parametrize("sizes", [(1, 1), (7, 7), (40, 90), (300, 5)])
def test_the_gap_is_the_statistic_of_scipy_and_lies_on_both_distribution_functions(sizes):
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, -3.0):
        first, second = rng.normal(size=sizes[0]), rng.normal(shift, size=sizes[1])
        found = largest_gap(first, second)
        expected = scipy.stats.ks_2samp(first, second).statistic
        assert abs(found.first - found.second) == pytest.approx(expected, abs=1e-12)
        assert found.first == (first <= found.location).mean()
        assert found.second == (second <= found.location).mean()


def test_of_several_such_places_the_leftmost_is_told():
    assert largest_gap([1, 4], [2, 3]) == (1.0, 0.5, 0.0)  # as far apart again at 3, the other way round


def test_tensors_are_samples_too_and_what_is_none_is_named():
    assert largest_gap(torch.tensor([1, 4]), torch.tensor([2.0, 3.0], requires_grad=True)) == (1.0, 0.5, 0.0)
    for wrong in (None, "text", ["a"], torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"second is .*: expected a list of numbers"):
            largest_gap([1.0], wrong)
    for wrong in ([], 3.0, [[1.0]]):
        with pytest.raises(InputError, match=r"first has shape \[.*\]: expected one dimension"):
            largest_gap(wrong, [1.0])
