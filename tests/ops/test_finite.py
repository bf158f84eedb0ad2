"""all_finite tells whether a matrix holds NaN or infinity: any dtype, layout, place and instruction set."""

from __future__ import annotations

import pytest
import torch

from kslottery_fast.ops import kernels, native

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def matrix(dtype, rows=300, cols=1_030):
    """More than one chunk of rows, and columns that fill no whole vector."""
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def either(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(native, "caller", lambda device=None: None)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", DTYPES)
class TestAllFinite:
    @pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("place", [(0, 0), (17, 1_023), (299, 1_029)])
    def test_one_bad_number_is_seen_wherever_it_stands(self, dtype, bad, place):
        values = matrix(dtype)
        values[place] = bad
        assert not kernels.all_finite(values)
        assert not kernels.all_finite(values.T)

    def test_the_largest_and_the_smallest_numbers_are_finite(self, dtype):
        info = torch.finfo(dtype)
        extremes = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 2, 0.0, -0.0], dtype=dtype)
        assert kernels.all_finite(extremes.expand(20, 6))
        assert kernels.all_finite(matrix(dtype)[:, ::3])

    def test_an_empty_matrix_is_finite(self, dtype):
        assert kernels.all_finite(torch.empty(0, 4, dtype=dtype))
        assert kernels.all_finite(torch.empty(4, 0, dtype=dtype))

    def test_only_the_matrix_is_looked_at(self, dtype):
        values = torch.full((12, 30), float("nan"), dtype=dtype)
        values[2:10:2, 3:20] = 1.0
        assert kernels.all_finite(values[2:10:2, 3:20])
