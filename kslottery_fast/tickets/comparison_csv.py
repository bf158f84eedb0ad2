"""All rows of a comparison as CSV."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison_result import TableComparison

_ABOUT = ("token", "class", "leading_space")
_NUMBERS = ("statistic", "pvalue", "log_pvalue", "l2", "relative_l2", "cosine")


def csv_text(found: "TableComparison") -> str:
    """Return a line for each row, by token id. A number that does not exist is an empty field."""
    headings = ["token_id", *(_ABOUT if found.tokens else ()), "status", "count", *_NUMBERS]
    return "".join(",".join(fields) + "\n" for fields in [headings, *_lines(found)])


def _lines(found: "TableComparison") -> Iterator[list[str]]:
    columns = [getattr(found, name).tolist() for name in ("counts", *_NUMBERS)]
    tokens = found.tokens
    about = [] if tokens is None else [map(_quoted, tokens.texts), tokens.classes, map(_flag, tokens.leading_space)]
    for row, (status, *known_of) in enumerate(zip(found.statuses(), *about, strict=True)):
        shared = row < len(found.counts)
        numbers = [column[row] if shared else math.nan for column in columns]
        yield [str(row), *known_of, status, *("" if math.isnan(number) else str(number) for number in numbers)]


def _quoted(text: str | None) -> str:
    """A text in quotes. The csv module would leave a lone carriage return without them, and readers refuse that."""
    return "" if text is None else '"' + text.replace('"', '""') + '"'


def _flag(value: object) -> str:
    return str(int(bool(value)))
