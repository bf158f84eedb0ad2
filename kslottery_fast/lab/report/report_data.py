"""What a report is made of, and the words and number formats that page, figures and terminal table share."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kslottery_fast.base.errors import InputError

MODEL_LABELS = {
    "untuned": "Untuned",
    "embed_tuning": "Embed Tuning",
    "partial_transfer": "Partial Transfer",
    "partial_tuning": "Partial Tuning",
    "frequency_tuning": "Frequency Tuning",
    "random_tuning": "Random rows",
}

NOTHING = "–"  # what is shown where a number does not exist; never "nan" or "None"


@dataclass(frozen=True)
class TicketRow:
    """One selected row. ``count``: occurrences in the training corpus; ``rank``: 1 is the most frequent."""

    token_id: int
    token: str
    statistic: float
    pvalue: float
    count: int
    rank: int


@dataclass(frozen=True)
class Shift:
    """The ``d`` coordinates of one row before and after Embed Tuning."""

    token_id: int
    token: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows.

    Parameters
    ----------
    title : str
        Heading of the page.
    summary : mapping
        The content of ``summary.json``.
    environment : mapping
        The content of ``environment.json``; may be nested.
    active_token_ids, statistic, frequency : ndarray [A]
        Token id, KS statistic D and corpus count of every row of the active vocabulary.
    threshold : float or None
        The smallest significant D; None where no alpha was asked for.
    tickets : sequence of TicketRow
        In the order in which the list of tickets shows them.
    shifts : sequence of Shift
        The top tickets, for the ECDF figure; at most six are drawn.
    samples : sequence of mapping
        Keys ``source``, ``reference``, and one per model.

    Raises
    ------
    InputError
        Arrays of different lengths, a statistic outside [0, 1], NaN or Inf, a summary that lacks a part.
    """

    title: str
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    active_token_ids: np.ndarray
    statistic: np.ndarray
    frequency: np.ndarray
    threshold: float | None
    tickets: Sequence[TicketRow]
    shifts: Sequence[Shift]
    samples: Sequence[Mapping[str, str]]

    def __post_init__(self) -> None:
        if not self.summary.get("models"):
            raise InputError("summary: no 'models'; the report needs the evaluation of at least one model")
        missing = {"count", "alpha", "selected_by", "dimension"} - set(self.summary.get("tickets") or {})
        if missing:
            raise InputError(f"summary['tickets']: no {', '.join(sorted(missing))}; was it written by this version?")
        if self.summary["tickets"]["alpha"] is None and (self.threshold is not None or not self.by_top_k):
            raise InputError("summary['tickets']['alpha'] is None, but a threshold or a selection by alpha is given")
        lengths = {len(self.active_token_ids), len(self.statistic), len(self.frequency)}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(
                "active_token_ids, statistic and frequency: expected the same length, at least 1; "
                f"got {len(self.active_token_ids)}, {len(self.statistic)} and {len(self.frequency)}"
            )
        bad = ~((self.statistic >= 0) & (self.statistic <= 1))
        if bad.any():
            token_id, value = self.active_token_ids[bad][0], self.statistic[bad][0]
            raise InputError(f"statistic: D lies in [0, 1], but the row of token {token_id} has {value}")
        for shift in self.shifts:
            if len(shift.before) != len(shift.after):
                raise InputError(
                    f"shifts: the row of token {shift.token_id} has {len(shift.before)} values before and "
                    f"{len(shift.after)} after"
                )
            if not (np.isfinite(shift.before).all() and np.isfinite(shift.after).all()):
                raise InputError(f"shifts: the row of token {shift.token_id} holds NaN or Inf; the training diverged")

    @property
    def ticket_mask(self) -> np.ndarray:
        """Which active rows are tickets, bool [A]."""
        return np.isin(self.active_token_ids, [ticket.token_id for ticket in self.tickets])

    @property
    def dimension(self) -> int:
        """Length d of a row."""
        return int(self.summary["tickets"]["dimension"])

    @property
    def certificate(self) -> Mapping[str, Any]:
        """The certificate of the summary, empty where none was made."""
        found = self.summary.get("certificate") or {}
        return found if found.get("levels") else {}

    @property
    def by_top_k(self) -> bool:
        """Whether the tickets are the largest D and not those that the test selected."""
        return bool(self.summary["tickets"]["selected_by"] == "top_k")

    @property
    def selection(self) -> str:
        """How the tickets were chosen, in the words that every title and caption repeats."""
        significant = 0 if self.threshold is None else int((self.statistic >= self.threshold).sum())
        return selection_text(self.summary, significant)


