"""The figures of an experiment: scores, sizes, numbers of tickets and overlaps; other modules have the rest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from . import picture
from .certificate_figure import certificate
from .contribution_figure import contributions
from .picture import INK, MUTED, NOTE, PAPER, TICKET, WIDTH, Picture, add_title, colour_of, panels
from .row_figures import MovedRows, ecdf, frequency, histogram
from .training_figures import Losses, costs, losses
from .words import arm_label, is_plain, number, plural

SERIES = {  # arms whose size can grow, with their marker; labels tell them apart too
    "partial": ("Partial Tuning (KS)", "o"),
    "frequency": ("Frequency Tuning", "s"),
    "random": ("Random rows", "v"),
    "l2": ("L2 shift", "D"),
    "gradient": ("Gradient", "P"),
    "contribution": ("Contribution", "*"),
    "transfer": ("Partial Transfer (KS)", "^"),
    "transfer-contribution": ("Contribution Transfer", "1"),
    "lora": ("LoRA", "x"),
    "prefix": ("Prefix Tuning", "+"),
}
_BLEU = ("bleu_first_line", "bleu_raw")


def pictures(
    summary: Mapping[str, Any], rows: Mapping[str, MovedRows], curves: Mapping[str, Losses] | None = None
) -> list[Picture]:
    """Draw all figures that have something to show, language by language.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``. A plain run has figures of its models and of its tickets. The others compare
        several arms, seeds or languages.
    rows : mapping
        By language: the rows with the first training seed.
    curves : mapping, optional
        By language: the losses of every arm with the first training seed.

    Returns
    -------
    list of Picture
        In the order of the page.
    """
    several, found = not is_plain(summary), []
    with picture.style():
        for code, language in summary["languages"].items():
            moved, of = rows[code], f", {language['name']}" if len(summary["languages"]) > 1 else ""
            found.append(scores(code, language, of))
            if several:
                points = itertools.chain(*_curves(language).values())
                found += [sizes(code, language, of)] if len({size for size, _ in points}) > 1 else []
            if trained := (curves or {}).get(code):
                found.append(losses(code, language, trained, of))
            found.append(costs(code, language, of))
            if several:
                found.append(ticket_counts(code, language, of))
            found += [histogram(code, moved, of), frequency(code, moved, of)]
            if moved.shifts:
                found.append(ecdf(code, moved, of))
            if (language.get("contributions") or {}).get("curves"):
                found.append(contributions(code, language, of))
            if several:
                overlap = language["tickets"]["overlap_of_selectors"]
                caption = (
                    f"Jaccard overlap of the first {overlap['rows']} rows of each selector (shared rows divided by all "
                    "rows), mean over training seeds. 1 means the same rows."
                )
                found.append(heat_map(f"selectors-{code}", f"Overlap of selectors{of}", overlap, caption))
            found.append(certificate(code, language, of))
        if overlap := summary.get("language_overlap"):
            caption = (
                f"Jaccard overlap of the {overlap['of']} of two languages with the same training seed, mean over seeds."
            )
            found.append(heat_map("languages", "Overlap of the tickets of languages", overlap, caption))
    return found


def scores(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw NLL and BLEU of all arms side by side, with intervals."""
    arms, values = language["arms"], []
    figure, (left, right) = panels(0.95 + 0.36 * len(arms), (1, 2), sharey=True, width_ratios=[1, 1.15])
    labels = [arm_label(spec, arm) for spec, arm in arms.items()]
    for row, (spec, arm) in enumerate(arms.items()):
        colour, nll, first, raw = colour_of(spec), *(arm["scores"][name] for name in ("nll", *_BLEU))
        _bar(left, row, 0.62, nll, colour, 2)
        _bar(right, row - 0.19, 0.34, first, colour, 1)
        _bar(right, row + 0.19, 0.34, raw, colour, 1, hollow=True)
        values.append(
            f"{labels[row]}: NLL {number(nll['value'], 2)}, BLEU first line {number(first['value'], 1)}, raw "
            f"{number(raw['value'], 1)}"
        )
    left.set_yticks(np.arange(len(arms)), labels)
    left.set_ylim(len(arms) - 0.4, -0.6)  # the first arm on top
    picture.lie_bars_down(left, right)
    for axes in (left, right):
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
    left.set_xlabel("NLL, nats per target token")
    right.set_xlabel("BLEU, 0 to 100")
    left.set_title("← lower is better", weight="normal")
    right.set_title("higher is better →", weight="normal")
    right.bar(0, 0, color=MUTED, label="first line")
    right.bar(0, 0, color=PAPER, edgecolor=MUTED, label="raw output")
    tight: dict[str, Any] = {"borderpad": 0, "borderaxespad": 0.5, "handlelength": 1.2, "columnspacing": 1.2}
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **tight)
    over = "sentences and training seeds" if len(language["certificates"]) > 1 else "sentences"
    return Picture(
        f"scores-{code}",
        add_title(figure, f"NLL and BLEU on held-out pairs{of}"),
        f"Bars with intervals. {'; '.join(values)}.",
        "All models are scored on the same held-out pairs. Left: negative log-likelihood of a target token. Right: "
        "BLEU on the first line of each output (filled) and on the whole output (outlined). The whole output scores "
        f"low if a model goes on after the answer. Lines across the ends are 95% bootstrap intervals over {over}.",
        figure,
    )


