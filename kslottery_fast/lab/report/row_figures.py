"""Figures of the rows: how far they moved, which are tickets, and how often their tokens occur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from .picture import DOTS, INK, PAPER, TICKET, WIDTH, Picture, add_legend, colour_of, token_label
from .words import plural

MAX_VECTOR_POINTS = 5000  # a larger cloud of points becomes one bitmap, or the page weighs megabytes
MAX_PANELS = 6
MAX_LABELS = 24
MAX_LABEL_TRIALS = 200  # of thousands of tickets in a crowd, measuring each label takes minutes
_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 1.5))


@dataclass(frozen=True)
class Shift:
    """The ``d`` coordinates of the row of a token before and after Embed Tuning."""

    token: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class MovedRows:
    """What the figures show of the A active rows of a language, with its first training seed.

    ``token_ids``, ``statistic`` (D) and ``frequency`` (occurrences in the training corpus), each [A]; ``facts``: the
    selection in numbers, and ``tickets``: the list of them, as ``summary.json`` has both; ``selection``: how they were
    chosen, in words; ``shifts``: of the first tickets, six at most are drawn.
    """

    token_ids: np.ndarray
    statistic: np.ndarray
    frequency: np.ndarray
    facts: Mapping[str, Any]
    tickets: Sequence[Mapping[str, Any]]
    selection: str
    shifts: Sequence[Shift] = ()

    @property
    def chosen(self) -> np.ndarray:
        """Which rows are tickets, bool [A]."""
        return np.isin(self.token_ids, self.facts["token_ids"])

    @property
    def threshold(self) -> float:
        """The smallest significant D."""
        return float(self.facts["threshold"])

    @property
    def dimension(self) -> int:
        """Length d of a row."""
        return int(self.facts["dimension"])


def histogram(code: str, data: MovedRows) -> Picture:
    """D of the active rows, tickets told apart, with the threshold. Bins hold whole steps of 1/d."""
    d, mask = data.dimension, data.chosen
    h = np.rint(data.statistic * d).astype(np.int64)
    steps = max(1, round((int(h.max()) + 1) / 70))
    # Edges lie halfway between two possible values of D, one of them just below the smallest ticket.
    anchor = int(h[mask].min())
    first = anchor - steps * math.ceil(anchor / steps)
    edges = (np.arange(first, int(h.max()) + 1 + steps, steps) - 0.5) / d
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    labels = [f"other active rows ({(~mask).sum():,})", f"tickets ({mask.sum():,})"]
    parts = [data.statistic[~mask], data.statistic[mask]]
    axes.hist(parts, list(edges), stacked=True, color=[DOTS, TICKET], label=labels)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(14, 1.5 * axes.get_ylim()[1]))  # from below 1, so that a single row is still seen
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(max(edges[0], -0.01), 1.03 * max(edges[-1], data.threshold))
    # Just below the smallest significant value: what is right of the line is significant.
    axes.axvline(data.threshold - 0.5 / d, color=INK, lw=0.9, ls=_DASHED, label=_threshold(data))
    axes.set_xlabel("KS statistic D of a row, before against after Embed Tuning")
    axes.set_ylabel("Rows (log scale)")
    title = add_legend(figure, axes, f"Shift of the active rows: {data.selection}", 3)
    return Picture(
        f"histogram-{code}",
        title,
        f"Histogram of D over {plural(len(h), 'row')}: median {np.median(data.statistic):.3f}, largest "
        f"{data.statistic.max():.3f}; {plural(int(mask.sum()), 'ticket')} in orange.",
        f"How far each of {plural(len(h), 'row')} of the active vocabulary moved in Embed Tuning. D is the "
        f"largest gap between the empirical distribution functions of the row's {d} coordinates before and "
        f"after. Orange: {data.selection}. {_threshold_sentence(data)} Rows of tokens that never occur in "
        f"the training corpus did not move and are left out. A bin holds {plural(steps, 'step')} of 1/{d}.",
        figure,
    )


def frequency(code: str, data: MovedRows) -> Picture:
    """D of the active rows against the corpus count of their tokens."""
    mask, count = data.chosen, _on_log_axis(data.frequency)
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    cloud: dict[str, Any] = {"s": 5, "color": DOTS, "alpha": 0.6, "linewidths": 0, "label": "other active rows"}
    cloud["rasterized"] = int((~mask).sum()) > MAX_VECTOR_POINTS
    axes.scatter(count[~mask], data.statistic[~mask], **cloud)
    marks: dict[str, Any] = {"s": 17, "color": TICKET, "edgecolors": PAPER, "linewidths": 0.4, "zorder": 3}
    axes.scatter(count[mask], data.statistic[mask], label="tickets", **marks)
    axes.axhline(data.threshold, color=INK, lw=0.9, ls=_DASHED, label=_threshold(data))
    k, green = len(data.tickets), colour_of("frequency")
    least = np.sort(count)[::-1][k - 1]
    axes.axvline(least, color=green, lw=1.1, ls=_DOTTED, label=f"the {k} most frequent: to the right")
    shared = sum(ticket["rank"] <= k for ticket in data.tickets)
    overlap = f"{shared} of {plural(k, 'ticket')} belong to the {k} most frequent tokens."
    axes.set_xscale("log")
    powers = [10.0**power for power in range(math.ceil(math.log10(max(count.max(), 10))) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([*([0.5] if count.min() < 1 else []), *powers]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value) if value >= 1 else "0"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.85 * count.min(), 1.6 * count.max())
    axes.set_ylim(0, 1.06 * max(data.statistic.max(), data.threshold))
    axes.set_xlabel("Occurrences of the token in the training corpus (log scale)")
    axes.set_ylabel("KS statistic D")
    title = add_legend(figure, axes, f"Tickets against corpus frequency: {data.selection}", 4)
    _label_points(figure, axes, data.tickets)
    return Picture(
        f"frequency-{code}",
        title,
        f"Scatter plot of D against the corpus count of {plural(len(count), 'token')}, tickets in orange. {overlap}",
        "Does the KS test find other tokens than their frequency does? Each point is a token of the active "
        f"vocabulary; orange: {data.selection}. {_threshold_sentence(data)} {overlap} Labels: as many "
        "tickets as fit, the largest D first; ␣ is a space, ↵ a line break.",
        figure,
    )


def ecdf(code: str, data: MovedRows) -> Picture:
    """Distribution functions of the top tickets' coordinates, before and after, with D at its place."""
    shifts = data.shifts[:MAX_PANELS]
    columns, rows = min(3, len(shifts)), math.ceil(len(shifts) / 3)
    size = (max(4.2, WIDTH * columns / 3), (0.9 if columns == 3 else 1.4) + 1.75 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    gaps = [_ks_location(shift) for shift in shifts]
    # One scale for all panels: the few coordinates in the outermost tails would squeeze the rest.
    values = np.concatenate([np.concatenate([shift.before, shift.after]) for shift in shifts])
    low, high = np.quantile(values, [0.003, 0.997])
    low, high = min(low, *(gap[0] for gap in gaps)), max(high, *(gap[0] for gap in gaps))
    for panel, shift, (at, before, after) in zip(panels, shifts, gaps, strict=False):
        _step(panel, shift.before, low, high, colour_of("untuned"), "before (original model)")
        _step(panel, shift.after, low, high, colour_of("embed"), "after Embed Tuning")
        gap: dict[str, Any] = {"color": TICKET, "lw": 2, "solid_capstyle": "butt"}
        panel.plot([at, at], [before, after], label="D, where the gap is largest", **gap)
        panel.set_title(token_label(shift.token))
        words = f"D = {abs(after - before):.3f}"
        panel.text(0.97, 0.06, words, transform=panel.transAxes, ha="right", color=TICKET)
        if low < high:
            panel.set_xlim(low, high)
        panel.set_ylim(-0.02, 1.02)
        panel.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for empty in panels[len(shifts) :]:
        empty.set_visible(False)
    for panel in panels[max(0, len(shifts) - columns) : len(shifts)]:
        panel.tick_params(labelbottom=True)  # also where the panel below is empty
    figure.supxlabel("Value of a coordinate of the row", size=8)
    figure.supylabel("Coordinates at or below it", size=8)
    title = f"Largest shifts, before and after: {data.selection}"
    add_legend(figure, panels[0], title, 3 if columns == 3 else 1)
    listed = "; ".join(
        f"{token_label(shift.token)} {abs(after - before):.3f}"
        for shift, (_, before, after) in zip(shifts, gaps, strict=True)
    )
    return Picture(
        f"ecdf-{code}",
        title,
        f"Distribution functions before and after Embed Tuning, one panel a ticket. D: {listed}.",
        f"Empirical distribution functions of the {data.dimension} coordinates of the rows that moved "
        f"furthest ({data.selection}), in the original and in the embed-tuned model. The orange segment is "
        "D, the largest vertical gap, drawn where it is attained. All panels share one scale; up to 0.3 % "
        "of the coordinates lie outside on either side.",
        figure,
    )


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}"


