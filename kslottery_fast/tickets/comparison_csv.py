"""All rows of a comparison as CSV."""

import csv
import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison_result import TableComparison

_ABOUT = ("token", "class", "leading_space")
_NUMBERS = ("statistic", "pvalue", "log_pvalue", "l2", "relative_l2", "cosine")


def csv_text(found: "TableComparison") -> str:
    """Return a line for each row, by token id. A number that does not exist is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["token_id", *(_ABOUT if found.tokens else ()), "status", "count", *_NUMBERS])
    writer.writerows(_lines(found))
    return buffer.getvalue()


def _lines(found: "TableComparison") -> Iterator[list[Any]]:
    columns = [getattr(found, name).tolist() for name in ("counts", *_NUMBERS)]
    tokens = found.tokens
    about = [] if tokens is None else [tokens.texts, tokens.classes, [int(each) for each in tokens.leading_space]]
    for row, status in enumerate(found.statuses()):
        known = row < len(found.counts)
        numbers = [column[row] if known else math.nan for column in columns]
        yield [
            row,
            *(column[row] for column in about),
            status,
            *("" if math.isnan(number) else number for number in numbers),
        ]
