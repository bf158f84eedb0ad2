"""The figure of a scan: how far each kind of matrix moved, over the whole model and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kslottery_fast.tickets.scan import Scan, TensorShift, matrices, mean_d, significant_share
from kslottery_fast.tickets.scan_shifts import MARKS

from .picture import DOTS, INK, MODEL_COLOURS, MUTED, PAPER, TICKET, Picture, add_title, lie_bars_down, panels, style
from .words import number, percent

MAX_KINDS = 30  # more would not be readable on one page; those that moved furthest are kept
_BLUES = LinearSegmentedColormap.from_list("shift", ["#f1f3f5", MODEL_COLOURS["embed_tuning"]])

Kinds = Mapping[str, Sequence[TensorShift]]


def scan_figure(scan: Scan) -> Picture:
    """Draw the mean D of each kind of matrix as bars (the tables of tokens in orange) and by layer as a map."""
    every = scan.by_kind()
    kept = sorted(every, key=lambda kind: (not _mark(every[kind]), -(mean_d(every[kind]) or 0)))[:MAX_KINDS]
    kinds = {kind: shifts for kind, shifts in every.items() if kind in kept}
    layers = 1 + max((shift.layer for shift in scan.tensors if shift.layer is not None), default=-1)
    with style():
        widths = [1, 1.25] if layers else [1]
        look: dict[str, Any] = {"sharey": True, "squeeze": False, "width_ratios": widths}
        figure, grid = panels(1.15 + 0.24 * len(kinds), (1, len(widths)), **look)
        _bars(grid[0, 0], kinds)
        if layers:
            _layers(figure, grid[0, 1], kinds, layers)
        title = add_title(figure, f"Shift of the rows of {matrices(len(scan.tensors))}")
    values = "; ".join(f"{kind} {number(mean_d(shifts), 4)}" for kind, shifts in kinds.items())
    marks = [mark for mark in map(_mark, kinds.values()) if mark]
    orange = f" Orange: {', '.join(f'{MARKS[mark]} ({mark})' for mark in dict.fromkeys(marks))}." if marks else ""
    few = (
        f" The figure shows the {MAX_KINDS} of {len(every)} kinds of matrices that moved furthest."
        if len(every) > MAX_KINDS
        else ""
    )
    return Picture(
        "scan",
        title,
        f"Bars of the mean D of each kind of matrix, and a map over layers. {values}.",
        f"Mean KS statistic D over the rows of each kind of matrix, {scan.before} compared with {scan.after}.{orange} "
        f"Percentages: rows with p < {scan.alpha:g}. Right: mean D by layer.{few}",
        figure,
    )


def _mark(shifts: Sequence[TensorShift]) -> str:
    """How the kind is marked if it is a table of tokens, see :attr:`TensorShift.mark`."""
    return next((shift.mark for shift in shifts if shift.mark), "")


def _bars(axes: Axes, kinds: Kinds) -> None:
    values = [mean_d(shifts) or 0.0 for shifts in kinds.values()]
    marks = [_mark(shifts) for shifts in kinds.values()]
    found = map(significant_share, kinds.values())
    shares = ["no test" if share is None else percent(share, 1) for share in found]
    bars = axes.barh(range(len(kinds)), values, 0.62, color=[TICKET if mark else DOTS for mark in marks])
    axes.bar_label(bars, shares, padding=3, size=6.5, color=INK)
    names = [f"{kind} {mark}".rstrip() for kind, mark in zip(kinds, marks, strict=True)]
    axes.set_yticks(range(len(kinds)), names, size=7)
    for label in (label for label, mark in zip(axes.get_yticklabels(), marks, strict=True) if mark):
        label.set(color=TICKET, weight="bold")
    axes.set_ylim(max(1, len(kinds)) - 0.5, -0.5)  # the first kind on top
    lie_bars_down(axes)
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1] if any(values) else 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("Mean D of the rows; %: significant rows")


def _layers(figure: Figure, axes: Axes, kinds: Kinds, layers: int) -> None:
    values = np.full((len(kinds), layers), math.nan)
    for row, shifts in enumerate(kinds.values()):
        for layer in range(layers):
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
