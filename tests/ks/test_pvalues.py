"""The null distributions: against exact fractions, against scipy, and where float64 underflows."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks import deep_paths, lattice
from kslottery_fast.ks import null as ks_pvalues
from kslottery_fast.ks import significance as table_stats
from kslottery_fast.ks.null import null_pvalues, resolve_method
from kslottery_fast.ks.significance import asymptotic_threshold, critical_count, log_pvalues, pvalue_of_log, pvalues


@lru_cache(maxsize=4)
def binomials(total: int) -> list[int]:
    """C(total, k) for k = 0..total."""
    row = [1]
    for k in range(total):
        row.append(row[-1] * (total - k) // (k + 1))
    return row


def exact_equal_sizes(n: int, h: int, alternative: str) -> Fraction:
    """P(n D >= h) from the binomial coefficients, in integers."""
    row = binomials(2 * n)
    if alternative != "two-sided":
        return Fraction(row[n - h], row[n])
    return Fraction(2 * sum((-1) ** (k + 1) * row[n - k * h] for k in range(1, n // h + 1)), row[n])


def exact_by_counting(n: int, m: int, alternative: str) -> list[Fraction]:
    """P(lcm D >= h) for h = 0..lcm, by counting the lattice paths by the largest difference that they reach."""
    g = math.gcd(n, m)
    ways: list[list[dict[int, int]]] = [[{} for _ in range(m + 1)] for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(m + 1):
            difference = i * (m // g) - j * (n // g)
            reached = {"two-sided": abs(difference), "greater": difference, "less": -difference}[alternative]
            arriving = [{0: 1}] if i == j == 0 else []
            arriving += [ways[i - 1][j]] if i else []
            arriving += [ways[i][j - 1]] if j else []
            for source in arriving:
                for largest, count in source.items():
                    key = max(largest, reached)
                    ways[i][j][key] = ways[i][j].get(key, 0) + count
    total = math.comb(n + m, n)
    ends = ways[n][m]
    return [Fraction(sum(c for k, c in ends.items() if k >= h), total) for h in range(math.lcm(n, m) + 1)]


def log_of(fraction: Fraction) -> float:
    """Natural logarithm of a fraction that may be far below the smallest float."""
    shift = max(0, fraction.denominator.bit_length() - fraction.numerator.bit_length() + 64)
    return math.log((fraction.numerator << shift) // fraction.denominator) - shift * math.log(2)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 97, 576])
def test_equal_sizes_give_the_exact_fraction_for_every_count(n: int, alternative: str) -> None:
    counts = np.arange(n + 1)
    p, log_p = null_pvalues(counts, n, n, alternative, "exact")
    assert p[0] == 1
    assert log_p[0] == 0
    for h in range(1, n + 1, 1 if n < 100 else 5):
        expected = exact_equal_sizes(n, h, alternative)
        assert p[h] == pytest.approx(float(expected), rel=1e-11, abs=1e-300)
        assert log_p[h] == pytest.approx(log_of(expected), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("h", [1, 2, 3, 20, 100, 123, 150, 400, 1000, 2048, 2049, 4095, 4096])
def test_the_table_for_4096_gives_the_exact_fraction(h: int) -> None:
    expected = exact_equal_sizes(4096, h, "two-sided")
    assert pvalues(h, 4096).item() == pytest.approx(float(expected), rel=1e-11, abs=1e-300)
    assert log_pvalues(h, 4096).item() == pytest.approx(log_of(expected), rel=1e-14, abs=1e-13)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 1), (3, 5), (4, 6), (6, 4), (10, 3), (12, 18), (9, 9), (1, 7)])
def test_the_lattice_recursion_counts_every_path(n: int, m: int, alternative: str) -> None:
    expected = exact_by_counting(n, m, alternative)
    p, log_p = lattice.lattice_pvalues(np.arange(len(expected)), n, m, alternative != "two-sided")
    np.testing.assert_allclose(p, [float(e) for e in expected], rtol=1e-13)
    np.testing.assert_allclose(log_p, [log_of(e) for e in expected], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (7, 5), (12, 18), (100, 99), (64, 257), (300, 300), (1000, 3)])
def test_the_native_recursion_gives_the_bits_of_the_numpy_one(n: int, m: int, one_sided: bool) -> None:
    lcm = math.lcm(n, m)
    counts = np.unique(np.linspace(0, lcm, 37).astype(np.int64))
    wanted = lattice._outside_probability(counts, n, m, one_sided)
    np.testing.assert_array_equal(lattice._path_pvalues(counts, n, m, one_sided)[0], wanted)


def paths_outside(n: int, m: int, h: int, one_sided: bool) -> Fraction:
    """The share of the lattice paths from (0, 0) to (n, m) that reach a difference of h, counted in integers."""
    g = math.gcd(n, m)
    inside = [1] + [0] * n
    for j in range(m + 1):
        for i in range(n + 1):
            difference = i * (m // g) - j * (n // g)
            inside[i] += inside[i - 1] if i else 0
            if (difference if one_sided else abs(difference)) >= h:
                inside[i] = 0
    total = math.comb(n + m, n)
    return Fraction(total - inside[n], total)


DEEP = [
    (600, 500, 0.9),
    (500, 499, 1.0),
    (399, 400, 0.8),
    (2000, 101, 0.97),
    (500, 250, 0.9),
    (1, 7, 0.4),
    (12, 18, 0.6),
]


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), DEEP)
def test_logarithms_by_first_passages_are_those_of_counted_paths(n: int, m: int, d: float, one_sided: bool) -> None:
    h = int(d * math.lcm(n, m))
    wanted = log_of(paths_outside(n, m, h, one_sided))
    assert deep_paths.log_outside_probability(h, n, m, one_sided) == pytest.approx(wanted, rel=1e-14, abs=1e-12)


def test_first_passages_agree_with_the_recursion_where_few_levels_are_remembered() -> None:
    counts = np.array([int(d * 1500 * 1499) for d in (0.62, 0.75, 0.99)])  # p is from 1e-280 down to 1e-870
    native = lattice._path_pvalues(counts, 1500, 1499, False)[1]
    ours = [deep_paths.log_outside_probability(int(h), 1500, 1499, False) for h in counts]
    np.testing.assert_allclose(ours, native, rtol=1e-13)


def test_only_pvalues_below_the_range_of_float64_count_as_deep() -> None:
    for n, m in ((1500, 1499), (400, 5000)):
        for h in np.linspace(1, math.lcm(n, m), 60).astype(np.int64).tolist():
            if deep_paths.is_deep(h, n, m):
                assert deep_paths.log_outside_probability(h, n, m, False) < math.log(1e-280)
        assert deep_paths.is_deep(math.lcm(n, m), n, m)


def test_separated_samples_of_unequal_size_take_no_time_and_give_the_closed_form() -> None:
    ks_pvalues._memory.cache_clear()
    start = time.process_time()
    p, log_p = null_pvalues(np.array([9999 * 10000]), 9999, 10000, "two-sided", "exact")
    assert time.process_time() - start < 0.2
    assert p[0] == 0
    assert log_p[0] == pytest.approx(log_of(Fraction(2, math.comb(19999, 9999))), rel=1e-14)


def test_one_sided_exact_pvalues_exist_where_the_number_of_paths_overflows() -> None:
    p = null_pvalues(np.array([881 * 369]), 881, 369, "less", "exact")[0]
    assert p[0] == pytest.approx(1 / math.comb(881 + 369, 369), rel=1e-12, abs=1e-300)
    h = 70_000
    p = null_pvalues(np.array([h]), 881, 369, "less", "exact")[0]
    assert p[0] == pytest.approx(float(paths_outside(881, 369, h, True)), rel=1e-12)


def test_pvalues_below_the_smallest_normal_float_are_rounded_once() -> None:
    p = null_pvalues(np.array([530 * 529]), 530, 529, "two-sided", "exact")[0]
    assert 0 < p[0] < 1e-310
    assert p[0] == float(Fraction(2, math.comb(1059, 529)))


def test_a_certain_statistic_has_p_one() -> None:
    for n in (1, 2, 3, 7, 11, 4096):
        assert null_pvalues(np.array([1]), n, n, "two-sided", "exact")[0][0] == 1.0
    assert null_pvalues(np.array([1, 2]), 3, 2, "two-sided", "exact")[0].tolist() == [1.0, 1.0]


def test_thousands_of_deep_asymptotic_logarithms_take_less_than_two_seconds() -> None:
    ks_pvalues._memory.cache_clear()
    start = time.process_time()
    log_p = log_pvalues(torch.arange(6_000, 8_000), 16_384)
    assert time.process_time() - start < 2
    assert bool(torch.isfinite(log_p).all())


def test_the_closed_form_and_the_lattice_agree_where_both_apply() -> None:
    counts = np.array([1, 2, 7, 30, 64, 150, 299, 300])
    closed = null_pvalues(counts, 300, 300, "two-sided", "exact")[1]
    np.testing.assert_allclose(lattice.lattice_pvalues(counts, 300, 300, False)[1], closed, rtol=1e-11, atol=1e-13)


def test_one_table_per_sizes_serves_all_counts_and_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[list[int]] = []
    original = ks_pvalues._compute

    def watch(counts: np.ndarray, *rest: object) -> object:
        computed.append(counts.tolist())
        return original(counts, *rest)

    monkeypatch.setattr(ks_pvalues, "_compute", watch)
    ks_pvalues._memory.cache_clear()
    null_pvalues(np.array([[9, 3], [3, 9]]), 11, 13, "two-sided", "exact")
    null_pvalues(np.array([9, 30, 3]), 11, 13, "two-sided", "exact")
    assert computed == [[3, 9], [30]]


def test_pvalues_never_rise_with_the_count() -> None:
    for n in (1, 7, 100, 1000):
        for method in ("exact", "paper"):
            log_p = log_pvalues(torch.arange(n + 1), n, method)
            assert bool((log_p[1:] <= log_p[:-1]).all())
            assert bool((log_p <= 0).all())


def test_the_table_for_4096_costs_less_than_ten_milliseconds() -> None:
    durations = []
    for _ in range(5):
        ks_pvalues._equal_sizes_table.cache_clear()
        start = time.perf_counter()
        pvalues(123, 4096)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.010


@pytest.mark.parametrize(("n", "m"), [(400, 300), (1000, 999), (520, 511)])
def test_unequal_sizes_match_scipy_over_the_whole_range(n: int, m: int) -> None:
    lcm = math.lcm(n, m)
    counts = np.array([max(1, int(d * lcm)) for d in (0.003, 0.01, 0.05, 0.2, 0.5, 0.75)])
    g = math.gcd(n, m)
    for alternative in ("two-sided",) if n + m > 1000 else ("two-sided", "less"):
        expected = [_scipy_exact(n, m, g, int(h), alternative) for h in counts]
        p = null_pvalues(counts, n, m, alternative, "exact")[0]
        np.testing.assert_allclose(p, expected, rtol=1e-10, atol=0)


def _scipy_exact(n: int, m: int, g: int, h: int, alternative: str) -> float:
    """Scipy's exact p-value for a given statistic; it has no public function of D, so samples with this D are made."""
    from scipy.stats._stats_py import _attempt_exact_2kssamp

    success, _, p = _attempt_exact_2kssamp(n, m, g, h / math.lcm(n, m), alternative)
    assert success
    return p


