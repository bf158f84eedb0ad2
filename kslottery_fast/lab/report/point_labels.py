"""Labels of points in a figure, as many as fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .picture import token_label

MAX_LABELS = 24
MAX_LABEL_TRIALS = 200  # measuring the labels of thousands of points would take minutes


def label_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Label as many points (x, y, token) as fit, the first ones first.

    No label touches another label, a point or a line.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # nothing can be measured before the layout is fixed
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    pixels: Any = axes.transData.transform([(x, y) for x, y, _ in points]) if points else []
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    taken += [line.get_window_extent(renderer).padded(3) for line in axes.get_lines()]
    frame, labels = axes.get_window_extent(renderer), 0
    for x, y, token in points[:MAX_LABEL_TRIALS]:
        for dx, dy, side in ((4, 0, "left"), (-4, 0, "right"), (0, 7, "center"), (0, -7, "center")):
            label = axes.annotate(token_label(token), (x, y), (dx, dy), textcoords="offset points")
            label.set(ha=side, va="center_baseline", size=6.5)
            box = label.get_window_extent(renderer)
            if frame.x0 < box.x0 and box.x1 < frame.x1 and box.y1 < frame.y1 and not box.count_overlaps(taken):
                taken.append(box)
                labels += 1
                break
            label.remove()
        if labels == MAX_LABELS:
            return
