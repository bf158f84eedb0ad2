"""The figure of contributions: how much of the loss's fall the first rows of each selector account for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from . import picture
from .contribution_facts import SELECTORS, TOLD, at, sentence
from .picture import MUTED, Picture, add_legend, colour_of, panels
from .words import percent

_LABELS = {
    "contribution": "largest contribution",
    "l2": "largest L2 shift",
    "gradient": "largest gradient",
    "frequency": "most frequent",
    "ks": "largest D (KS)",
}
_ARMS = {"ks": "partial"}  # the arm whose colour a selector has, if it is not of the same name
_DASHES = {"contribution": "-", "l2": (0, (6, 1.5)), "gradient": (0, (1, 1)), "frequency": (0, (4, 2)), "ks": "-"}


def contributions(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw the cumulative share of the loss's fall over the number of rows, with a curve for each selector."""
    found = language["contributions"]
    figure, axes = panels(3.3)
    for name in SELECTORS:
        curve, look = found["curves"][name], {"color": colour_of(_ARMS.get(name, name)), "ls": _DASHES[name]}
        marker = {"marker": "o", "ms": 3} if len(curve["rows"]) == 1 else {}
        axes.plot(curve["rows"], curve["share"], lw=1.5, label=_LABELS[name], **look, **marker)
    axes.axhline(1, color=MUTED, lw=0.8, ls=picture.DOTTED)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="%"))
    axes.set_xlabel("Rows, in the order of the selector (log scale)")
    axes.set_ylabel("Share of the loss's fall")
    mean = ", mean over training seeds" if len(found["total"]) > 1 else ""
    return Picture(
        f"contributions-{code}",
        add_legend(figure, axes, f"What the first rows of each selector account for{of}", 5),
        f"A curve for each selector over the number of rows. {_shares(found)}",
        f"{sentence(found)} The contribution of a row is the part of the fall that is attributed to its change by "
        "integrated gradients along the straight path between the two tables. Each curve adds up the contributions of "
        f"the rows that a selector takes first{mean}. A curve rises above 100% if the rows that it has not reached yet "
        f"raise the loss. Contributions are measured on {found['examples'][0]:,} training examples. They do not tell "
        "how well a model does in which these rows alone are trained or copied.",
        figure,
    )


def _shares(found: Mapping[str, Any]) -> str:
    parts = []
    for rows in TOLD:
        shares = [(name, at(found, name, rows)) for name in SELECTORS]
        told = [f"{_LABELS[name]} {percent(share)}" for name, share in shares if share is not None]
        parts += [f"{rows} rows: {', '.join(told)}."] if told else []
    return " ".join(parts)