def test_logarithms_of_unequal_sizes_are_right_where_scipy_underflows() -> None:
    # All of x before all of y: 2 of the C(n + m, n) orders have D = 1.
    for n, m in ((900, 700), (2000, 1001)):
        p, log_p = null_pvalues(np.array([math.lcm(n, m)]), n, m, "two-sided", "exact")
        assert p[0] == 0
        assert log_p[0] == pytest.approx(log_of(Fraction(2, math.comb(n + m, n))), rel=1e-12)


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
def test_asymptotic_logarithms_continue_smoothly_where_scipy_underflows(alternative: str) -> None:
    d = 30_000
    counts = np.arange(4400, 4800, 16)
    p, log_p = null_pvalues(counts, d, d, alternative, "asymp")
    assert p[0] > 0
    assert p[-1] == 0
    np.testing.assert_allclose(log_p[p > 1e-290], np.log(p[p > 1e-290]), rtol=1e-12)
    steps = np.diff(log_p)
    assert (steps < 0).all()
    assert (
        np.abs(np.diff(steps)) < 0.02
    ).all()  # -4 h / d per count: nearly constant, no jump at the change of formula


def test_asymptotic_logarithm_at_the_largest_statistic_is_minus_infinity() -> None:
    assert log_pvalues(20_000, 20_000, "asymp").item() == -math.inf


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001, 1e-12, 1e-200])
@pytest.mark.parametrize("d", [1, 5, 64, 576, 4096, 9999])
def test_paper_method_selects_exactly_what_exceeds_tau(d: int, alpha: float) -> None:
    tau = asymptotic_threshold(alpha, d, d)
    h = critical_count(d, alpha, "paper")
    assert h == d + 1 or h / d > tau
    assert (h - 1) / d <= tau


