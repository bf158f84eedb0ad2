"""What a scan of two checkpoints found: how far the rows of each matrix moved."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = "kslottery-scan/1"
MARKS = {
    "*": "the input embedding",
    "+": "the output head",
    "*+": "the input embedding and the output head, tied",
}
"""What the marks of :attr:`TensorShift.mark` mean."""
_LISTED = 5  # names in a line of the legend


@dataclass(frozen=True)
class TensorShift:
    """How far the rows of one matrix moved.

    Attributes
    ----------
    name : str
        The name of the tensor.
    stack : str
        "encoder" or "decoder" in a model with two stacks of layers, else empty.
    layer : int, optional
        None outside the stack of layers.
    kind : str
        What the matrix is, such as ``self_attn.q_proj``. It is the same in every layer.
    rows, dimension : int
        The shape of the matrix. The ``dimension`` numbers of a row are one sample.
    embedding : bool
        Whether it is the input embedding.
    nan_rows : int
        Rows with NaN in either checkpoint. They count in no other attribute.
    inf_rows : int
        Rows with Inf and no NaN. Inf counts as a value, so these rows are tested like all others.
    changed_rows : int
        Rows with D > 0.
    significant_rows : int, optional
        Rows with p < alpha, each tested on its own. None if no row of d numbers can be significant.
    mean_d, max_d : float, optional
        The mean and the largest D of all rows. None if there are no rows.
    mean_d_changed : float, optional
        The mean D of the rows that changed. None if no row changed.
    head : bool
        Whether it is the table of the output head. In a tied model that is the input embedding.
    """

    name: str
    stack: str
    layer: int | None
    kind: str
    rows: int
    dimension: int
    embedding: bool
    nan_rows: int
    inf_rows: int
    changed_rows: int
    significant_rows: int | None
    mean_d: float | None
    max_d: float | None
    mean_d_changed: float | None
    head: bool = False

    @property
    def mark(self) -> str:
        """How a table shows that this is one of the two tables of tokens: "*" the input, "+" the output head."""
        return ("*" if self.embedding else "") + ("+" if self.head else "")

    @property
    def significant_share(self) -> float | None:
        """The share of significant rows among the rows without NaN. None if no row can be tested."""
        tested = self.rows - self.nan_rows
        return None if self.significant_rows is None or tested == 0 else self.significant_rows / tested


@dataclass(frozen=True)
class Scan:
    """How far the matrices of two checkpoints moved. :func:`scan_checkpoints` makes it.

    Attributes
    ----------
    before, after : str
        The paths of the checkpoints.
    alpha, method : float, str
        The test of each row.
    tensors : list of TensorShift
        The matrices in the order of the model.
    only_before, only_after : list of str
        Tensors that only one of the checkpoints has.
    other_shape, quantized : list of str
        Matrices that cannot be compared, since their shapes differ or they do not hold floats.
    not_2d : int
        The number of tensors that are not matrices, such as biases.
    notes : list of str
        Remarks, such as the reason why no matrix is marked as the input embedding.
    """

    before: str
    after: str
    alpha: float
    method: str
    tensors: list[TensorShift]
    only_before: list[str]
    only_after: list[str]
    other_shape: list[str]
    quantized: list[str]
    not_2d: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the scan as a dict, which JSON can hold, of the format ``kslottery-scan/1``."""
        content = {"format": FORMAT, **asdict(self)}
        for entry, tensor in zip(content["tensors"], self.tensors, strict=True):
            entry["significant_share"] = tensor.significant_share
        return content

    def to_csv(self) -> str:
        """Return the scan as CSV: a line for each tensor, a column for each attribute. None is an empty field."""
        buffer = io.StringIO()
        entries = self.to_json()["tensors"]
        writer = csv.DictWriter(buffer, list(entries[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        return buffer.getvalue()

    def legend(self) -> list[str]:
        """Return lines that explain the figures and say what was not compared."""
        lines = [
            f"significant: share of rows with p < {self.alpha:g}, each tested on its own; changed: rows with D > 0"
        ]
        found = [shift.mark for shift in self.tensors]
        lines += [f"{mark}: {meaning}" for mark, meaning in MARKS.items() if mark in found]
        if any(shift.significant_rows is None for shift in self.tensors):
            lines.append(f"no test: rows so short that none could reach p < {self.alpha:g}")
        for what, treated, field in (("NaN", "left out", "nan_rows"), ("Inf", "counted as values", "inf_rows")):
            bad = [(shift.name, rows) for shift in self.tensors if (rows := getattr(shift, field))]
            if bad:
                names = _some([f"{name} ({_count(rows, 'row', 'rows')})" for name, rows in bad])
                lines.append(f"WARNING: {what} in {matrices(len(bad))}, {treated}: {names}")
        lines += [f"note: {note}" for note in self.notes]
        skipped = {
            f"only in {self.before}": self.only_before,
            f"only in {self.after}": self.only_after,
            "of different shapes": self.other_shape,
            "not of floats (quantized?)": self.quantized,
        }
        lines += [f"not compared, {what}: {_some(names)}" for what, names in skipped.items() if names]
        if self.not_2d:
            lines.append(f"not compared, not matrices (biases, norms): {_count(self.not_2d, 'tensor', 'tensors')}")
        return lines

    def by_kind(self) -> dict[str, list[TensorShift]]:
        """Return the matrices of each kind, from all layers."""
        kinds: dict[str, list[TensorShift]] = {}
        for shift in self.tensors:
            kinds.setdefault(shift.kind, []).append(shift)
        return kinds


def mean_d(shifts: Sequence[TensorShift]) -> float | None:
    """Compute the mean D over the rows of several matrices. It is None if no matrix has one.

    Parameters
    ----------
    shifts : sequence of TensorShift

    Returns
    -------
    float or None
    """
    known = [(shift.mean_d, shift.rows - shift.nan_rows) for shift in shifts if shift.mean_d is not None]
    return sum(mean * rows for mean, rows in known) / sum(rows for _, rows in known) if known else None


def significant_share(shifts: Sequence[TensorShift]) -> float | None:
    """Compute the share of significant rows of several matrices. It is None if none could be tested.

    Parameters
    ----------
    shifts : sequence of TensorShift

    Returns
    -------
    float or None
    """
    tested = [shift for shift in shifts if shift.significant_share is not None]
    rows = sum(shift.rows - shift.nan_rows for shift in tested)
    return sum(shift.significant_rows or 0 for shift in tested) / rows if tested else None


def matrices(count: int) -> str:
    """Say a number of matrices in words."""
    return _count(count, "matrix", "matrices")


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
