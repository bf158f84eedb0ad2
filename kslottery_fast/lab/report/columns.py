"""The columns of the tables of arms: one list of them serves the terminal, the page and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kslottery_fast.lab.experiment.console import duration

from .words import NOTHING, compact, number, percent

Arm = Mapping[str, Any]
Cell = tuple[str, str]  # a value, and under it an interval or nothing


@dataclass(frozen=True)
class Column:
    """One column: its ``heading``, and what it shows of an arm.

    ``better``: "higher", "lower", or "" where neither is. ``narrow``: the cell where there is little room.
    """

    heading: str
    cell: Callable[[Arm], Cell]
    better: str = ""
    narrow: Callable[[Arm], Cell] | None = None

    def short(self, arm: Arm) -> Cell:
        """The cell for a terminal or a paper."""
        return (self.narrow or self.cell)(arm)


def interval_cell(
    found: Mapping[str, float] | None, digits: int, ends: int | None = None, *, signed: bool = False
) -> Cell:
    """A value and its interval, with a fixed number of digits; the ends of the interval may have fewer.

    >>> interval_cell({"value": 1.234, "low": -0.5, "high": 2.0}, 2, signed=True)
    ('+1.23', '-0.50…+2.00')
    >>> interval_cell({"value": 1.7814, "low": 1.664, "high": 1.909}, 3, 2)
    ('1.781', '1.66–1.91')
    """
    if found is None:
        return NOTHING, ""
    sign, to = ("+", "…") if signed else (",", "–")
    low, high = (f"{found[name]:{sign}.{digits if ends is None else ends}f}" for name in ("low", "high"))
    return f"{found['value']:{sign}.{digits}f}", f"{low}{to}{high}"


def _score(metric: str, digits: int, ends: int) -> Callable[[Arm], Cell]:
    return lambda arm: interval_cell(arm["scores"][metric], digits, ends)


def _part(group: str, metric: str, digits: int, ends: int) -> Callable[[Arm], Cell]:
    return lambda arm: interval_cell((arm.get(group) or {}).get(metric), digits, ends, signed=True)


def _ends(arm: Arm) -> Cell:
    found = arm["scores"]["ended"]
    return percent(found["value"]), f"{100 * found['low']:.0f}–{100 * found['high']:.0f}"


def _rows(arm: Arm) -> Cell:
    rows = [row for row in arm.get("rows") or [] if row is not None]
    if not rows:
        return NOTHING, ""
    return (f"{rows[0]:,}", "") if len(set(rows)) == 1 else (f"{fmean(rows):,.0f}", f"{min(rows):,}…{max(rows):,}")


def _coverage(arm: Arm) -> Cell:
    shares = [share for share in arm.get("coverage") or [] if share is not None]
    if not shares:
        return NOTHING, ""
    ends = [f"{100 * share:.0f}" for share in (min(shares), max(shares))]
    return percent(fmean(shares)), "" if ends[0] == ends[1] else "…".join(ends)


def _trained(show: Callable[[float | None], str]) -> Callable[[Arm], Cell]:
    return lambda arm: (show(fmean(arm["trained_parameters"]) if arm.get("trained_parameters") else None), "")


def _time(name: str) -> Callable[[Arm], Cell]:
    return lambda arm: (duration(fmean(arm["seconds"][name])) if arm.get("seconds") else NOTHING, "")


def _memory(arm: Arm) -> Cell:
    peak = (arm.get("peak_memory_mb") or {}).get("from_scratch")
    return (NOTHING if peak is None else f"{peak / 1000:.1f} GB"), ""


NLL = Column("NLL per token", _score("nll", 3, 2), "lower")
BLEU = (
    Column("BLEU raw", _score("bleu_raw", 2, 1), "higher"),
    Column("BLEU first line", _score("bleu_first_line", 2, 1), "higher"),
)
CHRF = (
    Column("chrF++ raw", _score("chrf_raw", 2, 1), "higher"),
    Column("chrF++ first line", _score("chrf_first_line", 2, 1), "higher"),
)
ENDS = Column("Ends", _ends, "higher")
CHARS = Column("Chars", _score("mean_chars", 0, 0), narrow=lambda arm: (_score("mean_chars", 0, 0)(arm)[0], ""))
TRAINED = Column("Trained", _trained(lambda count: number(count, 0)), narrow=_trained(compact))
EMBED = Column("NLL minus Embed T.", _part("against_embed", "nll", 3, 3))
MODELS = (NLL, *BLEU, *CHRF, ENDS, CHARS, TRAINED)
GAINS = (
    Column("Raw gain", _part("decomposition", "gain", 2, 1)),
    Column("of it quality", _part("decomposition", "quality", 2, 1)),
    Column("of it stopping", _part("decomposition", "stopping", 2, 1)),
    Column("Gain, paraphrased", _part("paraphrased_against_untuned", "bleu_first_line", 2, 1)),
)
COSTS = (
    Column("Rows", _rows),
    Column("Covers", _coverage),
    TRAINED,
    Column("Time", _time("making")),
    Column("Time incl. Embed T.", _time("from_scratch")),
    Column("Memory", _memory),
)


def shown(columns: Iterable[Column], arms: Sequence[Arm]) -> list[Column]:
    """The columns that have something to show of some arm."""
    return [column for column in columns if any(column.cell(arm)[0] != NOTHING for arm in arms)]
