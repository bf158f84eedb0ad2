"""The figures of a comparison: score against rows, tickets against alpha and steps, overlaps, D by frequency rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from kslottery_fast.lab.experiment.evidence import Evidence

from .picture import DOTS, INK, MODEL_COLOURS, MUTED, TICKET, WIDTH, Picture, add_title, style
from .report_data import plural

SERIES = {  # arms whose size can grow, with colour and marker; labels tell them apart too
    "partial": ("Partial Tuning (KS)", TICKET, "o"),
    "frequency": ("Frequency Tuning", MODEL_COLOURS["frequency_tuning"], "s"),
    "random": ("Random rows", MODEL_COLOURS["random_tuning"], "v"),
    "l2": ("L2 shift", "#6a51a3", "D"),
    "gradient": ("Gradient", "#b8860b", "P"),
    "transfer": ("Partial Transfer (KS)", MODEL_COLOURS["partial_transfer"], "^"),
    "lora": ("LoRA", INK, "x"),
    "prefix": ("Prefix Tuning", MUTED, "+"),
}


def pictures(summary: Mapping[str, Any], evidence: Mapping[str, Evidence]) -> list[Picture]:
    """All figures, language by language; ``evidence`` is that of the first seed of each."""
    found = []
    with style():
        for code, language in summary["languages"].items():
            found += [
                score_by_rows(code, language),
                ticket_counts(code, language),
                d_by_rank(code, language["name"], evidence[code], language["tickets"]),
                heat_map(
                    f"selectors-{code}",
                    f"Overlap of selectors, {language['name']}",
                    language["tickets"]["overlap_of_selectors"],
                    f"Jaccard overlap of the first {language['tickets']['overlap_of_selectors']['rows']} rows of each "
                    "selector: shared over all rows, mean over training seeds. 1: the same rows.",
                ),
            ]
        if "language_overlap" in summary:
            found.append(
                heat_map(
                    "languages",
                    "Overlap of the tickets of languages",
                    summary["language_overlap"],
                    f"Jaccard overlap of the {summary['language_overlap']['of']} of two languages with the same "
                    "training seed, mean over seeds.",
                )
            )
    return found


def score_by_rows(code: str, language: Mapping[str, Any]) -> Picture:
    """NLL and BLEU on the first line against the number of rows, or of as many trained numbers."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms, d = language["arms"], language["tickets"]["dimension"]
    for axes, metric in ((left, "nll"), (right, "bleu_first_line")):
        for name, (label, colour, marker) in SERIES.items():
            shown = [(_size(arm, d), arm["scores"][metric]) for spec, arm in arms.items() if _is(spec, name, arm, d)]
            points = sorted(shown, key=lambda point: point[0])
            if points:
                x = [size for size, _ in points]
                y = np.array([[found["value"], found["low"], found["high"]] for _, found in points])
                errors = np.abs(y[:, 1:] - y[:, :1]).T
                axes.errorbar(
                    x, y[:, 0], errors, color=colour, marker=marker, ms=4, lw=1.1, elinewidth=0.8, label=label
                )
        for spec, words, dashes in (("untuned", "untuned", (0, (1, 1.5))), ("embed", "Embed Tuning", (0, (4, 2)))):
            axes.axhline(arms[spec]["scores"][metric]["value"], color=MUTED, lw=0.9, ls=dashes, label=words)
        axes.set_xscale("log")
        sizes = sorted({_size(arm, d) for spec, arm in arms.items() if spec.startswith(("partial", "frequency"))} - {0})
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Rows, or trained numbers over d (log scale)")
    left.set_title("← NLL per token, lower is better", weight="normal")
    right.set_title("BLEU first line, higher is better →", weight="normal")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    title = add_title(figure, f"Score against the number of rows, {language['name']}")
    return Picture(
        f"scores-{code}",
        title,
        f"Two panels with a curve for each way to choose rows, {plural(len(arms), 'arm')} in all.",
        "Score on held-out pairs against the number of rows that an arm trains or copies; LoRA and Prefix Tuning stand "
        "where as many numbers would be rows. Bars: 95 % intervals over sentences and seeds, of each arm alone; "
        "those of differences are narrower (see the table).",
        figure,
    )