def _on_log_axis(count: np.ndarray) -> np.ndarray:
    """Counts with zero at 0.5, which the axis labels as 0."""
    return np.maximum(np.asarray(count, dtype=np.float64), 0.5)


def _threshold(data: MovedRows) -> str:
    return f"alpha = {data.facts['alpha']:g}: D ≥ {data.threshold:.3f}"


def _threshold_sentence(data: MovedRows) -> str:
    return f"Dashed: the smallest significant D, {data.threshold:.4f}, at alpha = {data.facts['alpha']:g}."


def _ks_location(shift: Shift) -> tuple[float, float, float]:
    """Where D is attained, and the two distribution functions there."""
    points = np.sort(np.concatenate([shift.before, shift.after]))
    before = np.searchsorted(np.sort(shift.before), points, side="right") / len(shift.before)
    after = np.searchsorted(np.sort(shift.after), points, side="right") / len(shift.after)
    at = int(np.abs(before - after).argmax())
    return float(points[at]), float(before[at]), float(after[at])


def _step(axes: Axes, values: np.ndarray, low: float, high: float, colour: str, label: str) -> None:
    """The empirical distribution function, drawn from the left end of the panel to the right one."""
    x = np.concatenate([[min(low, values.min())], np.sort(values), [max(high, values.max())]])
    y = np.concatenate([[0], np.arange(1, len(values) + 1) / len(values), [1]])
    axes.step(x, y, where="post", color=colour, lw=1.3, label=label)


