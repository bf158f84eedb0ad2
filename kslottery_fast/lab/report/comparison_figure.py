"""The figure of a comparison: D of each changed row by its L2 shift, coloured by the class of its token."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kslottery_fast.tickets.comparison import STATUSES, TableComparison

from . import picture
from .picture import CONTRIBUTION, DOTS, INK, MODEL_COLOURS, MUTED, RIGHT, TICKET, VIOLATION, Picture, panels, style
from .point_labels import label_points
from .row_figures import MAX_VECTOR_POINTS

_LOOKS = (
    (MODEL_COLOURS["embed_tuning"], "o"),
    (TICKET, "^"),
    (MODEL_COLOURS["frequency_tuning"], "s"),
    (RIGHT, "D"),
    (VIOLATION, "v"),
    (MODEL_COLOURS["random_tuning"], "P"),
    (CONTRIBUTION, "X"),
)
"""Colour and mark of each class of tokens. The marks differ too, so nothing depends on colour alone."""
_OBSTACLES = 2000  # points that labels keep away from; those of smaller D lie far below the labels
_TITLE = "Shift of the changed rows"


def comparison_figure(found: TableComparison) -> Picture:
    """Draw D by L2 shift. The classes with most changed rows have colours of their own."""
    codes, l2 = found.status_codes[: len(found.counts)].numpy(), found.l2.numpy()
    rows = np.flatnonzero((codes != STATUSES.index("identical")) & (l2 > 0))
    with style():
        figure, axes = panels(4.0)
        axes.set_xlabel("L2 shift of the row (log scale)")  # before the labels of points, which fix the layout
        axes.set_ylabel("KS statistic D")
        if len(rows):
            title = _points(figure, axes, found, rows)
        else:
            axes.text(0.5, 0.5, "No row moved", transform=axes.transAxes, ha="center", color=MUTED)
            title = picture.add_title(figure, _TITLE)
    test = f"alpha = {found.alpha:g}" + (f" with the correction {found.correction}" if found.correction else "")
    labels = " The rows of largest D have labels, as far as they fit." if found.tokens else ""
    line = f" Dashed line: the smallest significant D, {found.threshold_count / found.dimension:.4f}, at {test}."
    return Picture(
        "comparison",
        title,
        f"Scatter plot of D by L2 shift for {len(rows):,} changed rows, of which {found.numbers['significant']:,} are "
        "significant.",
        "Each point is a row that is not identical in both tables. L2 shift is the norm of its change. D is the KS "
        f"statistic of its numbers before and after.{line if found.threshold_count <= found.dimension else ''}{labels}",
        figure,
    )


def _points(figure: Any, axes: Axes, found: TableComparison, rows: np.ndarray) -> str:
    l2, d = found.l2.numpy()[rows], found.statistic.numpy()[rows]
    for number, (name, chosen) in enumerate(_groups(found, rows)):
        colour, mark = (DOTS, "o") if name.startswith("other") else _LOOKS[number % len(_LOOKS)]
        look: dict[str, Any] = {"color": colour, "marker": mark, "s": 11, "alpha": 0.7, "linewidths": 0}
        look |= {"rasterized": len(rows) > MAX_VECTOR_POINTS, "zorder": 1 if colour == DOTS else 2}
        axes.scatter(l2[chosen], d[chosen], label=f"{name} ({int(chosen.sum()):,})", **look)
    if found.threshold_count <= found.dimension:
        threshold = found.threshold_count / found.dimension
        axes.axhline(threshold, color=INK, lw=0.9, ls=picture.DASHED, label=f"smallest significant D: {threshold:.4f}")
    axes.set_xscale("log")
    axes.set_xlim(l2.min() / 1.3, l2.max() * 1.3)
    narrow = l2.max() < 30 * l2.min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.02 * d.max(), 1.06 * max(d.max(), 1 / found.dimension))
    title = picture.add_legend(figure, axes, _TITLE, 4)
    if found.tokens is not None:
        first = rows[np.lexsort((rows, -d))][:_OBSTACLES]
        texts = {int(row): found.tokens.texts[row] for row in first}
        points = [(float(found.l2[row]), float(found.statistic[row]), text) for row, text in texts.items() if text]
        label_points(figure, axes, points)
    return title


def _groups(found: TableComparison, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Names of groups of the rows, each with a mask. Classes of tokens if they are known, otherwise statuses."""
    if found.tokens is None:
        significant = found.status_codes[: len(found.counts)].numpy()[rows] == STATUSES.index("significant")
        return [("significant rows", significant), ("other changed rows", ~significant)]
    classes = np.array(found.tokens.classes)[rows]
    names = [each.name for each in found.by_class() if each.changed]
    kept = names if len(names) <= len(_LOOKS) else names[: len(_LOOKS) - 1]
    groups = [(name, classes == name) for name in kept]
    if len(kept) < len(names):
        groups.append(("other classes", ~np.isin(classes, kept)))
    return groups
