"""Figures of the training: the loss of every arm, which tokens an arm covers, and how long it took."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kslottery_fast.lab.experiment.console import duration

from . import picture
from .picture import MUTED, NOTE, PAPER, Picture, add_title, colour_of, panels
from .words import arm_label, number, percent

Losses = Mapping[str, Sequence[float]]
"""By arm: the training loss of every step, in nats per token."""

WINDOWS = 15  # a curve is a running mean over one in so many parts of the steps
MAX_RAW = 6  # the losses of single steps are drawn for at most this many arms
_DASHES = ("-", picture.DASHED, picture.DOTTED, (0, (6, 2, 1, 2)))


def losses(code: str, language: Mapping[str, Any], curves: Losses, of: str = "") -> Picture:
    """Draw the training loss of every arm that trained, with the first training seed."""
    figure, axes = panels(3.2 + 0.16 * (len(curves) // 3))
    last, styles = [], {spec: itertools.cycle(_DASHES) for spec in map(colour_of, curves)}
    window = max(1, max(map(len, curves.values())) // WINDOWS)
    for spec, found in curves.items():
        colour, steps = colour_of(spec), np.arange(1, len(found) + 1)
        label, mean = arm_label(spec, language["arms"][spec]), running_mean(found, window)
        if len(curves) <= MAX_RAW:
            axes.plot(steps, found, color=colour, lw=0.6, alpha=0.3)
        axes.plot(steps, mean, color=colour, lw=1.5, ls=next(styles[colour]), label=label)
        last.append(f"{label} {number(float(mean[-1]), 2)}")
    axes.set_xlabel("Update")
    axes.set_ylabel("Training loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    steps_text = "single updates" if window == 1 else f"a running mean over {window} updates"
    raw = " Thin lines: single updates." if window > 1 and len(curves) <= MAX_RAW else ""
    return Picture(
        f"losses-{code}",
        add_title(figure, f"Training loss{of}"),
        f"Training loss by update. Mean of the last {window}: {'; '.join(last)}.",
        f"Loss on the training batches with the first training seed: {steps_text}.{raw} All arms see the same batches, "
        "as far as they train. Models that train nothing have no curve.",
        figure,
    )


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Average every value with those before it.

    Parameters
    ----------
    values : sequence of float
        In the order of the updates.
    window : int
        How many values are averaged. There are fewer at the start.

    Returns
    -------
    ndarray
        As many numbers as ``values``.

    Examples
    --------
    >>> running_mean([1.0, 3.0, 5.0, 7.0], 2).tolist()
    [1.0, 2.0, 4.0, 6.0]
    """
    return np.array([fmean(values[max(0, place + 1 - window) : place + 1]) for place in range(len(values))])


def costs(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw the share of the training tokens that every arm covers, and the time that making it took."""
    arms = {spec: arm for spec, arm in language["arms"].items() if spec != "untuned"}
    figure, (left, right) = panels(0.95 + 0.3 * len(arms), (1, 2), sharey=True)
    labels, values = [arm_label(spec, arm) for spec, arm in arms.items()], []
    for row, (spec, arm) in enumerate(arms.items()):
        known = [share for share in arm["coverage"] if share is not None]
        share = fmean(known) if known else None
        own, whole = (fmean(arm["seconds"][name]) for name in ("making", "from_scratch"))
        colour = colour_of(spec)
        left.barh(row, share or 0, 0.62, color=colour)
        _note(left, row, share or 0, "no rows" if share is None else percent(share))
        right.barh(row, whole, 0.62, color=PAPER, edgecolor=colour, lw=0.9)
        right.barh(row, own, 0.62, color=colour, edgecolor=colour, lw=0.9)
        _note(right, row, whole, duration(whole))
        values.append(f"{labels[row]}: {percent(share)} covered, {duration(own)} alone, {duration(whole)} in all")
    left.set_yticks(np.arange(len(arms)), labels)
    left.set_ylim(len(arms) - 0.4, -0.6)  # the first arm on top
    picture.lie_bars_down(left, right)
    left.set_xlim(0, 1.15)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1])
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="%"))
    right.set_xlim(0, 1.25 * max(1e-3, right.get_xlim()[1]))
    right.xaxis.set_major_locator(MaxNLocator(4))
    left.set_xlabel("Training tokens whose rows the arm changes")
    right.set_xlabel("Wall time, seconds")
    right.barh(0, 0, color=MUTED, label="this arm alone")
    right.barh(0, 0, color=PAPER, edgecolor=MUTED, label="the Embed Tuning it needs")
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, borderaxespad=0.5, handlelength=1.2)
    return Picture(
        f"costs-{code}",
        add_title(figure, f"Coverage and wall time{of}"),
        f"Bars. {'; '.join(values)}.",
        "Left: coverage, the share of the tokens of the training examples (with their prompts) whose rows an arm "
        "changes. Right: time to make the arm, without scoring. Outlined: the Embed Tuning that its rows come from or "
        "are chosen by. Times are means over training seeds and depend on the processor.",
        figure,
    )


def _note(axes: Axes, row: int, end: float, text: str) -> None:
    axes.annotate(text, (end, row), (3, 0), va="center", **NOTE)