def _bar(
    axes: Axes, y: float, height: float, found: Mapping[str, float], colour: str, digits: int, *, hollow: bool = False
) -> None:
    value, bounds = found["value"], (found["low"], found["high"])
    axes.barh(y, value, height, color=PAPER if hollow else colour, edgecolor=colour, lw=0.9)
    if not hollow:  # a halo makes the line visible on a dark bar
        axes.hlines(y, *bounds, color=PAPER, lw=2.6)
    axes.hlines(y, *bounds, color=INK, lw=1)
    axes.annotate(number(value, digits), (max(value, bounds[1]), y), (3, 0), va="center", **NOTE)


def sizes(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw NLL and BLEU on the first line against the number of rows, or of as many trained numbers."""
    figure, (left, right) = panels(3.4, (1, 2))
    arms, curves = language["arms"], _curves(language)
    for axes, metric in ((left, "nll"), (right, "bleu_first_line")):
        for name, points in curves.items():
            (label, marker), found = SERIES[name], [arms[spec]["scores"][metric] for _, spec in points]
            y = np.array([[one["value"], one["low"], one["high"]] for one in found])
            errors = np.abs(y[:, 1:] - y[:, :1]).T
            look: dict[str, Any] = {"color": INK if name == "lora" else colour_of(name), "marker": marker, "ms": 4}
            axes.errorbar([size for size, _ in points], y[:, 0], errors, lw=1.1, elinewidth=0.8, label=label, **look)
        for spec, words, dashes in (("untuned", "untuned", picture.DOTTED), ("embed", "Embed Tuning", picture.DASHED)):
            axes.axhline(arms[spec]["scores"][metric]["value"], color=MUTED, lw=0.9, ls=dashes, label=words)
        axes.set_xscale("log")
        ticks = sorted({size for name in ("partial", "frequency", "contribution") for size, _ in curves.get(name, [])})
        axes.set_xticks(ticks, [f"{size:,.0f}" for size in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Rows, or trained numbers / d (log scale)")
    left.set_title("← NLL per token, lower is better", weight="normal")
    right.set_title("BLEU first line, higher is better →", weight="normal")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Picture(
        f"sizes-{code}",
        add_title(figure, f"Score by number of rows{of}"),
        f"Two panels with a curve for each way to choose rows, {plural(len(arms), 'arm')} in all.",
        "Score on held-out pairs by the number of rows that an arm trains or copies. LoRA and Prefix Tuning are placed "
        "at the number of rows that have as many trained numbers. Bars: 95% intervals over sentences and seeds, for "
        "each arm alone. Intervals of differences are narrower (see the table).",
        figure,
    )


def _curves(language: Mapping[str, Any]) -> dict[str, list[tuple[float, str]]]:
    """For each way to choose rows: size and spec of its arms at their own learning rate, the smallest first.

    The size is the mean number of rows over the seeds; for an adapter, its trained numbers divided by d.
    """
    curves: dict[str, list[tuple[float, str]]] = {name: [] for name in SERIES}
    for spec, arm in language["arms"].items():
        rows = [row for row in arm["rows"] if row is not None]
        numbers = fmean(arm["trained_parameters"]) / language["tickets"]["dimension"]
        size, name = fmean(rows) if len(rows) == len(arm["rows"]) else numbers, spec.partition("@")[0]
        if name in curves and ":" not in spec and size > 0:
            curves[name].append((size, spec))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items() if points}


def ticket_counts(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw how many rows the test selects, by alpha and by steps."""
    tickets = language["tickets"]
    figure, (left, right) = panels(2.9, (1, 2))
    for axes, x, entries in ((left, "alpha", tickets["by_alpha"]), (right, "step", tickets["by_steps"])):
        for seed in zip(*(entry["counts"] for entry in entries), strict=True):
            axes.plot([entry[x] for entry in entries], seed, color=TICKET, marker="o", ms=3, lw=1, alpha=0.75)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    left.set_xscale("log")
    # Matplotlib labels a log axis with formulas, but _STYLE in picture.py turns formulas off.
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.axvline(tickets["alpha"], color=MUTED, lw=0.9, ls=picture.DOTTED)
    left.set_xlabel(f"alpha (log scale; dotted: {tickets['alpha']:g})")
    right.set_xlabel(f"Updates of Embed Tuning (alpha = {tickets['alpha']:g})")
    left.set_ylabel("Tickets")
    last = tickets["by_steps"][-1]["counts"]
    return Picture(
        f"tickets-{code}",
        add_title(figure, f"Number of tickets{of}"),
        f"Number of tickets by alpha and by update; after the last update {min(last)} to {max(last)}.",
        "How many rows the KS test selects. Left: by alpha, after the last update. Right: during training, at the "
        "alpha of this comparison. There is one line for each training seed. The number depends on alpha, learning "
        "rate and steps together.",
        figure,
    )


def heat_map(name: str, title: str, overlap: Mapping[str, Any], caption: str) -> Picture:
    """Draw a matrix of overlaps between 0 and 1, each with its number."""
    names, matrix = overlap["names"], np.array(overlap["matrix"])
    size = 1.6 + 0.55 * len(names)
    figure, axes = panels(size, width=min(WIDTH, 1.2 + size))
    axes.imshow(matrix, cmap="Greys", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(matrix):
        colour = PAPER if value > 0.55 else INK
        axes.text(j, i, f"{value:.2f}", color=colour, ha="center", va="center", size=7)
    pairs = itertools.combinations(range(len(names)), 2)
    listed = "; ".join(f"{names[i]} and {names[j]} {matrix[i, j]:.2f}" for i, j in pairs)
    return Picture(name, add_title(figure, title), f"Matrix of overlaps: {listed}.", caption, figure)