def _label_points(figure: Figure, axes: Axes, tickets: Sequence[Mapping[str, Any]]) -> None:
    """Name as many tickets as fit without a label touching a label, a ticket or a line; large D first."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout must stand before anything can be measured
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    ranked = sorted(tickets, key=lambda ticket: (-ticket["statistic"], ticket["token_id"]))
    points = [(float(_on_log_axis(np.array(ticket["count"]))), ticket["statistic"]) for ticket in ranked]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
    taken += [line.get_window_extent(renderer).padded(3) for line in axes.get_lines()]
    frame, labels = axes.get_window_extent(renderer), 0
    for ticket, point in list(zip(ranked, points, strict=True))[:MAX_LABEL_TRIALS]:
        for dx, dy, side in ((4, 0, "left"), (-4, 0, "right"), (0, 7, "center"), (0, -7, "center")):
            label = axes.annotate(token_label(ticket["token"]), point, (dx, dy), textcoords="offset points")
            label.set(ha=side, va="center_baseline", size=6.5)
            box = label.get_window_extent(renderer)
            if frame.x0 < box.x0 and box.x1 < frame.x1 and box.y1 < frame.y1 and not box.count_overlaps(taken):
                taken.append(box)
                labels += 1
                break
            label.remove()
        if labels == MAX_LABELS:
            return
