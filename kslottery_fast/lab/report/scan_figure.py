"""The picture of a scan: how far each kind of matrix moved, over the model and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kslottery_fast.tickets.scan import Scan, TensorShift, matrices

from .picture import DOTS, INK, MODEL_COLOURS, MUTED, PAPER, TICKET, WIDTH, Picture, add_title, style
from .words import number, percent

MAX_KINDS = 30  # more are no longer read on one page; those that moved furthest are kept
_BLUES = LinearSegmentedColormap.from_list("shift", ["#f1f3f5", MODEL_COLOURS["embed_tuning"]])

Kinds = Mapping[str, Sequence[TensorShift]]


def scan_figure(scan: Scan) -> Picture:
    """Bars: mean D of each kind of matrix, the embedding in orange. Beside them, the same in every layer."""
    kinds: dict[str, list[TensorShift]] = {}
    for shift in scan.tensors:
        kinds.setdefault(shift.kind, []).append(shift)
    total = len(kinds)
    if total > MAX_KINDS:
        kept = sorted(kinds, key=lambda kind: (not _is_embedding(kinds[kind]), -(mean_d(kinds[kind]) or 0)))[:MAX_KINDS]
        kinds = {kind: shifts for kind, shifts in kinds.items() if kind in kept}
    layers = 1 + max((shift.layer for shift in scan.tensors if shift.layer is not None), default=-1)
    with style():
        figure = Figure(figsize=(WIDTH, 1.15 + 0.24 * len(kinds)), layout="constrained")
        widths = [1, 1.25] if layers else [1]
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        _bars(panels[0], kinds)
        if layers:
            _layers(figure, panels[1], kinds, layers)
        title = add_title(figure, f"Shift of the rows of {matrices(len(scan.tensors))}")
    values = "; ".join(f"{kind} {number(mean_d(shifts), 4)}" for kind, shifts in kinds.items())
    left_out = f" The {MAX_KINDS} of {total} kinds of matrices that moved furthest." if total > MAX_KINDS else ""
    return Picture(
        "scan",
        title,
        f"Bars of the mean D of each kind of matrix, and a map over layers. {values}.",
        f"Mean KS statistic D over the rows of each kind of matrix, {scan.before} against {scan.after}; orange: the "
        f"input embedding. Percentages: rows with p < {scan.alpha:g}. Right: the same in every layer.{left_out}",
        figure,
    )


def mean_d(shifts: Sequence[TensorShift]) -> float | None:
    """Mean D over all rows of several matrices."""
    known = [(shift.mean_d, shift.rows - shift.nan_rows) for shift in shifts if shift.mean_d is not None]
    return sum(mean * rows for mean, rows in known) / sum(rows for _, rows in known) if known else None


def _is_embedding(shifts: Sequence[TensorShift]) -> bool:
    return any(shift.embedding for shift in shifts)


def _significant(shifts: Sequence[TensorShift]) -> str:
    tested = [shift for shift in shifts if shift.significant_share is not None]
    rows = sum(shift.rows - shift.nan_rows for shift in tested)
    return percent(sum(shift.significant_rows or 0 for shift in tested) / rows, 1) if tested else "no test"


def _bars(axes: Axes, kinds: Kinds) -> None:
    values = [mean_d(shifts) or 0.0 for shifts in kinds.values()]
    embedding = [_is_embedding(shifts) for shifts in kinds.values()]
    bars = axes.barh(range(len(kinds)), values, 0.62, color=[TICKET if it else DOTS for it in embedding])
    axes.bar_label(bars, list(map(_significant, kinds.values())), padding=3, size=6.5, color=INK)
    axes.set_yticks(range(len(kinds)), list(kinds), size=7)
    for label in (label for label, it in zip(axes.get_yticklabels(), embedding, strict=True) if it):
        label.set(color=TICKET, weight="bold")
    axes.set_ylim(len(kinds) - 0.5, -0.5)  # the first kind on top
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1] if any(values) else 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("Mean D of the rows; %: significant ones")


def _layers(figure: Figure, axes: Axes, kinds: Kinds, layers: int) -> None:
    values = np.full((len(kinds), layers), math.nan)
    for row, shifts in enumerate(kinds.values()):
        for layer in {shift.layer for shift in shifts if shift.layer is not None}:
            mean = mean_d([shift for shift in shifts if shift.layer == layer])
            values[row, layer] = math.nan if mean is None else mean
    largest = np.nanmax(values, initial=0.0) or 1.0
    edges = np.arange(layers + 1) - 0.5, np.arange(len(kinds) + 1) - 0.5
    lines: dict[str, Any] = {"edgecolors": PAPER, "linewidth": 0.5} if layers <= 50 else {}
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=_BLUES, vmin=0, vmax=largest, **lines)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("Layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=MUTED, labelsize=6.5)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.set_label("Mean D", size=7)