@pytest.mark.parametrize("method", ["exact", "asymp", "paper"])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.05 / 49_152])
@pytest.mark.parametrize("d", [2, 4, 30, 576])
def test_critical_count_is_the_boundary_of_p_below_alpha(d: int, alpha: float, method: str) -> None:
    h = critical_count(d, alpha, method)
    assert h == d + 1 or pvalues(h, d, method).item() < alpha
    assert pvalues(h - 1, d, method).item() >= alpha


def test_critical_count_remembers_by_value_and_still_checks_what_equals_a_number() -> None:
    assert critical_count(np.int64(64), np.float64(0.05)) == critical_count(64, 0.05)  # type: ignore[arg-type]
    before = table_stats._critical_count.cache_info()
    assert type(critical_count(64, 0.05)) is int
    assert table_stats._critical_count.cache_info().misses == before.misses
    assert critical_count(1, 0.5) == 2
    with pytest.raises(TypeError, match="d is True"):
        critical_count(True, 0.5)
    with pytest.raises(TypeError, match=r"d is 64\.0"):
        critical_count(64.0, 0.05)  # type: ignore[arg-type]


def test_critical_count_beyond_d_says_that_nothing_can_be_significant() -> None:
    assert pvalues(3, 3).item() == pytest.approx(0.1)
    assert critical_count(3, 0.05) == 4
    assert critical_count(3, 0.100001) == 3
    assert critical_count(3, 0.1) in (3, 4)  # on the boundary itself rounding decides, as it does in scipy


