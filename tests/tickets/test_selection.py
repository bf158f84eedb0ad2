"""ks_select against scipy row by row, and every way in which its arguments can be wrong."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import decision, tables
from kslottery_fast.ks.significance import critical_count, pvalues
from kslottery_fast.tickets import ticket_fields
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.tables import ks_statistics
from kslottery_fast.tickets.tickets import Tickets

V, D = 200, 64


@pytest.fixture
def before() -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def after(before: torch.Tensor) -> torch.Tensor:
    """Rows 0..59 shifted, from hardly to a lot; the others as they were."""
    tuned = before.clone()
    tuned[:60] += torch.linspace(0.0, 1.5, 60)[:, None]
    return tuned


def scipy_pvalues(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ks_2samp(before.double().numpy(), after.double().numpy(), axis=1).pvalue


@pytest.mark.parametrize("correction", [None, "bonferroni", "bh"])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
def test_selected_are_the_rows_that_scipy_finds_significant(
    before: torch.Tensor, after: torch.Tensor, alpha: float, correction: str | None
) -> None:
    p = scipy_pvalues(before, after)
    adjusted = {None: p, "bonferroni": p * V, "bh": stats.false_discovery_control(p)}[correction]
    tickets = ks_select(before, after, alpha, correction=correction)
    assert 0 < len(tickets) < 60
    assert sorted(tickets.token_ids.tolist()) == np.flatnonzero(adjusted < alpha).tolist()
    np.testing.assert_allclose(tickets.pvalue.numpy(), p[tickets.token_ids.numpy()], rtol=1e-10)
    assert (tickets.alpha, tickets.correction, tickets.selected_by) == (alpha, correction, "alpha")


def test_tickets_are_sorted_by_falling_statistic_then_id(before: torch.Tensor, after: torch.Tensor) -> None:
    tickets = ks_select(before, after)
    order = list(zip((-tickets.counts).tolist(), tickets.token_ids.tolist(), strict=True))
    assert order == sorted(order)
    assert len(set(tickets.counts.tolist())) < len(tickets), "no equal counts: the test shows nothing"
    assert tickets.statistic.tolist() == [h / D for h in tickets.counts.tolist()]
    assert tickets.counts.tolist() == ks_statistics(before, after)[tickets.token_ids].tolist()


@pytest.mark.parametrize("method", ["exact", "asymp", "paper", "auto"])
def test_the_threshold_is_the_smallest_significant_statistic(
    before: torch.Tensor, after: torch.Tensor, method: str
) -> None:
    tickets = ks_select(before, after, method=method)
    assert tickets.threshold_count == critical_count(D, 0.05, method)
    assert tickets.threshold == tickets.threshold_count / D
    assert (
        sorted(tickets.token_ids.tolist())
        == torch.nonzero(ks_statistics(before, after) >= tickets.threshold_count).reshape(-1).tolist()
    )
    assert tickets.method == ("exact" if method == "auto" else method)


@pytest.mark.parametrize("small", [0, V])  # tables of so many rows are not read in blocks
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5, 3.0])
def test_one_pass_finds_the_tickets_and_where_there_are_none_the_largest_d(
    before: torch.Tensor, shift: float, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SMALL", small)
    read: list[int] = []
    original = tables.statistics_and_identity

    def watch(x: torch.Tensor, y: torch.Tensor, threshold: int) -> Any:
        read.append(len(x))
        assert threshold <= critical_count(D, 0.05)
        return original(x, y, threshold)

    after = before + torch.linspace(0.0, shift, V)[:, None]  # the largest are no part of the sample
    expected = ks_statistics(before, after)
    monkeypatch.setattr(tables, "statistics_and_identity", watch)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        tickets = ks_select(before, after)
    significant = expected >= tickets.threshold_count
    assert sorted(tickets.token_ids.tolist()) == torch.nonzero(significant)[:, 0].tolist()
    assert tickets.counts.tolist() == expected[tickets.token_ids].tolist()
    assert V <= sum(read) <= V * 1.05
    if shift and not significant.any():
        assert f"the largest D is {expected.max().item() / D:.4f}" in str(notes[0].message)
    assert bool(notes) == (not significant.any())


@pytest.mark.parametrize(
    "options",
    [{}, {"correction": "bonferroni"}, {"correction": "bh"}, {"top_k": 7}, {"top_k": 150}, {"alpha": 1e-30}],
    ids=str,
)
def test_what_is_made_without_checks_passes_all_checks_of_tickets(
    before: torch.Tensor, after: torch.Tensor, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tickets = ks_select(before, after, **options)
    ticket_fields.check_fields(vars(tickets))
    names = ("vocab_size", "dimension", "threshold_count", "alpha", "method", "correction", "selected_by")
    shuffled = torch.randperm(len(tickets), generator=torch.Generator().manual_seed(1))
    fields = {name: getattr(tickets, name) for name in names}
    assert tickets == Tickets.from_counts(tickets.token_ids[shuffled], tickets.counts[shuffled], **fields)
    assert tickets.token_texts is None
    assert pickle.loads(pickle.dumps(tickets)) == tickets


def test_the_host_waits_for_the_tables_device_twice(
    before: torch.Tensor, after: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the number of rows, and for the rows: what would wait once more on a GPU is counted here on the CPU."""
    monkeypatch.setattr(decision, "_is_on_the_host", lambda tensor: False)
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default):
                waits.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        assert len(ks_select(before, after)) > 10
    # On the CPU the copy is none, and the number looked at is a part of it.
    assert waits == ["aten.nonzero.default", "aten._local_scalar_dense.default"]


