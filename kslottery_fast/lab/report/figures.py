"""The figures of an experiment: scores, sizes, tickets, overlaps, certificate; those of the rows are next door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from .picture import (
    INK,
    MUTED,
    PAPER,
    RIGHT,
    TICKET,
    VIOLATION,
    WIDTH,
    Picture,
    add_legend,
    add_title,
    colour_of,
    style,
)
from .row_figures import MovedRows, ecdf, frequency, histogram
from .words import arm_label, is_plain, number, percent, plural, selection_of

SERIES = {  # arms whose size can grow, with their marker; labels tell them apart too
    "partial": ("Partial Tuning (KS)", "o"),
    "frequency": ("Frequency Tuning", "s"),
    "random": ("Random rows", "v"),
    "l2": ("L2 shift", "D"),
    "gradient": ("Gradient", "P"),
    "transfer": ("Partial Transfer (KS)", "^"),
    "lora": ("LoRA", "x"),
    "prefix": ("Prefix Tuning", "+"),
}
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 1.5))
_NOTE: dict[str, Any] = {"textcoords": "offset points", "size": 7}


def pictures(summary: Mapping[str, Any], rows: Mapping[str, MovedRows]) -> list[Picture]:
    """All figures that have something to show, language by language; ``rows``: of the first seed of each.

    A plain run has those of its models and of its tickets; the others are about several arms, seeds or languages.
    """
    plain, found = is_plain(summary), []
    with style():
        for code, language in summary["languages"].items():
            selection, moved = selection_of(summary, code), rows[code]
            found.append(scores(code, language, f": {selection}" if plain else f", {language['name']}"))
            if not plain:
                found += [sizes(code, language)] if _several_sizes(language) else []
                found.append(ticket_counts(code, language))
            found += [histogram(code, moved), frequency(code, moved)]
            if moved.shifts:
                found.append(ecdf(code, moved))
            if not plain:
                overlap = language["tickets"]["overlap_of_selectors"]
                caption = (
                    f"Jaccard overlap of the first {overlap['rows']} rows of each selector: shared over all rows, mean "
                    "over training seeds. 1: the same rows."
                )
                title = f"Overlap of selectors, {language['name']}"
                found.append(heat_map(f"selectors-{code}", title, overlap, caption))
            found.append(certificate(code, language, selection))
        if "language_overlap" in summary:
            overlap = summary["language_overlap"]
            caption = (
                f"Jaccard overlap of the {overlap['of']} of two languages with the same training seed, mean over seeds."
            )
            found.append(heat_map("languages", "Overlap of the tickets of languages", overlap, caption))
    return found


def scores(code: str, language: Mapping[str, Any], of: str) -> Picture:
    """NLL and BLEU of all arms side by side, with intervals."""
    arms = language["arms"]
    figure = Figure(figsize=(WIDTH, 0.95 + 0.36 * len(arms)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.15])
    for row, (spec, arm) in enumerate(arms.items()):
        colour, found = colour_of(spec), arm["scores"]
        _bar(left, row, 0.62, found["nll"], colour, 2)
        _bar(right, row - 0.19, 0.34, found["bleu_first_line"], colour, 1)
        _bar(right, row + 0.19, 0.34, found["bleu_raw"], colour, 1, hollow=True)
    labels = {spec: arm_label(spec, arm) for spec, arm in arms.items()}
    left.set_yticks(np.arange(len(arms)), list(labels.values()))
    left.set_ylim(len(arms) - 0.4, -0.6)  # the first arm on top
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
    tight: dict[str, Any] = {"borderpad": 0, "borderaxespad": 0.5, "handlelength": 1.2, "columnspacing": 1.2}
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **tight)
    columns = (("NLL", "nll", 2), ("BLEU first line", "bleu_first_line", 1), ("raw", "bleu_raw", 1))
    values = "; ".join(
        f"{labels[spec]}: "
        + ", ".join(f"{word} {number(arm['scores'][name]['value'], n)}" for word, name, n in columns)
        for spec, arm in arms.items()
    )
    rows = f"rows tuned or copied{of}, as many in the controls. " if of.startswith(":") else ""
    over = "sentences and training seeds" if len(language["certificates"]) > 1 else "sentences"
    return Picture(
        f"scores-{code}",
        add_title(figure, f"NLL and BLEU on held-out pairs{of}"),
        f"Bars with intervals. {values}.",
        f"All models on the same held-out pairs{'; ' + rows if rows else '. '}Left: negative log likelihood of a "
        "target token. Right: BLEU on the first line of each output (filled) and on the whole output (outlined), in "
        "which a model that does not know where to stop loses. Lines across the ends: 95 % bootstrap intervals over "
        f"{over}.",
        figure,
    )


def _bar(
    axes: Axes, y: float, height: float, found: Mapping[str, float], colour: str, digits: int, *, hollow: bool = False
) -> None:
    value, bounds = found["value"], (found["low"], found["high"])
    axes.barh(y, value, height, color=PAPER if hollow else colour, edgecolor=colour, lw=0.9)
    if not hollow:  # a halo, so that the line is seen on a dark bar
        axes.hlines(y, *bounds, color=PAPER, lw=2.6)
    axes.hlines(y, *bounds, color=INK, lw=1)
    axes.annotate(number(value, digits), (max(value, bounds[1]), y), (3, 0), va="center", **_NOTE)


def sizes(code: str, language: Mapping[str, Any]) -> Picture:
    """NLL and BLEU on the first line against the number of rows, or of as many trained numbers."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms, d = language["arms"], language["tickets"]["dimension"]
    for axes, metric in ((left, "nll"), (right, "bleu_first_line")):
        for name, (label, marker) in SERIES.items():
            shown = [(_size(arms[spec], d), arms[spec]["scores"][metric]) for spec in _series(name, arms, d)]
            points = sorted(shown, key=lambda point: point[0])
            if points:
                x = [size for size, _ in points]
                y = np.array([[found["value"], found["low"], found["high"]] for _, found in points])
                look: dict[str, Any] = {"color": INK if name == "lora" else colour_of(name), "marker": marker}
                errors = np.abs(y[:, 1:] - y[:, :1]).T
                axes.errorbar(x, y[:, 0], errors, ms=4, lw=1.1, elinewidth=0.8, label=label, **look)
        for spec, words, dashes in (("untuned", "untuned", _DOTTED), ("embed", "Embed Tuning", _DASHED)):
            axes.axhline(arms[spec]["scores"][metric]["value"], color=MUTED, lw=0.9, ls=dashes, label=words)
        axes.set_xscale("log")
        ticks = sorted({_size(arms[spec], d) for name in ("partial", "frequency") for spec in _series(name, arms, d)})
        axes.set_xticks(ticks, [f"{size:,.0f}" for size in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Rows, or trained numbers over d (log scale)")
    left.set_title("← NLL per token, lower is better", weight="normal")
    right.set_title("BLEU first line, higher is better →", weight="normal")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Picture(
        f"sizes-{code}",
        add_title(figure, f"Score against the number of rows, {language['name']}"),
        f"Two panels with a curve for each way to choose rows, {plural(len(arms), 'arm')} in all.",
        "Score on held-out pairs against the number of rows that an arm trains or copies; LoRA and Prefix Tuning stand "
        "where as many numbers would be rows. Bars: 95 % intervals over sentences and seeds, of each arm alone; "
        "those of differences are narrower (see the table).",
        figure,
    )


def _series(name: str, arms: Mapping[str, Any], d: int) -> list[str]:
    """The arms of a curve: all sizes, at the arm's own learning rate."""
    return [spec for spec in arms if spec.partition("@")[0] == name and ":" not in spec and _size(arms[spec], d) > 0]


def _size(arm: Mapping[str, Any], d: int) -> float:
    """Rows of an arm, mean over seeds; for an adapter its trained numbers over d."""
    rows = [row for row in arm["rows"] if row is not None]
    return fmean(rows) if len(rows) == len(arm["rows"]) else fmean(arm["trained_parameters"]) / d


def _several_sizes(language: Mapping[str, Any]) -> bool:
    arms, d = language["arms"], language["tickets"]["dimension"]
    return len({_size(arms[spec], d) for name in SERIES for spec in _series(name, arms, d)}) > 1


def ticket_counts(code: str, language: Mapping[str, Any]) -> Picture:
    """How many rows the test selects, against alpha and against steps."""
    tickets = language["tickets"]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, x, entries in ((left, "alpha", tickets["by_alpha"]), (right, "step", tickets["by_steps"])):
        for seed in zip(*(entry["counts"] for entry in entries), strict=True):
            axes.plot([entry[x] for entry in entries], seed, color=TICKET, marker="o", ms=3, lw=1, alpha=0.75)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    left.set_xscale("log")
    # Matplotlib's own labels of a log axis are formulas, which our texts are not read as (_STYLE in picture.py).
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.axvline(tickets["alpha"], color=MUTED, lw=0.9, ls=_DOTTED)
    left.set_xlabel(f"alpha (log scale; dotted: {tickets['alpha']:g})")
    right.set_xlabel(f"Updates of Embed Tuning (alpha = {tickets['alpha']:g})")
    left.set_ylabel("Tickets")
    last = tickets["by_steps"][-1]["counts"]
    return Picture(
        f"tickets-{code}",
        add_title(figure, f"The number of tickets, {language['name']}"),
        f"Tickets rise with alpha and with the number of updates; after the last update {min(last)} to {max(last)}.",
        "How many rows the KS test selects: left against alpha after the last update, right on the way at the alpha of "
        "this comparison. One line for each training seed. The number is a property of alpha, learning rate and steps "
        "together.",
        figure,
    )


def heat_map(name: str, title: str, overlap: Mapping[str, Any], caption: str) -> Picture:
    """A matrix of overlaps between 0 and 1, each with its number."""
    names, matrix = overlap["names"], np.array(overlap["matrix"])
    size = 1.6 + 0.55 * len(names)
    figure = Figure(figsize=(min(WIDTH, 1.2 + size), size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Greys", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    look: dict[str, Any] = {"ha": "center", "va": "center", "size": 7}
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.2f}", color="#ffffff" if value > 0.55 else "#1f2328", **look)
    pairs = ((i, j) for i in range(len(names)) for j in range(i + 1, len(names)))
    listed = "; ".join(f"{names[i]} and {names[j]} {matrix[i, j]:.2f}" for i, j in pairs)
    return Picture(name, add_title(figure, title), f"Matrix of overlaps: {listed}.", caption, figure)


def certificate(code: str, language: Mapping[str, Any], selection: str) -> Picture:
    """Share of certified predictions, certified accuracy, and violations counted, over alpha; of the first seed."""
    result, alpha = next(iter(language["certificates"].values())), language["selection"]["alpha"]
    levels = sorted(result["levels"], key=lambda level: level["alpha"])
    alphas, violations = ([level[key] for level in levels] for key in ("alpha", "violations"))
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    upper.axhline(result["accuracy"], label="right, certified or not", color=MUTED, lw=0.9, ls=_DASHED)
    look: dict[str, Any] = {"ms": 3.5, "lw": 1.4}
    certified, right = ([level[key] for level in levels] for key in ("certified", "certified_accuracy"))
    upper.plot(alphas, certified, color=INK, marker="o", label="certified", **look)
    upper.plot(alphas, right, color=RIGHT, marker="s", label="certified and right", **look)
    upper.set_xscale("log")
    upper.set_xlim(alphas[0] / 1.7, alphas[-1] * 1.7)
    upper.set_ylim(0, None)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    upper.set_ylabel("Positions")
    lower.vlines(alphas, 0, violations, color=VIOLATION, lw=2.5)
    lower.plot(alphas, violations, "o", color=VIOLATION, ms=3.5)
    for level, count in zip(alphas, violations, strict=True):
        lower.annotate(f"{count:,}", (level, count), (0, 3), ha="center", va="bottom", **_NOTE)
    lower.set_ylabel("Violations")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.set_ylim(0, max(1, 1.3 * max(violations)))
    upper.axvline(alpha, color=MUTED, lw=0.9, ls=_DOTTED, label=f"alpha = {alpha:g}")
    lower.xaxis.set_major_locator(LogLocator(10))
    lower.xaxis.set_major_formatter(FuncFormatter(_power))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.set_xlabel("alpha (log scale)")
    ends = "; ".join(
        f"alpha {level['alpha']:g}: {percent(level['certified'], 1)} certified, "
        f"{percent(level['certified_accuracy'], 1)} certified and right"
        for level in (levels[0], levels[-1])
    )
    return Picture(
        f"certificate-{code}",
        add_legend(figure, upper, f"Certification over alpha: {selection}", 4),
        f"Two curves over alpha. {ends}. Up to {plural(max(violations), 'violation')}.",
        f"Next-token predictions of the embed-tuned model at {result['positions']:,} positions of "
        f"{plural(result['sentences'], 'held-out sentence')}. A position is certified at alpha when half the "
        "margin between its two largest probabilities exceeds tau(alpha); dashed: the share of positions "
        "that the model predicts right at all. Below: violations, certified positions at which a transfer model with "
        "the rows that this alpha selects predicts another token.",
        figure,
    )


def _power(value: float, _: int | None = None) -> str:
    if value >= 0.001:
        return f"{value:g}"
    return "10⁻" + str(round(-math.log10(value))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
