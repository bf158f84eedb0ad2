"""The figures of the report: scores and certificate here, those of the rows in row_figures.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from .picture import INK, MUTED, PAPER, RIGHT, VIOLATION, WIDTH, Picture, add_legend, add_title, model_colour, style
from .report_data import ReportData, model_label, number, percent, plural
from .row_figures import ecdf, frequency, histogram


def pictures(data: ReportData) -> list[Picture]:
    """All figures that the data allow: no shifts, no ECDF; no certificate, no curve."""
    with style():
        result = [scores(data), histogram(data), frequency(data)]
        if data.shifts:
            result.append(ecdf(data))
        if data.certificate:
            result.append(certificate(data))
    return result


def scores(data: ReportData) -> Picture:
    """NLL and BLEU of all models side by side, with intervals."""
    models, intervals = data.summary["models"], data.summary.get("intervals") or {}
    names = list(models)
    figure = Figure(figsize=(WIDTH, 0.95 + 0.36 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.15])
    for row, name in enumerate(names):
        colour, model, bounds = model_colour(name), models[name], intervals.get(name) or {}
        _bar(left, row, 0.62, model.get("nll"), bounds.get("nll"), colour, 2)
        _bar(right, row - 0.19, 0.34, model.get("bleu_first_line"), bounds.get("bleu_first_line"), colour, 1)
        _bar(right, row + 0.19, 0.34, model.get("bleu_raw"), bounds.get("bleu_raw"), colour, 1, hollow=True)
    left.set_yticks(np.arange(len(names)), [model_label(name) for name in names])
    left.set_ylim(len(names) - 0.4, -0.6)  # the first model on top
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
    left.set_xlabel("NLL, nats per target token")
    right.set_xlabel("BLEU, 0 to 100")
    left.set_title("← lower is better", weight="normal")
    right.set_title("higher is better →", weight="normal")
    right.bar(0, 0, color=MUTED, label="first line")
    right.bar(0, 0, color=PAPER, edgecolor=MUTED, label="raw output")
    right.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        borderpad=0,
        borderaxespad=0.5,
        handlelength=1.2,
        columnspacing=1.2,
    )
    title = add_title(figure, f"NLL and BLEU on held-out pairs: {data.selection}")
    values = "; ".join(
        f"{model_label(name)}: NLL {number(model.get('nll'), 2)}, BLEU first line "
        f"{number(model.get('bleu_first_line'), 1)}, raw {number(model.get('bleu_raw'), 1)}"
        for name, model in models.items()
    )
    return Picture(
        "scores",
        title,
        f"Bars with intervals. {values}.",
        f"All models on the same held-out pairs; rows tuned or copied: {data.selection}, as many in the "
        "controls. Left: negative log likelihood of a target token. Right: BLEU on the first line of each "
        "output (filled) and on the whole output (outlined), in which a model that does not know where to "
        "stop loses. Lines across the ends: 95 % bootstrap intervals over sentences.",
        figure,
    )


def certificate(data: ReportData) -> Picture:
    """Share of certified predictions, certified accuracy, and violations counted, over alpha."""
    result, selected = data.certificate, data.summary["tickets"]["alpha"]
    levels = sorted(result["levels"], key=lambda level: level["alpha"])
    alphas = [level["alpha"] for level in levels]
    violations = [level["violations"] for level in levels if level["violations"] is not None]
    figure = Figure(figsize=(WIDTH, 3.7 if violations else 2.8), layout="constrained")
    ratios = [2.2, 1] if violations else [1]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    upper, lower = panels[0], panels[-1]
    right: dict[str, Any] = {"color": MUTED, "lw": 0.9, "ls": (0, (4, 2))}
    upper.axhline(result["accuracy"], label="right, certified or not", **right)
    for key, colour, marker, label in (
        ("certified", INK, "o", "certified"),
        ("certified_accuracy", RIGHT, "s", "certified and right"),
    ):
        shares = [level[key] for level in levels]
        upper.plot(alphas, shares, color=colour, marker=marker, ms=3.5, lw=1.4, label=label)
    upper.set_xscale("log")
    upper.set_xlim(alphas[0] / 1.7, alphas[-1] * 1.7)
    upper.set_ylim(0, None)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    upper.set_ylabel("Positions")
    if violations:
        lower.vlines(alphas, 0, violations, color=VIOLATION, lw=2.5)
        lower.plot(alphas, violations, "o", color=VIOLATION, ms=3.5)
        for alpha, count in zip(alphas, violations, strict=True):
            offset: dict[str, Any] = {
                "textcoords": "offset points",
                "ha": "center",
                "va": "bottom",
                "size": 7,
            }
            lower.annotate(f"{count:,}", (alpha, count), (0, 3), **offset)
        lower.set_ylabel("Violations")
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        lower.set_ylim(0, max(1, 1.3 * max(violations)))
    if selected in alphas:
        upper.axvline(selected, color=MUTED, lw=0.9, ls=(0, (1, 1.5)), label=f"alpha = {selected:g}")
    lower.xaxis.set_major_locator(LogLocator(10))
    lower.xaxis.set_major_formatter(FuncFormatter(_power))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.set_xlabel("alpha (log scale)")
    title = add_legend(figure, upper, f"Certification over alpha: {data.selection}", 4)
    ends = "; ".join(
        f"alpha {level['alpha']:g}: {percent(level['certified'], 1)} certified, "
        f"{percent(level['certified_accuracy'], 1)} certified and right"
        for level in (levels[0], levels[-1])
    )
    worst = f"Up to {plural(max(violations), 'violation')}." if violations else "Violations were not counted."
    own = "a transfer model with the rows that this alpha selects"
    same = f"the Partial Transfer model, the same at every alpha, with the rows of the {data.selection},"
    by = own if any(level.get("transferred") is not None for level in levels) else same
    checked = (
        f"Below: violations, certified positions at which {by} predicts another token."
        if violations
        else "No transfer model was run, so whether one agrees is not known."
    )
    return Picture(
        "certificate",
        title,
        f"Two curves over alpha. {ends}. {worst}",
        f"Next-token predictions of the embed-tuned model at {result['positions']:,} positions of "
        f"{plural(result['sentences'], 'held-out sentence')}. A position is certified at alpha when half the "
        "margin between its two largest probabilities exceeds tau(alpha); dashed: the share of positions "
        f"that the model predicts right at all. {checked}",
        figure,
    )


def _power(value: float, _: int | None = None) -> str:
    if value >= 0.001:
        return f"{value:g}"
    return "10⁻" + str(round(-math.log10(value))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _bar(
    axes: Axes,
    y: float,
    height: float,
    value: float | None,
    bounds: Sequence[float] | None,
    colour: str,
    digits: int,
    *,
    hollow: bool = False,
) -> None:
    if value is None or not math.isfinite(value):
        axes.annotate("not measured", (0, y), (3, 0), textcoords="offset points", va="center", size=7)
        return
    axes.barh(y, value, height, color=PAPER if hollow else colour, edgecolor=colour, lw=0.9)
    end = value
    if bounds:
        if not hollow:  # a halo, so that the line is seen on a dark bar
            axes.hlines(y, bounds[0], bounds[1], color=PAPER, lw=2.6)
        axes.hlines(y, bounds[0], bounds[1], color=INK, lw=1)
        end = max(value, bounds[1])
    axes.annotate(number(value, digits), (end, y), (3, 0), textcoords="offset points", va="center", size=7)