@pytest.mark.parametrize("d", [5, 2**15 - 2, 2**15 - 1, 2**16 - 2, 2**16 - 1, 2**31 - 2])
@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
def test_rows_are_ordered_by_keys_of_any_length(d: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h = torch.tensor([0, d, 3, -1, d, d - 1, 3, 0, -1])
    if device != "cpu":
        monkeypatch.setattr(decision, "_is_on_the_host", lambda tensor: False)
    order = decision._by_falling_count(h, d).tolist()
    assert order == sorted(range(len(h)), key=lambda row: (-h[row].item(), row))


def test_top_k_takes_the_largest_statistics_whatever_alpha_says(before: torch.Tensor, after: torch.Tensor) -> None:
    h = ks_statistics(before, after).tolist()
    expected = sorted(range(V), key=lambda row: (-h[row], row))[:7]
    for alpha in (0.05, 1e-9, None):
        tickets = ks_select(before, after, alpha, top_k=7)
        assert tickets.token_ids.tolist() == expected
        assert (tickets.selected_by, tickets.alpha) == ("top_k", alpha)
        assert tickets.threshold_count == h[expected[-1]]


def test_top_k_breaks_ties_by_the_lower_id_and_never_takes_an_unmoved_row() -> None:
    before = torch.zeros(6, 4)
    after = before.clone()
    after[[4, 1, 2]] = 1.0
    assert ks_select(before, after, top_k=2).token_ids.tolist() == [1, 2]
    with pytest.warns(RuntimeWarning, match=r"only 3 rows moved \(D > 0\), but top_k is 5"):
        tickets = ks_select(before, after, top_k=5)
    assert tickets.token_ids.tolist() == [1, 2, 4]


def test_top_k_may_be_an_integer_of_numpy_and_larger_than_any_table(before: torch.Tensor, after: torch.Tensor) -> None:
    assert ks_select(before, after, top_k=np.int64(7)) == ks_select(before, after, top_k=7)  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match=r"only 59 rows moved \(D > 0\), but top_k is 1000000000000000000000$"):
        assert len(ks_select(before, after, top_k=10**21)) == 59


@pytest.mark.parametrize("correction", [None, "bonferroni", "bh"])
def test_an_alpha_whose_share_of_one_row_underflows_selects_where_p_underflows(correction: str | None) -> None:
    before = torch.zeros(9, 2000)
    after = before.clone()
    after[4] = 1.0  # log p is -2768
    after[5, :700] = 1.0  # log p is -287
    assert pvalues(700, 2000).item() > 0.0
    tickets = ks_select(before, after, 5e-324, correction=correction)
    assert (tickets.token_ids.tolist(), tickets.pvalue.item()) == ([4], 0.0)


def test_one_row_and_rows_of_one_number_are_said_in_the_singular() -> None:
    before, after = torch.zeros(4, 1), torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    with pytest.warns(RuntimeWarning, match=r"only 1 row moved \(D > 0\), but top_k is 2"):
        ks_select(before, after, top_k=2)
    with pytest.warns(RuntimeWarning, match=r"no row of 1 number can be significant"):
        ks_select(before, after)
    with pytest.raises(InputError, match="a KS count of rows of 1 number lies in"):
        pvalues(2, 1)
    with pytest.raises(InputError, match=r"for rows of 1 number$"):
        Tickets.from_counts([0], [1], vocab_size=2, dimension=1, threshold_count=3, alpha=0.05)


