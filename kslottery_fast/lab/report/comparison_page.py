"""The page of a comparison of two tables: one HTML file with its figure and tables, which loads nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup

from kslottery_fast.base.version import installed_version
from kslottery_fast.ks.significance import pvalue_of_log
from kslottery_fast.tickets.class_summary import ClassSummary
from kslottery_fast.tickets.comparison import STATUSES, TableComparison
from kslottery_fast.tickets.comparison_words import STATUS_WORDS, reading, share_text

from .comparison_figure import comparison_figure
from .page import assets, html_templates

MAX_ROWS = 2000
"""Rows in the table of the page. A browser sorts so many at once."""

_MEANING = {
    "identical": "Every number is equal in both tables.",
    "reordered": "The numbers are the same, but stand in another order. D cannot see this.",
    "moved": "Some number differs, but p is not below alpha.",
    "significant": "p is below alpha. These rows are the tickets of this test.",
    "new": "Only the table after has the row.",
    "gone": "Only the table before has the row.",
}


def comparison_page(found: TableComparison) -> str:
    """Render the page.

    Parameters
    ----------
    found : TableComparison

    Returns
    -------
    str
        HTML.
    """
    templates = html_templates()
    templates.filters |= {"log_p": pvalue_of_log, "share": share_text}
    picture = comparison_figure(found)
    svg = picture.svg()
    chosen = _largest(found)
    shown = found.changed + found.numbers["new"] + found.numbers["gone"]
    return templates.get_template("comparison.html.j2").render(
        found=found,
        reading=reading(found),
        lines=[line for line in found.summary().splitlines() if line != reading(found)],
        statuses=[(name, STATUS_WORDS[name], found.numbers[name], _MEANING[name]) for name in STATUSES],
        # A column of zeros would only make the table wider.
        columns=[name for name in STATUSES if found.numbers[name] or name in ("identical", "moved", "significant")],
        groups=_groups(found),
        picture=picture,
        svg=svg._replace(body=Markup(svg.body)),
        rows=_rows(found, chosen),
        left_out=shown - len(chosen),
        settings=_settings(found),
        next_table=itertools.count(1).__next__,
        version=installed_version(),
        **assets(templates),
    )


def _largest(found: TableComparison) -> list[int]:
    """The rows of the table: those of largest D first, then those of largest L2 shift, then new and gone ones."""
    codes = found.status_codes[: len(found.counts)]
    changed = torch.nonzero(codes != STATUSES.index("identical"))[:, 0]
    order = torch.sort(found.l2[changed], descending=True, stable=True).indices
    order = order[torch.sort(found.counts[changed][order], descending=True, stable=True).indices]
    rows = [*changed[order][:MAX_ROWS].tolist(), *range(len(found.counts), len(found))]
    return rows[:MAX_ROWS]


def _rows(found: TableComparison, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """What the table shows of each row. A number that does not exist is None."""
    names = {"statistic": found.statistic, "log_pvalue": found.log_pvalue}
    names |= {"l2": found.l2, "relative_l2": found.relative_l2, "cosine": found.cosine}
    tokens, shown = found.tokens, []
    for row in chosen:
        numbers = {name: float(values[row]) if row < len(values) else None for name, values in names.items()}
        about: dict[str, Any] = {"id": row, "status": found.status(row)}
        if tokens is not None:
            about |= {"token": tokens.texts[row], "class": tokens.classes[row]}
            about["space"] = bool(tokens.leading_space[row])
        shown.append(about | {name: value if value == value else None for name, value in numbers.items()})
    return shown


def _groups(found: TableComparison) -> list[tuple[str, str, list[ClassSummary]]]:
    """Tables of groups of tokens: the heading of the first column, a caption and the groups."""
    means = "The means are over all rows of a class that both tables have, identical ones included."
    groups = [
        ("Class", f"Rows by class of the token. {means}", found.by_class()),
        ("Text", "Tokens of letters, digits and punctuation, with a leading space and without.", None),
    ]
    return [(name, caption, found.by_leading_space() if each is None else each) for name, caption, each in groups]


def _settings(found: TableComparison) -> dict[str, Any]:
    smallest = f"{found.threshold_count / found.dimension:.4f} ({found.threshold_count}/{found.dimension})"
    return {
        "before": found.before,
        "after": found.after,
        "table": found.table,
        "rows before": found.rows_before,
        "rows after": found.rows_after,
        "numbers in a row": found.dimension,
        "alpha": found.alpha,
        "method": found.method,
        "correction": found.correction or "none",
        "smallest significant D": smallest if found.threshold_count <= found.dimension else "none can be significant",
    }
