"""Figures of the rows: how far they moved, which of them are tickets, and how often their tokens occur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from kslottery_fast.ks.ecdf import largest_gap

from . import picture
from .picture import DOTS, INK, PAPER, TICKET, WIDTH, Picture, add_legend, colour_of, panels, token_label
from .point_labels import label_points
from .words import plural, rows_noun

MAX_VECTOR_POINTS = 5000  # a larger cloud of points becomes one bitmap; as vectors it would take megabytes
MAX_PANELS = 6
_CLOUD: dict[str, Any] = {"s": 5, "color": DOTS, "alpha": 0.6, "linewidths": 0, "label": "other active rows"}
_MARKS: dict[str, Any] = {"s": 17, "color": TICKET, "edgecolors": PAPER, "linewidths": 0.4, "zorder": 3}
_GAP: dict[str, Any] = {"color": TICKET, "lw": 2, "solid_capstyle": "butt", "label": "D, the largest gap"}


@dataclass(frozen=True)
class Shift:
    """The ``d`` coordinates of the row of a token before and after Embed Tuning."""

    token: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class MovedRows:
    """What the figures show of the A active rows of a language, with its first training seed.

    Attributes
    ----------
    token_ids, statistic, frequency : ndarray
        Ids, D, and occurrences in the training corpus, each [A].
    facts : mapping
        The selection in numbers, as in ``summary.json``.
    tickets : sequence of mapping
        The list of tickets, as in ``summary.json``.
    selection : str
        How the tickets were chosen, in words.
    shifts : sequence of Shift
        The shifts of the first tickets. At most six are drawn.
    """

    token_ids: np.ndarray
    statistic: np.ndarray
    frequency: np.ndarray
    facts: Mapping[str, Any]
    tickets: Sequence[Mapping[str, Any]]
    selection: str
    shifts: Sequence[Shift] = ()

    @property
    def threshold(self) -> float:
        return float(self.facts["threshold"])

    @property
    def noun(self) -> str:
        return rows_noun(self.facts)

    @property
    def mask(self) -> np.ndarray:
        return np.isin(self.token_ids, self.facts["token_ids"])

    def line(self, offset: float = 0.0) -> tuple[float, dict[str, Any]]:
        label = f"alpha = {self.facts['alpha']:g}: D ≥ {self.threshold:.3f}"
        return self.threshold - offset, {"color": INK, "lw": 0.9, "ls": picture.DASHED, "label": label}

    @property
    def line_text(self) -> str:
        return f"Dashed line: the smallest significant D, {self.threshold:.4f}, at alpha = {self.facts['alpha']:g}."


def histogram(code: str, data: MovedRows, of: str = "") -> Picture:
    """Draw D of the active rows, tickets in another colour, with the threshold. Bins hold whole steps of 1/d."""
    d, mask = int(data.facts["dimension"]), data.mask
    h = np.rint(data.statistic * d).astype(np.int64)
    steps = max(1, round((int(h.max()) + 1) / 70))
    # Edges lie halfway between two possible values of D, one of them just below the smallest ticket.
    anchor = int(h[mask].min()) if mask.any() else 0
    first = anchor - steps * math.ceil(anchor / steps)
    edges = (np.arange(first, int(h.max()) + 1 + steps, steps) - 0.5) / d
    figure, axes = panels(2.9)
    labels = [f"other active rows ({(~mask).sum():,})", f"{data.noun} ({mask.sum():,})"]
    parts = [data.statistic[~mask], data.statistic[mask]]
    axes.hist(parts, list(edges), stacked=True, color=[DOTS, TICKET], label=labels)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(14, 1.5 * axes.get_ylim()[1]))  # from below 1, so that a single row is visible
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(max(edges[0], -0.01), 1.03 * max(edges[-1], data.threshold))
    # Just below the smallest significant value, so that the significant rows are right of the line.
    at, look = data.line(0.5 / d)
    axes.axvline(at, **look)
    axes.set_xlabel("KS statistic D of a row, before and after Embed Tuning")
    axes.set_ylabel("Rows (log scale)")
    return Picture(
        f"histogram-{code}",
        add_legend(figure, axes, f"Shift of the active rows{of}", 3),
        f"Histogram of D over {plural(len(h), 'row')}: median {np.median(data.statistic):.3f}, largest "
        f"{data.statistic.max():.3f}; {data.selection}, in orange.",
        f"How far each of {plural(len(h), 'row')} of the active vocabulary moved in Embed Tuning. D is the largest gap "
        f"between the empirical distribution functions of the row's {d} coordinates before and after. Orange: "
        f"{data.selection}. {data.line_text} Rows of tokens that never occur in the training corpus did not move and "
        f"are left out. A bin covers {plural(steps, 'step')} of 1/{d}.",
        figure,
    )


def frequency(code: str, data: MovedRows, of: str = "") -> Picture:
    """Draw D of the active rows by the corpus count of their tokens."""
    mask, count = data.mask, np.maximum(data.frequency, 0.5)  # the axis labels 0.5 as 0
    figure, axes = panels(3.7)
    bitmap = int((~mask).sum()) > MAX_VECTOR_POINTS
    axes.scatter(count[~mask], data.statistic[~mask], rasterized=bitmap, **_CLOUD)
    axes.scatter(count[mask], data.statistic[mask], label=data.noun, **_MARKS)
    at, look = data.line()
    axes.axhline(at, **look)
    k, overlap = len(data.tickets), ""
    if k:
        least, label = np.sort(count)[::-1][min(k, len(count)) - 1], f"right of it: the {k} most frequent"
        axes.axvline(least, color=colour_of("frequency"), lw=1.1, ls=picture.DOTTED, label=label)
        shared = sum(ticket["rank"] <= k for ticket in data.tickets)
        verb = "is" if shared == 1 else "are"
        overlap = f"{shared} of the {k} {data.noun} {verb} among the {k} most frequent tokens."
    axes.set_xscale("log")
    powers = [10.0**power for power in range(math.ceil(math.log10(max(count.max(), 10))) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([*([0.5] if count.min() < 1 else []), *powers]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.85 * count.min(), 1.6 * count.max())
    axes.set_ylim(0, 1.06 * max(data.statistic.max(), data.threshold))
    axes.set_xlabel("Occurrences of the token in the training corpus (log scale)")
    axes.set_ylabel("KS statistic D")
    title = add_legend(figure, axes, f"D by corpus frequency{of}", 4)
    ranked = sorted(data.tickets, key=lambda ticket: (-ticket["statistic"], ticket["token_id"]))
    points = [(max(float(ticket["count"]), 0.5), ticket["statistic"], ticket["token"]) for ticket in ranked]
    label_points(figure, axes, points)
    return Picture(
        f"frequency-{code}",
        title,
        f"Scatter plot of D by corpus count for {plural(len(count), 'token')}, {data.noun} in orange. {overlap}",
        "The figure compares selection by the KS test with selection by frequency. Each point is a token of the "
        f"active vocabulary; orange: the {data.noun}. {data.line_text} {overlap} The points of largest D "
        "have labels, as far as they fit. In labels, ␣ is a space and ↵ a line break.",
        figure,
    )


def ecdf(code: str, data: MovedRows, of: str = "") -> Picture:
    """Draw distribution functions of the coordinates of the first tickets, before and after, with D where it is."""
    shifts = data.shifts[:MAX_PANELS]
    columns = min(3, len(shifts))
    rows = math.ceil(len(shifts) / columns)
    size = {"height": (0.9 if columns == 3 else 1.4) + 1.75 * rows, "width": max(4.2, WIDTH * columns / 3)}
    figure, grid = panels(**size, shape=(rows, columns), sharex=True, sharey=True, squeeze=False)
    gaps = [largest_gap(shift.before, shift.after) for shift in shifts]
    # All panels have one scale. The few coordinates in the outermost tails would leave little room for the rest.
    values = np.concatenate([np.concatenate([shift.before, shift.after]) for shift in shifts])
    ends = np.quantile(values, [0.003, 0.997])
    low, high = min(ends[0], *(gap[0] for gap in gaps)), max(ends[1], *(gap[0] for gap in gaps))
    for panel, shift, (at, before, after) in zip(grid.ravel(), shifts, gaps, strict=False):
        _step(panel, shift.before, low, high, colour_of("untuned"), "before (original model)")
        _step(panel, shift.after, low, high, colour_of("embed"), "after Embed Tuning")
        panel.plot([at, at], [before, after], **_GAP)
        panel.set_title(token_label(shift.token))
        words = f"D = {abs(after - before):.3f}"
        panel.text(0.97, 0.06, words, transform=panel.transAxes, ha="right", color=TICKET)
        if low < high:
            panel.set_xlim(low, high)
        panel.set_ylim(-0.02, 1.02)
        panel.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="%"))
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for empty in grid.ravel()[len(shifts) :]:
        empty.set_visible(False)
    for panel in grid.ravel()[max(0, len(shifts) - columns) : len(shifts)]:
        panel.tick_params(labelbottom=True)  # even if the panel below is empty
    figure.supxlabel("Value of a coordinate of the row", size=8)
    figure.supylabel("Coordinates at or below it", size=8)
    names = [token_label(shift.token) for shift in shifts]
    listed = [f"{name} {abs(after - before):.3f}" for name, (_, before, after) in zip(names, gaps, strict=True)]
    title = f"Rows of largest D, before and after{of}"
    return Picture(
        f"ecdf-{code}",
        add_legend(figure, grid[0, 0], title, 3 if columns == 3 else 1),
        f"Distribution functions before and after Embed Tuning, one panel for each row. D: {'; '.join(listed)}.",
        f"Empirical distribution functions of the {data.facts['dimension']} coordinates of the rows that moved "
        "furthest, in the original and in the embed-tuned model. The orange segment is D, the largest vertical gap, at "
        "the place where it occurs. All panels share one scale; up to 0.3% of the coordinates lie outside on either "
        "side.",
        figure,
    )


def _step(axes: Axes, values: np.ndarray, low: float, high: float, colour: str, label: str) -> None:
    """Draw the empirical distribution function from the left end of the panel to the right end."""
    x = np.concatenate([[min(low, values.min())], np.sort(values), [max(high, values.max())]])
    y = np.concatenate([[0], np.arange(1, len(values) + 1) / len(values), [1]])
    axes.step(x, y, where="post", color=colour, lw=1.3, label=label)
