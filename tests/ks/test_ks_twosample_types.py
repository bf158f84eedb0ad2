"""ks_2samp on tensors, its result object, and bad input: clear errors that name the argument."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import ks_2samp, twosample

FIELDS = ("statistic", "pvalue", "statistic_location", "statistic_sign")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_give_float64_tensors_with_the_same_numbers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 30, generator=generator).to(dtype)
    y = torch.randn(5, 40, generator=generator).to(torch.float32)
    ours = ks_2samp(x, y, axis=-1)
    theirs = stats.ks_2samp(x.double().numpy(), y.double().numpy(), axis=-1)
    for name in FIELDS:
        value = getattr(ours, name)
        assert value.dtype == torch.float64
        assert value.shape == (5,)
        np.testing.assert_allclose(value.numpy(), getattr(theirs, name), rtol=1e-10)
    assert ks_2samp(x[0], y[0]).statistic.shape == ()
    assert isinstance(ks_2samp(x, y.numpy(), axis=-1).pvalue, torch.Tensor)
    assert isinstance(ks_2samp(y[0].tolist(), x[0]).log_pvalue, torch.Tensor)


def test_integer_tensors_beyond_2_53_are_not_tied() -> None:
    result = ks_2samp(torch.tensor([2**53]), torch.tensor([2**53 + 1]))
    assert result.statistic.item() == 1


def test_tensors_that_require_grad_are_taken() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    assert not ks_2samp(x, x + 1, axis=1).statistic.requires_grad


def test_the_result_unpacks_prints_copies_and_pickles_like_scipys() -> None:
    result = ks_2samp([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    statistic, pvalue = result
    assert (statistic, pvalue) == (result.statistic, result.pvalue) == (result[0], result[1])
    assert len(result) == 2
    for again in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert again == result
        assert vars(again) == vars(result)
    assert repr(result).startswith("KsResult(statistic=np.float64(0.333")
    assert "log_pvalue=" in repr(result)


def test_all_fields_are_in_the_dictionary_as_scipys_are() -> None:
    samples = [1.0, 2.0, 3.0, 9.0], [2.0, 3.0, 4.0]
    ours, theirs = ks_2samp(*samples), stats.ks_2samp(*samples)
    fields = ours._asdict()
    log_p = fields.pop("log_pvalue")
    assert fields == theirs._asdict()
    assert log_p == ours.log_pvalue
    changed = ours._replace(pvalue=0.5, statistic_sign=1)
    assert (changed.statistic, changed.pvalue, changed.statistic_sign) == (ours.statistic, 0.5, 1)
    assert changed.statistic_location == ours.statistic_location


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():  # torch deprecates them
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1], [2]), {"alternative": "other"}, InputError, "alternative is 'other': expected 'two-sided'"),
        (([1], [2]), {"alternative": ""}, InputError, "alternative is ''"),
        (([1], [2]), {"alternative": 3}, InputError, "alternative is 3"),
        (([1], [2]), {"method": "paper"}, InputError, "method is 'paper': expected 'auto', 'exact' or"),
        (
            ([1], [2]),
            {"nan_policy": "drop"},
            InputError,
            "nan_policy is 'drop': expected 'propagate', 'omit'",
        ),
        (([1], [2]), {"axis": 1}, InputError, "axis is 1, out of bounds for samples of 1 dimension$"),
        (
            ([1], [2]),
            {"axis": 0.5},
            InputError,
            "axis is 0.5: expected an integer, a sequence",
        ),
        (([[1]], [[2]]), {"axis": (0, -2)}, InputError, r"axis is \(0, -2\): expected distinct axes"),
        (
            (np.ones((2, 3)), np.ones((4, 3))),
            {"axis": -1},
            InputError,
            r"incompatible for broadcasting: data1 \(2, 3\) and data2 \(4, 3\)",
        ),
        (([[1], [2, 3]], [1]), {}, InputError, "data1 is not a rectangular array"),
        ((["a"], [1]), {}, TypeError, "data1 has dtype <U1: expected real numbers"),
        (([1], [1j]), {}, TypeError, "data2 has dtype complex128: expected real numbers"),
        (([1], torch.tensor([1j])), {}, TypeError, "data2 is torch.complex64: expected real numbers"),
        (
            (torch.zeros(3, device="meta"), [1]),
            {},
            InputError,
            "data1 is on the meta device, .*: load the weights",
        ),
        (([1], torch.ones(3).to_sparse()), {}, TypeError, r"data2 has layout torch.sparse_coo: .* data2.to_dense\(\)"),
        (
            (torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged), [1]),
            {},
            TypeError,
            "data1 is a nested tensor: expected a dense",
        ),
        (
            (quantized(), [1]),
            {},
            TypeError,
            r"data1 has dtype torch.quint8: expected plain numbers, data1.dequantize",
        ),
    ],
)
def test_bad_input_is_named(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ks_2samp(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "y", "exact"),
    [
        (np.full(10, 2**60 + 1), np.full(10, float(2**60)), 1.0),
        (np.full(10, 2**60), np.full(10, float(2**60)), 0.0),
        (np.array([2**63 + 1, 2**64 - 1], np.uint64), np.array([2**63 - 1, -(2**63)], np.int64), 1.0),
        (np.array([2**62 + 1, 5], np.uint64), np.array([2**62, 5], np.int64), 0.5),
        (np.array([2**64 - 1], np.uint64), np.array([2.0**64]), 1.0),
        (np.array([2**63 - 1]), np.array([2.0**63]), 1.0),
        (np.array([-(2**63)]), np.array([-(2.0**63)]), 0.0),
        (np.array([2**60 + 1, -(2**60) - 1, 3]), np.array([2.0**60, -(2.0**60), 3.5]), 1 / 3),
    ],
)
def test_long_integers_are_compared_exactly_with_values_of_another_type(x, y, exact):
    assert ks_2samp(x, y).statistic == exact
    assert ks_2samp(y, x).statistic == exact
    assert ks_2samp(torch.from_numpy(x), torch.from_numpy(y)).statistic == exact


def test_nan_beside_long_integers_is_still_nan():
    x, y = np.array([2**60 + 1, 7]), np.array([2.0**60, np.nan])
    assert np.isnan(ks_2samp(x, y).statistic)
    assert ks_2samp(x, y, nan_policy="omit").statistic == 0.5


def test_a_shared_reference_is_never_copied_per_row(monkeypatch):
    rng = np.random.default_rng(0)
    reference, rows = rng.normal(size=1000), rng.normal(size=(7, 20))
    reference[3] = np.nan
    seen = []
    real = twosample.ops.ks_rows
    monkeypatch.setattr(twosample.ops, "ks_rows", lambda x, y, sides: seen.append(x.stride(0)) or real(x, y, sides))
    result = ks_2samp(reference, rows, axis=-1, nan_policy="omit")
    want = [stats.ks_2samp(reference, row, nan_policy="omit") for row in rows]
    assert seen == [0, 0]
    np.testing.assert_array_equal(result.statistic_location, [one.statistic_location for one in want])
    np.testing.assert_allclose(result.pvalue, [one.pvalue for one in want], rtol=1e-10)