def selection_text(summary: Mapping[str, Any], significant: int = 0) -> str:
    """How the tickets of a summary were chosen; ``significant`` rows would have been selected by alpha.

    >>> selection_text({"tickets": {"count": 18, "alpha": 0.05, "selected_by": "top_k"}})
    'top 18 by D; alpha = 0.05 selected none'
    """
    count, alpha = int(summary["tickets"]["count"]), summary["tickets"]["alpha"]
    if summary["tickets"]["selected_by"] != "top_k":
        return f"{plural(count, 'ticket')} at alpha = {alpha:g}"
    if alpha is None:
        return f"top {count} by D; no alpha was asked for"
    return f"top {count} by D; alpha = {alpha:g} selected {f'{significant:,}' if significant else 'none'}"


@dataclass(frozen=True)
class Metric:
    """One column of the table of models."""

    key: str
    heading: str
    better: str  # "higher", "lower", or "" where neither is better
    digits: int = 2

    def text(self, value: float | None) -> str:
        """``value`` as the table shows it."""
        if self.key == "ended":
            return percent(value)
        return count_text(value) if self.key == "trained_parameters" else number(value, self.digits)

    def interval(self, bounds: Sequence[float] | None) -> str:
        """``[low, high]`` as the table shows it, or nothing."""
        if not bounds:
            return ""
        scale, digits = (100, 0) if self.key == "ended" else (1, max(0, self.digits - 1))
        return "–".join(number(scale * bound, digits) for bound in bounds)


METRICS = (
    Metric("nll", "NLL per token", "lower", 3),
    Metric("bleu_raw", "BLEU raw", "higher"),
    Metric("bleu_first_line", "BLEU first line", "higher"),
    Metric("chrf_raw", "chrF++ raw", "higher"),
    Metric("chrf_first_line", "chrF++ first line", "higher"),
    Metric("ended", "Ends", "higher"),
    Metric("mean_chars", "Chars", "", 0),
    Metric("trained_parameters", "Trained", ""),
)


def model_label(name: str) -> str:
    """The printed name of a model of the summary.

    >>> model_label("random_tuning"), model_label("prefix_tuning")
    ('Random rows', 'Prefix Tuning')
    """
    return MODEL_LABELS.get(name, name.replace("_", " ").title())


def plural(count: int, noun: str) -> str:
    """A count with its noun, also for none and one.

    >>> plural(0, "ticket"), plural(1, "ticket"), plural(2200, "row")
    ('no ticket', '1 ticket', '2,200 rows')
    """
    return f"no {noun}" if count == 0 else f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None, digits: int) -> str:
    """A fixed number of digits, or a dash for what is not a finite number.

    >>> number(1.8634, 2), number(float("nan"), 2), number(None, 2)
    ('1.86', '–', '–')
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    r"""A share as a percentage, or a dash.

    >>> percent(0.971), percent(0.971, 1), percent(None)  # with a space that does not break
    ('97\xa0%', '97.1\xa0%', '–')
    """
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}\u00a0%"


def count_text(value: float | None) -> str:
    """A count with thousands separated, or a dash.

    >>> count_text(31680), count_text(None)
    ('31,680', '–')
    """
    return number(value, 0)


def compact(value: float | None) -> str:
    """A count in at most six signs.

    >>> compact(576), compact(31680), compact(1297728), compact(2.1e9), compact(None)
    ('576', '31.7 k', '1.30 M', '2.10 G', '–')
    """
    if value is None or not math.isfinite(value) or value < 1000:
        return number(value, 0)
    unit, name = next((unit, name) for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= unit)
    return f"{value / unit:.3g} {name}" if value / unit >= 10 else f"{value / unit:.2f} {name}"


def pvalue_text(value: float) -> str:
    """A p-value: three decimals, or two digits where it is small.

    >>> pvalue_text(0.0312), pvalue_text(3.21e-7), pvalue_text(0.0)
    ('0.031', '3.2e-07', '< 1e-300')
    """
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-300:
        return "< 1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def visible_token(token: str) -> str:
    r"""A token with its white space and invisible characters made visible.

    >>> visible_token(" Spanish"), visible_token("\n"), visible_token("\u202e"), visible_token("")
    ('␣Spanish', '↵', '\\u202e', '(empty)')
    """
    signs = {" ": "␣", "\n": "↵", "\t": "⇥"}
    # C: control, format, surrogate, unassigned; Z: spaces other than U+0020.
    return (
        "".join(
            signs.get(sign) or (escape_sign(sign) if unicodedata.category(sign)[0] in "CZ" else sign) for sign in token
        )
        or "(empty)"
    )


def visible_text(text: str) -> str:
    r"""Prose as it is, but for what a page cannot hold or what would reorder it: those become escapes.

    >>> visible_text("two\nlines\x00")
    'two\nlines\\u0000'
    """
    reordering = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return "".join(
        escape_sign(sign)
        if sign in reordering or (unicodedata.category(sign) in ("Cc", "Cs", "Cn") and sign not in "\n\t")
        else sign
        for sign in text
    )


def escape_sign(sign: str) -> str:
    r"""The character as ``\uXXXX`` or ``\UXXXXXXXX``."""
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"