@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
def test_nothing_significant_gives_empty_tickets_and_says_why(
    before: torch.Tensor, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cpu":
        monkeypatch.setattr(decision, "_is_on_the_host", lambda tensor: False)
    barely = before + 0.01
    with pytest.warns(RuntimeWarning, match=r"no row is significant at alpha 0.05: the largest D is 0\.0\d+, the thr"):
        tickets = ks_select(before, barely)
    assert len(tickets) == 0
    assert not tickets
    assert tickets.mask().sum() == 0
    for correction in ("bonferroni", "bh"):
        with pytest.warns(RuntimeWarning, match="alpha 0.05 after the correction for many tests: the largest D is"):
            assert len(ks_select(before, barely, correction=correction)) == 0
    with pytest.warns(RuntimeWarning, match="no row differs between emb_before and emb_after"):
        ks_select(before, before.clone())
    with pytest.warns(RuntimeWarning, match="no row differs"):
        assert ks_select(before, before.clone(), top_k=3).threshold_count == 1


def test_an_alpha_that_no_row_can_reach_is_said_to_be_so() -> None:
    before, after = torch.zeros(5, 3), torch.ones(5, 3)
    assert pvalues(3, 3).item() > 0.05
    with pytest.warns(RuntimeWarning, match="no row of 3 numbers can be significant at alpha 0.05: use a larger alpha"):
        tickets = ks_select(before, after)
    assert len(tickets) == 0
    assert tickets.threshold_count == 4
    assert tickets.threshold > 1


def test_a_table_that_was_tuned_in_place_is_noticed(before: torch.Tensor) -> None:
    embedding = nn.Embedding.from_pretrained(before)
    with pytest.warns(RuntimeWarning, match="emb_before and emb_after are the same memory: clone the table before"):
        ks_select(embedding.weight, embedding)


def test_a_selection_that_finds_tickets_is_silent(before: torch.Tensor, after: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ks_select(before, after)
        ks_select(before, after, correction="bh")
        ks_select(before, after, top_k=3)


def test_an_empty_table_gives_empty_tickets() -> None:
    for options in ({}, {"top_k": 2}, {"correction": "bh"}, {"correction": "bonferroni"}):
        assert len(ks_select(torch.zeros(0, 8), torch.zeros(0, 8), **options)) == 0  # type: ignore[arg-type]


def test_embeddings_arrays_and_mixed_dtypes_are_taken(before: torch.Tensor, after: torch.Tensor) -> None:
    expected = ks_select(before, after)
    assert ks_select(nn.Embedding.from_pretrained(before), nn.Parameter(after)) == expected
    assert ks_select(before.numpy(), after.double()) == expected
    half = ks_select(before.bfloat16(), after.bfloat16())
    assert half.counts.tolist() == ks_statistics(before.bfloat16(), after.bfloat16())[half.token_ids].tolist()


def test_nan_and_inf_in_either_table_are_refused_with_rows(before: torch.Tensor, after: torch.Tensor) -> None:
    bad = after.clone()
    bad[[5, 17, 18, 90, 91, 150], 3] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, 1e30 * 1e30, torch.nan, torch.nan]
    )
    expected = r"^emb_after has NaN or Inf in 6 rows \(token ids 5, 17, 18, 90, 91, \.\.\.\): training diverged; lower"
    for options in ({}, {"top_k": 3}, {"correction": "bh"}):
        with pytest.raises(InputError, match=expected):
            ks_select(before, bad, **options)  # type: ignore[arg-type]
    one = before.clone()
    one[7, 0] = torch.inf
    with pytest.raises(InputError, match=r"^emb_before has NaN or Inf in 1 row \(token ids 7\): this checkpoint is d"):
        ks_select(one, after)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0}, InputError, "alpha is 0: expected a significance level between 0 and 1"),
        ({"alpha": 1.5}, InputError, "alpha is 1.5"),
        ({"alpha": None}, TypeError, "alpha is None: expected a number"),
        ({"alpha": 7, "top_k": 3}, InputError, "alpha is 7"),
        ({"method": "fast"}, InputError, "method is 'fast': expected 'auto', 'exact', 'asymp' or 'paper'"),
        ({"correction": "BH"}, InputError, "correction is 'BH': expected None, 'bonferroni' or 'bh'"),
        ({"top_k": 0}, InputError, "top_k is 0: expected at least 1"),
        ({"top_k": 2.0}, TypeError, "top_k is 2.0: expected an integer of at least 1"),
        ({"top_k": True}, TypeError, "top_k is True"),
        ({"top_k": np.float64(2)}, TypeError, r"top_k is np.float64\(2.0\): expected an integer of at least 1"),
        ({"top_k": np.int64(0)}, InputError, "top_k is 0: expected at least 1"),
        ({"top_k": 2, "correction": "bonferroni"}, InputError, "correction is 'bonferroni' and top_k is 2: .* leave"),
        ({"top_k": 2, "correction": "bh", "alpha": None}, InputError, "correction is 'bh' and top_k is 2: .* leave"),
    ],
)
def test_bad_options_are_named(
    before: torch.Tensor, after: torch.Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ks_select(before, after, **options)


def test_a_resized_vocabulary_is_recognized(before: torch.Tensor, after: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"emb_before is \[200, 64\] and emb_after is \[190, 64\]: was the vocabulary"):
        ks_select(before, after[:190])