def test_the_thresholds_are_those_of_the_paper() -> None:
    assert asymptotic_threshold(0.05, 4096, 4096) == pytest.approx(0.030, abs=5e-4)
    assert asymptotic_threshold(0.05, 576, 576) == pytest.approx(0.080, abs=5e-4)
    assert asymptotic_threshold(0.1, 30, 20) == pytest.approx(math.sqrt(-math.log(0.05) / 2) * math.sqrt(50 / 600))


def test_auto_is_exact_up_to_ten_thousand_and_then_asymptotic() -> None:
    assert resolve_method(10_000, 3, "two-sided", "auto") == ("exact", None)
    assert resolve_method(10_001, 10_001, "two-sided", "auto") == ("asymp", None)
    assert pvalues(200, 10_001).item() == pvalues(200, 10_001, "asymp").item()
    assert pvalues(200, 10_001).item() != pvalues(200, 10_001, "exact").item()


def test_exact_works_for_equal_sizes_beyond_ten_thousand() -> None:
    expected = exact_equal_sizes(20_000, 400, "two-sided")
    assert pvalues(400, 20_000, "exact").item() == pytest.approx(float(expected), rel=1e-12)


def test_pvalues_keep_shape_device_and_dtype() -> None:
    counts = torch.tensor([[0, 1], [2, 4]], dtype=torch.int32)
    p = pvalues(counts, 4)
    assert p.shape == (2, 2)
    assert p.dtype == torch.float64
    assert all(a >= b for a, b in pairwise(p.reshape(-1).tolist()))
    assert pvalues([], 4).shape == (0,)
    assert pvalues(np.array([3, 4]), 4).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pvalues([5], 4), InputError, r"h holds 5: a KS count of rows of 4 numbers lies in 0\.\.4"),
        (lambda: pvalues([-1], 4), InputError, "h holds -1"),
        (lambda: pvalues([0.5], 4), TypeError, "h has dtype torch.float32: expected integer counts"),
        (lambda: pvalues([1], 0), InputError, "d is 0: expected at least 1"),
        (lambda: pvalues([1], 2.0), TypeError, "d is 2.0: expected an integer of at least 1"),
        (
            lambda: pvalues([1], 4, "exakt"),
            InputError,
            "method is 'exakt': expected 'auto', 'exact', 'asymp' or 'paper'",
        ),
        (lambda: pvalues([1], 1, "asymp"), InputError, "rows of 1 number have no asymptotic distribution"),
        (lambda: critical_count(4, 0.0), InputError, "alpha is 0.0: expected a significance level between 0 and 1"),
        (lambda: critical_count(4, 1), InputError, "alpha is 1: expected"),
        (lambda: critical_count(4, math.nan), InputError, "alpha is nan: expected"),
        (lambda: critical_count(4, "0.05"), TypeError, "alpha is '0.05': expected a number between 0 and 1"),
        (lambda: critical_count(4, True), TypeError, "alpha is True"),
        (lambda: asymptotic_threshold(0.05, 4, 0), InputError, "m is 0"),
        (
            lambda: asymptotic_threshold(0.05, "4", 4),
            TypeError,
            "n is '4': expected an integer of at least 1",
        ),
        (lambda: pvalues("many", 4), TypeError, "h is 'many': expected integer counts"),
        (lambda: log_pvalues([1], 4, None), InputError, "method is None: expected 'auto'"),
        (lambda: pvalue_of_log("small"), TypeError, "log_p is 'small': expected the logarithm of a p-value"),
    ],
)
def test_bad_arguments_are_named(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_a_pvalue_is_shown_from_its_logarithm_as_python_shows_the_number():
    for power in range(-30, 1):
        for value in (1.0, 0.96, 0.95001, 0.5, 0.12345):
            p = value * 10.0**power
            assert float(pvalue_of_log(math.log(p))) == pytest.approx(p, rel=0.06)


@pytest.mark.parametrize(("n", "m"), [(300, 200), (576, 576), (7, 11)])
@pytest.mark.parametrize(("alternative", "method"), [("two-sided", "asymp"), ("less", "asymp"), ("two-sided", "exact")])
def test_a_table_of_all_counts_holds_what_is_computed_for_each(n, m, alternative, method, monkeypatch):
    counts = np.random.default_rng(0).integers(0, np.lcm(n, m) + 1, size=(3, 40))
    ks_pvalues._dense_table.cache_clear()
    first = null_pvalues(counts[:1], n, m, alternative, method)
    known = null_pvalues(counts, n, m, alternative, method)
    monkeypatch.setattr(ks_pvalues, "_DENSE", 0)
    ks_pvalues._memory.cache_clear()
    expected = null_pvalues(counts, n, m, alternative, method)
    for own, part, its in zip(known, first, expected, strict=True):
        np.testing.assert_array_equal(own[:1], part)
        # Functions of numpy round differently by a bit or two at other places of an array.
        np.testing.assert_allclose(own, its, rtol=1e-14, atol=0)
