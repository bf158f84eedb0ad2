"""What the rows of Embed Tuning account for, in numbers and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the sentences need no torch
    from kslottery_fast.lab.experiment.cell import Cell

SHARES = (0.5, 0.8, 0.9, 0.95)
"""For which shares of the fall the number of rows is told."""

SELECTORS = ("contribution", "l2", "gradient", "frequency", "ks")
"""Whose rows the curves follow."""

TOLD = (18, 64, 200)
"""Numbers of rows at which the shares of the selectors are told."""

_POINTS = 80  # of a curve, apart from those that are told


def of_language(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Return what the rows account for.

    Parameters
    ----------
    cells : sequence of Cell
        Those of the language, one for each training seed, with measured contributions.

    Returns
    -------
    dict or None
        Lists have an entry for each seed. ``total`` is the sum of all contributions in nats per target token, and
        ``negative`` that of the negative ones. ``moved`` counts the rows that moved, ``examples`` the training
        examples. ``enough`` says for each share of ``total`` how many rows account for it. ``curves`` has for each
        selector the share that its first ``rows`` rows account for, mean over the seeds. None for ``enough`` and
        ``curves`` if there is no fall with some seed, since there are no shares of it then.
    """
    found = [cell.contributions for cell in cells]
    falls = all(one.total > 0 for one in found)
    return {
        "total": [one.total for one in found],
        "negative": [float(one.contribution.clamp(max=0).sum()) for one in found],
        "moved": [len(one) for one in found],
        "examples": [one.examples for one in found],
        "points": [len(one.points) for one in found],
        "enough": [{"share": s, "rows": [len(one.enough(s)) for one in found]} for s in SHARES] if falls else None,
        "curves": {name: _curve(cells, name) for name in SELECTORS} if falls else None,
    }


def _curve(cells: Sequence[Cell], selector: str) -> dict[str, list[float]]:
    from kslottery_fast.tickets.selectors import aligned, row_order

    shares = []
    for cell in cells:
        order = row_order(cell.evidence, selector, contributions=cell.contributions, seed=cell.seed)
        shares.append(aligned(cell.evidence, cell.contributions)[order].cumsum(0) / cell.contributions.total)
    most = min(map(len, shares))  # not every row is ranked by KS, and not with every seed the same number
    told = [k for k in TOLD if k <= most]
    rows = np.unique([*np.geomspace(1, most, _POINTS).round().astype(int), *told]).tolist() if most else []
    return {"rows": rows, "share": [fmean(float(one[k - 1]) for one in shares) for k in rows]}


def sentence(found: Mapping[str, Any]) -> str:
    """Say how many rows account for how much.

    Parameters
    ----------
    found : mapping
        What :func:`of_language` returns.

    Returns
    -------
    str

    Examples
    --------
    >>> enough = [{"share": 0.5, "rows": [15, 17]}, {"share": 0.95, "rows": [740, 740]}]
    >>> print(sentence({"total": [2.5, 2.4], "moved": [2543, 2543], "enough": enough}).partition(". ")[2])
    15 to 17 of the 2,543 rows account for 50% of this fall, and 740 for 95%.
    """
    amount = fmean(found["total"])
    if found["enough"] is None:
        return (
            f"The contributions of the rows that Embed Tuning moved sum to {amount:.3f} nats per token. The training "
            "loss does not fall, so no row accounts for a share of a fall."
        )
    (first, *rest), all_rows = found["enough"], _span(found["moved"])
    parts = [f"{_span(first['rows'])} of the {all_rows} rows account for {first['share']:.0%} of this fall"]
    parts += [f"{_span(one['rows'])} for {one['share']:.0%}" for one in rest]
    return (
        f"The rows that Embed Tuning moved lower the training loss by {amount:.3f} nats per token (sum of their "
        f"contributions). {', '.join(parts[:-1])}, and {parts[-1]}."
    )


def at(found: Mapping[str, Any], selector: str, rows: int) -> float | None:
    """Return the share that the first rows of a selector account for. None if its curve has no point there."""
    curve = found["curves"][selector]
    return dict(zip(curve["rows"], curve["share"], strict=True)).get(rows)


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
