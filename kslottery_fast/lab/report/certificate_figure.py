"""The figure of a certificate: how much is certified over alpha, and how often the certificate was wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from . import picture
from .certified import level_at
from .picture import INK, MUTED, NOTE, RIGHT, VIOLATION, Picture, panels
from .words import percent, plural


def certificate(code: str, language: Mapping[str, Any], of: str = "") -> Picture:
    """Draw shares of certified predictions and numbers of violations over alpha, with the first training seed."""
    result, alpha = next(iter(language["certificates"].values())), language["selection"]["alpha"]
    levels = sorted(result["levels"], key=lambda level: level["alpha"])
    alphas, violations = ([level[key] for level in levels] for key in ("alpha", "violations"))
    figure, (upper, lower) = panels(3.7, (2, 1), sharex=True, height_ratios=[2.2, 1])
    upper.axhline(result["accuracy"], label="correct, certified or not", color=MUTED, lw=0.9, ls=picture.DASHED)
    for key, label, look in (
        ("certified", "certified", {"color": INK, "marker": "o"}),
        ("certified_accuracy", "certified and correct", {"color": RIGHT, "marker": "s"}),
    ):
        upper.plot(alphas, [level[key] for level in levels], ms=3.5, lw=1.4, label=label, **look)
    positions = result["positions"]
    by_reading = [level.get("read_positions") for level in levels]
    if None not in by_reading:
        shares = [count / positions for count in by_reading]
        upper.plot(alphas, shares, ms=3.5, lw=1.4, label="certified by reading", color=MUTED, marker="^")
    upper.set_xscale("log")
    upper.set_xlim(alphas[0] / 1.7, alphas[-1] * 1.7)
    upper.set_ylim(0, None)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="%"))
    upper.set_ylabel("Positions")
    lower.vlines(alphas, 0, violations, color=VIOLATION, lw=2.5)
    lower.plot(alphas, violations, "o", color=VIOLATION, ms=3.5)
    for level, count in zip(alphas, violations, strict=True):
        lower.annotate(f"{count:,}", (level, count), (0, 3), ha="center", va="bottom", **NOTE)
    lower.set_ylabel("Violations")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.set_ylim(0, max(1, 1.3 * max(violations)))
    upper.axvline(alpha, color=MUTED, lw=0.9, ls=picture.DOTTED, label=f"alpha = {alpha:g}")
    lower.xaxis.set_major_locator(LogLocator(10))
    lower.xaxis.set_major_formatter(_power)
    lower.xaxis.set_minor_locator(NullLocator())
    lower.set_xlabel("alpha (log scale)")
    ends = "; ".join(
        f"alpha {level['alpha']:g}: {percent(level['certified'], 1)} certified, "
        f"{percent(level['certified_accuracy'], 1)} certified and correct"
        for level in (levels[0], levels[-1])
    )
    last = (
        ""
        if None in by_reading
        else (
            " A position is certified by reading if it reads no row in which the models differ, which proves that they "
            "agree there."
        )
    )
    own = level_at(result, alpha)
    certified, wrong = (percent(own[key], 1) for key in ("certified", "wrong"))
    title = f"Certified{of}: {certified} at alpha = {alpha:g}, wrong at {wrong} of these"
    return Picture(
        f"certificate-{code}",
        picture.add_legend(figure, upper, title, 4),
        f"Two curves over alpha. {ends}. Up to {plural(max(violations), 'violation')}.",
        f"Next-token predictions of the embed-tuned model at {positions:,} positions of "
        f"{plural(result['sentences'], 'held-out sentence')}. A position is certified at alpha when half the margin "
        "between its two largest probabilities exceeds tau(alpha). The dashed line is the share of positions that the "
        "model predicts correctly, certified or not. Lower panel: violations, the certified positions at which the "
        f"model with the rows that this alpha selects predicts another token.{last}",
        figure,
    )


def _power(value: float, _: int | None = None) -> str:
    if value >= 0.001:
        return f"{value:g}"
    return "10⁻" + str(round(-math.log10(value))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
