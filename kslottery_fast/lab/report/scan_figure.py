"""The picture of a scan: how far each kind of matrix moved, over the model and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        panels = figure.subplots(
            1, 2 if layers else 1, sharey=True, squeeze=False, width_ratios=[1, 1.25][: 2 if layers else 1]
        )
        _bars(panels[0, 0], kinds)
        if layers:
            _layers(figure, panels[0, 1], kinds, layers)
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
    if not tested:
        return "no test"
    rows = sum(shift.rows - shift.nan_rows for shift in tested)
    return percent(sum(shift.significant_rows or 0 for shift in tested) / rows, 1)


def _bars(axes: Axes, kinds: dict[str, list[TensorShift]]) -> None:
    for row, shifts in enumerate(kinds.values()):
        value = mean_d(shifts) or 0.0
        axes.barh(row, value, 0.62, color=TICKET if _is_embedding(shifts) else DOTS)
        axes.annotate(
            _significant(shifts), (value, row), (3, 0), textcoords="offset points", va="center", size=6.5, color=INK
        )
    axes.set_yticks(range(len(kinds)), list(kinds))
    for label, shifts in zip(axes.get_yticklabels(), kinds.values(), strict=True):
        label.set(size=7, **({"color": TICKET, "weight": "bold"} if _is_embedding(shifts) else {}))
    axes.set_ylim(len(kinds) - 0.5, -0.5)  # the first kind on top
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1] if any(mean_d(shifts) for shifts in kinds.values()) else 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("Mean D of the rows; %: significant ones")


def _layers(figure: Figure, axes: Axes, kinds: dict[str, list[TensorShift]], layers: int) -> None:
    values = np.full((len(kinds), layers), math.nan)
    for row, shifts in enumerate(kinds.values()):
        for layer in {shift.layer for shift in shifts if shift.layer is not None}:
            mean = mean_d([shift for shift in shifts if shift.layer == layer])
            values[row, layer] = math.nan if mean is None else mean
    largest = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    edges = np.arange(layers + 1) - 0.5, np.arange(len(kinds) + 1) - 0.5
    lines: dict[str, Any] = {"edgecolors": PAPER, "linewidth": 0.5} if layers <= 50 else {}
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=_BLUES, vmin=0, vmax=largest or 1.0, **lines)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("Layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=MUTED, labelsize=6.5)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.set_label("Mean D", size=7)
