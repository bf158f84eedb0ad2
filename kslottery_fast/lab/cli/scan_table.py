"""What ``kslottery scan`` prints: a line for each matrix that changed, and one for each kind of vector."""

from typing import TYPE_CHECKING

from kslottery_fast.base.visible import visible_name
from kslottery_fast.lab.report.words import compact, number, percent
from kslottery_fast.tickets.scan_shifts import TensorShift, counted, matrices

if TYPE_CHECKING:
    from rich.table import Table

    from kslottery_fast.tickets.scan_result import Scan


def show_scan(scan: "Scan") -> None:
    """Print the matrices that changed, by layer, the vectors, and what was not compared. Nothing depends on colour."""
    from rich.console import Console

    console = Console(highlight=False)
    changed = sum(shift.changed for shift in scan.tensors)
    console.print(f"{changed:,} of {matrices(len(scan.tensors))} changed", markup=False)
    table = _matrices(scan, console.width >= 100)
    if table.rows:
        console.print(table)
    if scan.vectors:
        moved = sum(each.changed_numbers > 0 for each in scan.vectors)
        console.print(f"{moved:,} of {counted(len(scan.vectors), 'vector', 'vectors')} changed", markup=False)
        vectors = _vectors(scan, console.width >= 100)
        if vectors.rows:
            console.print(vectors)
    for line in scan.legend():
        console.print(visible_name(line), markup=False, soft_wrap=True)


def _matrices(scan: "Scan", wide: bool) -> "Table":
    from rich.text import Text

    table = _table(wide)
    table.add_column("layer", justify="right")
    table.add_column("matrix", overflow="fold")
    reordered = any(shift.reordered_rows for shift in scan.tensors)
    headings = ["rows", "d", "changed\nrows", *(["other\norder"] if reordered else []), "signi-\nficant"]
    for heading in (*headings, "D mean", "D max", "D mean,\nchanged"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for shift in scan.tensors:
        if not (shift.changed or shift.nan_rows):
            continue
        place = shift.stack, shift.layer
        if previous not in (None, place):
            table.add_section()
        table.add_row(
            "" if shift.layer is None or place == previous else str(shift.layer),
            Text(_name(shift), style="bold" if shift.mark else ""),
            compact(shift.rows),
            str(shift.dimension),
            _rows(shift.changed_rows),
            *([_rows(shift.reordered_rows)] if reordered else []),
            "no test" if shift.significant_rows is None else percent(shift.significant_share, 1),
            *(number(value, 4) for value in (shift.mean_d, shift.max_d, shift.mean_d_changed)),
        )
        previous = place
    return table


def _name(shift: TensorShift) -> str:
    """The kind of a matrix with its mark, or of a 3-D tensor with the number of its slices that changed."""
    slices = "" if shift.slices is None else f"[{shift.changed_slices:,} of {shift.slices:,}]"
    return visible_name(" ".join(part for part in (shift.kind, shift.mark, slices) if part))


def _rows(count: int) -> str:
    return compact(count) if count else "–"


def _vectors(scan: "Scan", wide: bool) -> "Table":
    """A line for each kind of vector of which one changed."""
    from rich.text import Text

    table = _table(wide)
    table.add_column("vector", overflow="fold")
    for heading in ("changed", "relative L2,\nmean", "relative L2,\nlargest", "largest\ndifference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, shifts in scan.vectors_by_kind().items():
        moved = [shift for shift in shifts if shift.changed_numbers]
        if not moved:
            continue
        relative = [shift.relative_l2 for shift in moved if shift.relative_l2 is not None]
        table.add_row(
            Text(visible_name(kind)),
            f"{len(moved):,} of {len(shifts):,}",
            number(sum(relative) / len(relative) if relative else None, 4),
            number(max(relative, default=None), 4),
            f"{max(shift.max_abs for shift in moved):.3g}",
        )
    return table


def _table(wide: bool) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1 + wide, 0, 0))
