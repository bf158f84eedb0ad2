"""The columns of the tables of arms: one list of them serves the terminal, the page and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kslottery_fast.lab.experiment.console import duration

from .words import NOTHING, compact, count_text, percent

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
        return (self.narrow or self.cell)(arm)


def interval_cell(
    found: Mapping[str, float] | None, digits: int, ends: int | None = None, *, signed: bool = False
) -> Cell:
    """A value and its interval, with a fixed number of digits; the ends of the interval may have fewer."""
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


def _over_seeds(name: str, show: Callable[[float], str], bound: Callable[[float], str]) -> Callable[[Arm], Cell]:
    """The mean over seeds, and the range where they differ."""

    def cell(arm: Arm) -> Cell:
        found = [one for one in arm.get(name) or [] if one is not None]
        ends = list(dict.fromkeys([bound(min(found)), bound(max(found))])) if found else []
        return (show(fmean(found)) if found else NOTHING), "…".join(ends) if len(ends) > 1 else ""

    return cell


def _mean(show: Callable[[float], str], *path: str) -> Callable[[Arm], Cell]:
    def cell(arm: Any) -> Cell:
        for name in path:
            arm = arm.get(name) or {}
        return (show(fmean(arm)) if arm else NOTHING), ""

    return cell


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
TRAINED = Column("Trained", _mean(count_text, "trained_parameters"), narrow=_mean(compact, "trained_parameters"))
EMBED = Column("NLL minus Embed T.", _part("against_embed", "nll", 3, 3))
MODELS = (NLL, *BLEU, *CHRF, ENDS, CHARS, TRAINED)
GAINS = (
    Column("Raw gain", _part("decomposition", "gain", 2, 1)),
    Column("of it quality", _part("decomposition", "quality", 2, 1)),
    Column("of it stopping", _part("decomposition", "stopping", 2, 1)),
    Column("Gain, paraphrased", _part("paraphrased_against_untuned", "bleu_first_line", 2, 1)),
)
COSTS = (
    Column("Rows", _over_seeds("rows", count_text, count_text)),
    Column("Covers", _over_seeds("coverage", percent, lambda share: f"{100 * share:.0f}")),
    TRAINED,
    Column("Time", _mean(duration, "seconds", "making")),
    Column("Time incl. Embed T.", _mean(duration, "seconds", "from_scratch")),
    Column("Memory", _memory),
)

NOTE = (
    "Values are means over training seeds; intervals: 95 %, bootstrap over sentences and Student's t over seeds, of "
    "differences paired in both. Raw gain: raw "
    "BLEU minus that of the untuned model; quality: the part on first lines, where running on is not counted; "
    "stopping: the rest. Gain, paraphrased: BLEU first line minus that of the untuned model with a template that was "
    "not trained. Covers: share of the tokens of the training examples, prompts included, whose rows the arm changes. "
    "Rows that are copied train 0 numbers of their own. Time: making the arm, mean over seeds, without "
    "scoring; incl. Embed T.: with the Embed Tuning that its rows come from or are chosen by (a size given as alpha is "
    "not counted). Memory: peak while making it, that Embed Tuning included."
)


def shown(columns: Iterable[Column], arms: Sequence[Arm]) -> list[Column]:
    """The columns that have something to show of some arm."""
    return [column for column in columns if any(column.cell(arm)[0] != NOTHING for arm in arms)]


def parts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Arm]]]:
    """Code, name and arms of each language, and of their mean."""
    for code, language in summary["languages"].items():
        yield code, language["name"], language["arms"]
    if "mean" in summary:
        yield "mean", "Mean over languages", summary["mean"]
