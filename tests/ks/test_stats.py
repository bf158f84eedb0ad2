"""ks_statistics and the corrections: against scipy, and every refusal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.corrections import adjust, benjamini_hochberg
from kslottery_fast.tickets.tables import ks_statistics


def table(rows: int = 40, d: int = 33, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))


def scipy_counts(before: Any, after: Any) -> list[int]:
    x, y = (np.asarray(torch.as_tensor(t).double()) for t in (before, after))
    d = x.shape[1]
    return np.rint(stats.ks_2samp(x, y, axis=1, method="asymp").statistic * d).astype(int).tolist()


@pytest.mark.parametrize("after_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("before_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_counts_are_scipys_for_every_pair_of_dtypes(before_dtype: torch.dtype, after_dtype: torch.dtype) -> None:
    before, after = table().to(before_dtype), (table() + 0.2 * table(seed=1)).to(after_dtype)
    h = ks_statistics(before, after)
    assert h.dtype == torch.int64
    assert h.tolist() == scipy_counts(before, after)


@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 1000])
def test_counts_are_scipys_for_every_width(d: int) -> None:
    before, after = table(20, d), table(20, d, seed=1)
    after[::3] = before[::3]
    assert ks_statistics(before, after).tolist() == scipy_counts(before, after)


def test_embeddings_parameters_arrays_and_views_are_the_same_table(tmp_path: Path) -> None:
    before, after = table(), table(seed=1)
    expected = ks_statistics(before, after).tolist()
    np.save(tmp_path / "before.npy", before.numpy())
    mapped = np.load(tmp_path / "before.npy", mmap_mode="r")
    wide = torch.stack([before, before], dim=2)[:, :, 0]
    for same in (nn.Parameter(before), before.numpy(), mapped, before.T.contiguous().T, wide):
        assert ks_statistics(same, after).tolist() == expected
    embedding = nn.Embedding.from_pretrained(before)
    assert ks_statistics(embedding, after).tolist() == expected


def test_a_table_without_rows_has_no_counts() -> None:
    assert ks_statistics(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_a_permuted_row_has_count_zero_and_infinities_are_values() -> None:
    before = torch.tensor([[1.0, 2.0, 3.0], [torch.inf, 0.0, 1.0]])
    after = torch.tensor([[3.0, 1.0, 2.0], [torch.inf, -torch.inf, 1.0]])
    assert ks_statistics(before, after).tolist() == [0, 1]


def masked(hidden: int) -> Any:
    return np.ma.masked_array(table().numpy(), mask=np.arange(40 * 33).reshape(40, 33) < hidden)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():  # torch deprecates them
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(table(), 0.1, 0, torch.qint8)


def test_a_masked_array_that_hides_nothing_is_a_table() -> None:
    assert ks_statistics(masked(0), table()).tolist() == [0] * 40


@pytest.mark.parametrize(
    ("before", "error", "message"),
    [
        (table(41), InputError, r"before is \[41, 33\] and after is \[40, 33\]: was the vocabulary resized.*\[:40\]"),
        (table(40, 32), InputError, r"before is \[40, 32\] and after is \[40, 33\]: rows of different lengths"),
        (table()[0], InputError, r"before has shape \[33\]: expected \[V, d\], one row per token"),
        (table().to(torch.int64), TypeError, "before has dtype torch.int64: expected float64, float32, float16 or"),
        (table().numpy().astype(int), TypeError, "before has dtype int64: expected float64, float32 or float16"),
        (
            table().to_sparse(),
            TypeError,
            r"before has layout torch.sparse_coo: expected a dense tensor, before.to_dense",
        ),
        (table().to("meta"), InputError, "before is on the meta device, .*: load the weights first"),
        (
            torch.nested.nested_tensor([table()[0]], layout=torch.jagged),
            TypeError,
            "before is a nested tensor: expected a dense one",
        ),
        (quantized(), TypeError, r"before has dtype torch.qint8: expected plain numbers, before.dequantize\(\)"),
        (masked(3), InputError, r"before is a masked array that hides 3 of its .* fill them \(before.filled\(number"),
        (
            table().tolist(),
            TypeError,
            r"before is a list: expected a \[V, d\] tensor or array, an nn.Embedding or a model",
        ),
        (
            nn.Linear(33, 40),
            TypeError,
            "before is a Linear: expected a model, .* pass their weights, such as model.lm_head.weight",
        ),
    ],
)
def test_what_is_no_table_is_named(before: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ks_statistics(before, table())


def test_rows_without_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[3, 0\]: rows without numbers cannot be compared"):
        ks_statistics(torch.zeros(3, 0), torch.zeros(3, 0))


def test_nan_is_refused_with_the_table_and_the_rows() -> None:
    bad = table()
    bad[[3, 17], 5] = torch.nan
    with pytest.raises(InputError, match=r"^after has NaN in 2 rows \(token ids 3, 17\): training diverged; lower the"):
        ks_statistics(table(), bad)
    with pytest.raises(InputError, match=r"^before has NaN in 2 rows \(token ids 3, 17\): this checkpoint is damaged"):
        ks_statistics(bad, table())
    worse = table()
    worse[4:30] = torch.nan
    with pytest.raises(
        InputError, match=r"before has NaN in 2 rows .* and after has NaN in 26 rows \(token ids 4, .*8, "
    ):
        ks_statistics(bad, worse)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p).numpy(), stats.false_discovery_control(p), rtol=1e-12, atol=0)


def test_corrections_of_a_small_family() -> None:
    p = torch.tensor([0.01, 0.5, 0.02, 0.9], dtype=torch.float64)
    assert adjust(p, None).tolist() == p.tolist()
    assert adjust(p, "bonferroni").tolist() == pytest.approx([0.04, 1.0, 0.08, 1.0])
    assert adjust(p, "bh").tolist() == pytest.approx([0.04, 2 / 3, 0.04, 0.9])
    assert adjust([], "bh").shape == adjust([], "bonferroni").shape == (0,)


@pytest.mark.parametrize(
    ("p", "correction", "message"),
    [
        ([0.5], "holm", "correction is 'holm': expected None, 'bonferroni' or 'bh'"),
        ([[0.5]], "bh", r"pvalue has shape \[1, 1\]: expected \[V\], one p-value per test"),
        ([1.5], "bh", r"pvalue holds a number outside \[0, 1\]"),
        ([float("nan")], None, r"pvalue holds a number outside \[0, 1\]"),
    ],
)
def test_bad_families_are_named(p: Any, correction: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adjust(p, correction)