def _is(spec: str, name: str, arm: Mapping[str, Any], d: int) -> bool:
    return spec.partition("@")[0] == name and ":" not in spec and _size(arm, d) > 0


def _size(arm: Mapping[str, Any], d: int) -> float:
    """Rows of an arm, mean over seeds; for an adapter its trained numbers over d."""
    rows = [row for row in arm["rows"] if row is not None]
    return fmean(rows) if len(rows) == len(arm["rows"]) else fmean(arm["trained_parameters"]) / d


def ticket_counts(code: str, language: Mapping[str, Any]) -> Picture:
    """How many rows the test selects, against alpha and against steps."""
    tickets = language["tickets"]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, [entry["alpha"] for entry in tickets["by_alpha"]], [e["counts"] for e in tickets["by_alpha"]])
    _curves(right, [entry["step"] for entry in tickets["by_steps"]], [e["counts"] for e in tickets["by_steps"]])
    left.set_xscale("log")
    # Matplotlib's own labels of a log axis are formulas, which our texts are not read as (_STYLE in picture.py).
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.axvline(tickets["alpha"], color=MUTED, lw=0.9, ls=(0, (1, 1.5)))
    left.set_xlabel(f"alpha (log scale; dotted: {tickets['alpha']:g})")
    right.set_xlabel(f"Updates of Embed Tuning (alpha = {tickets['alpha']:g})")
    left.set_ylabel("Tickets")
    title = add_title(figure, f"The number of tickets, {language['name']}")
    last = tickets["by_steps"][-1]["counts"]
    return Picture(
        f"tickets-{code}",
        title,
        f"Tickets rise with alpha and with the number of updates; after the last update {min(last)} to {max(last)}.",
        "How many rows the KS test selects: left against alpha after the last update, right on the way at the alpha of "
        "this comparison. One line for each training seed. The number is a property of alpha, learning rate and steps "
        "together.",
        figure,
    )


def _curves(axes: Axes, x: Sequence[float], counts: Sequence[Sequence[int]]) -> None:
    for seed in zip(*counts, strict=True):
        axes.plot(x, seed, color=TICKET, marker="o", ms=3, lw=1, alpha=0.75)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def d_by_rank(code: str, name: str, evidence: Evidence, tickets: Mapping[str, Any]) -> Picture:
    """D of every active row by the frequency rank of its token."""
    order = np.argsort(-evidence.frequency.numpy(), kind="stable")
    d = evidence.counts.numpy()[order] / evidence.dimension
    chosen = np.isin(evidence.token_ids.numpy()[order], [ticket["token_id"] for ticket in tickets["list"]])
    rank = np.arange(1, len(d) + 1)
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        rank[~chosen], d[~chosen], s=5, color=DOTS, alpha=0.7, linewidths=0, label="other rows", rasterized=True
    )
    axes.scatter(rank[chosen], d[chosen], s=14, color=TICKET, linewidths=0, label="tickets")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(0, None)
    axes.set_xlabel("Frequency rank of the token in the training corpus (log scale)")
    axes.set_ylabel("KS statistic D")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    title = add_title(figure, f"D by frequency rank, {name}")
    shared = int(chosen[: chosen.sum()].sum())
    words = f"{shared} of {plural(int(chosen.sum()), 'ticket')} are among as many most frequent tokens."
    return Picture(
        f"rank-{code}",
        title,
        f"Scatter plot of D against frequency rank. {words}",
        f"Every row of the active vocabulary, first training seed. {words}",
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
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", size=7, color="#ffffff" if value > 0.55 else "#1f2328"
            )
    return Picture(
        name,
        add_title(figure, title),
        "Matrix of overlaps: "
        + "; ".join(
            f"{names[i]} and {names[j]} {matrix[i, j]:.2f}" for i in range(len(names)) for j in range(i + 1, len(names))
        )
        + ".",
        caption,
        figure,
    )
