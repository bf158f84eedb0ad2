"""The tables of the study of selectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from kslottery_fast.evaluation.intervals import Interval, bootstrap_interval
from kslottery_fast.evaluation.likelihood import TargetNll

from .reporting import line

WIDTH = 23  # of the longest name of a selector

if TYPE_CHECKING:
    from .selector_study import Study


def value_of(found: Mapping[str, Any]) -> float:
    """The NLL of a measurement."""
    return float(found["nll"]["interval"]["value"])


def gain(study: Study, found: Mapping[str, Any]) -> float:
    """The share of Embed Tuning's fall in NLL, on the pairs of a measurement."""
    untuned, embed = (value_of(study.measured(name, split=found["split"])) for name in ("untuned", "embed"))
    return (untuned - value_of(found)) / (untuned - embed)


def difference(found: Mapping[str, Any], other: Mapping[str, Any]) -> Interval:
    """The NLL of one measurement less that of another, with a bootstrap over the sentences of both in pairs."""
    one, two = (TargetNll.from_dict(each["nll"]) for each in (found, other))
    table = np.stack([one.sentence_nll, two.sentence_nll, one.sentence_tokens], axis=1)
    return bootstrap_interval(table, lambda sums: (sums[0] - sums[1]) / sums[2])


def print_scores(study: Study, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Print a line for each selector, with its scores at each size. Random draws are printed in their mean."""
    columns = [("selector", -WIDTH)]
    columns += [(head, width) for size in sizes for head, width in ((f"NLL@{size}", 7), ("gain", 5), ("cover", 5))]
    columns += [(f"worth@{size}", 9) for size in sizes] + [("CPU s", 7)]
    _print_line([name for name, _ in columns], columns)
    for name in ("untuned", "embed"):
        _print_line([name, f"{value_of(study.measured(name)):.3f}"], columns)
    for name, draws in _rows(names):
        cells, shares = [name], []
        for size in sizes:
            found = [study.measured(draw, size) for draw in draws]
            cells.append(f"{fmean(map(value_of, found)):.3f}")
            cells.append(f"{fmean(gain(study, one) for one in found):.0%}")
            cells.append(f"{fmean(one['cover'] for one in found):.0%}")
            worth = [study.worth(one["token_ids"]) for one in found]
            shares.append("" if None in worth else f"{fmean(share for share in worth if share is not None):.0%}")
        _print_line([*cells, *shares, f"{study.seconds(draws[0]):.2f}"], columns)


def _print_line(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> None:
    print(line([*cells, *[""] * (len(columns) - len(cells))], columns), flush=True)


def _rows(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The lines of the table, and the selectors in each.

    >>> _rows(["ks", "random-0", "random-1"])
    [('ks', ['ks']), ('random, 2 draws', ['random-0', 'random-1'])]
    """
    drawn = [name for name in names if name.startswith("random-")]
    rows = [(name, [name]) for name in names if name not in drawn]
    return [*rows, (f"random, {len(drawn)} draws", drawn)] if drawn else rows


def print_differences(study: Study, names: Sequence[str], sizes: Sequence[int], to: str = "frequency") -> None:
    """Print the NLL of each selector less that of one of them at the same size."""
    columns = [("selector", -WIDTH), *[(f"@{size}", 25) for size in sizes]]
    print(f"\nNLL less that of {to} at the same size, with a 95% interval over sentences in pairs")
    _print_line([name for name, _ in columns], columns)
    for name in names:
        if name != to and not name.startswith("random-"):
            pairs = [(study.measured(name, size), study.measured(to, size)) for size in sizes]
            _print_line([name, *(f"{difference(*pair):+.3f}" for pair in pairs)], columns)


def print_greedy(study: Study, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Print what greedy selection reaches on the pairs that it has seen and on those that it has not."""
    columns = [("selector", -WIDTH), ("rows", 4)]
    columns += [(head, width) for split in ("validation", "test") for head, width in ((split, 10), ("gain", 5))]
    print("\nAn upper bound: greedy selection has seen the validation pairs, and not the test pairs")
    _print_line([name for name, _ in columns], columns)
    for size in sizes:
        for name in names:
            cells = [name, str(size)]
            for split in ("validation", "test"):
                found = study.measured(name, size, split)
                cells += [f"{value_of(found):.3f}", f"{gain(study, found):.0%}"]
            _print_line(cells, columns)
    print(f"Greedy selection took {study.seconds('greedy'):.0f} s of processor time.")
