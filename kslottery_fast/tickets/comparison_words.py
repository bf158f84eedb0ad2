"""A comparison of two tables in a few sentences."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison_result import TableComparison

STATUS_WORDS = {
    "identical": "identical",
    "reordered": "the same numbers in another order",
    "moved": "moved but not significant",
    "significant": "significant",
    "new": "new",
    "gone": "gone",
}
"""What a status is called in a sentence."""
_LISTED = 6  # classes in a line


def summary_lines(found: "TableComparison") -> list[str]:
    """Say what became of the rows, and what that tells about the training. Each line is a sentence or two."""
    lines = [_counts(found), reading(found)]
    changed = found.medians()
    if (l2 := changed["median_l2"]) is not None:
        relative, cosine = changed["median_relative_l2"], changed["median_cosine"]
        norm = "" if relative is None else f" ({share_text(relative)} of the norm of the row)"
        angle = "" if cosine is None else f", cosine {cosine:.4g}"
        lines.append(f"Medians of the changed rows: L2 shift {l2:.4g}{norm}, D {changed['median_d']:.4f}{angle}.")
    if found.tokens is not None and found.changed:
        lines += _class_lines(found)
    return [line for line in lines if line]


def reading(found: "TableComparison") -> str:
    """Say what the identical rows tell about the training. Empty if there are no rows to compare."""
    rows, numbers = len(found.counts), found.numbers
    if rows == 0:
        return ""
    if numbers["identical"] == rows:
        what = "output head" if found.table == "output" else "embedding"
        return f"No row moved: the {what} was frozen, or both are the same model."
    if numbers["moved"] == numbers["significant"] == 0:
        few = numbers["reordered"]
        return (
            f"No value changed, but {few:,} row{' holds its' if few == 1 else 's hold their'} values in another order: "
            "look for permuted columns."
        )
    if numbers["identical"] == 0:
        return (
            "Every row changed, so this does not tell which tokens the training data had. Weight decay, a tied output "
            "head, quantization and a conversion to another dtype change rows that the data lacks."
        )
    few = numbers["identical"]
    return (
        f"The training never touched the {few:,} identical row{'' if few == 1 else 's'}: the data has no such token, "
        "or its updates were smaller than the rounding of the table."
    )


def _counts(found: "TableComparison") -> str:
    V = len(found)
    parts = [
        f"{number:,} {STATUS_WORDS[status]} ({share_text(number / V)})"
        for status, number in found.numbers.items()
        if number
    ]
    return f"{V:,} rows of {found.dimension:,} numbers: {', '.join(parts) or 'nothing to compare'}."


def _class_lines(found: "TableComparison") -> list[str]:
    """Which classes of tokens changed, and which the training left alone."""
    classes = [each for each in found.by_class() if each.rows > each.new + each.gone]
    changed = [
        f"{each.name} {each.changed:,} of {each.rows - each.new - each.gone:,}" for each in classes if each.changed
    ]
    untouched = [f"{each.name} ({each.rows - each.new - each.gone:,})" for each in classes if not each.changed]
    lines = [f"Changed tokens by class: {_some(changed)}."]
    if untouched:
        lines.append(f"Classes without a changed token: {_some(untouched)}.")
    return lines


def share_text(share: float) -> str:
    """Return a share with three digits, which is never rounded to 0% or 100% if it is neither.

    Examples
    --------
    >>> share_text(0.125), share_text(0.99999), share_text(1e-7), share_text(1)
    ('12.5%', 'over 99.9%', 'under 0.001%', '100%')
    """
    text = f"{100 * share:.3g}%"
    if share < 1 and text == "100%":
        return "over 99.9%"
    return text if share >= 1e-5 or share == 0 else "under 0.001%"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
