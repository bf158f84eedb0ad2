"""How far the tensors of two checkpoints moved: the rows of a matrix, and the numbers of a vector."""

from collections.abc import Sequence
from dataclasses import dataclass

MARKS = {
    "*": "the input embedding",
    "+": "the output head",
    "*+": "the input embedding and the output head, tied",
}
"""What the marks of :attr:`TensorShift.mark` mean."""


@dataclass(frozen=True)
class TensorShift:
    """How far the rows of one matrix moved, or those of the matrices in a 3-D tensor, such as the experts of a layer.

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
        The rows that both checkpoints have, and their length. The ``dimension`` numbers of a row are one sample.
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
    reordered_rows : int
        Rows that hold the same values in another order. D does not see this, so they count as rows with D = 0.
    new_rows, gone_rows : int
        Rows that only the second checkpoint has, or only the first. They count in no other attribute.
    name_after : str, optional
        The name in the second checkpoint, if that is another one.
    slices : int, optional
        The number of matrices in a 3-D tensor. None for a matrix.
    changed_slices : int, optional
        How many of them have a row that changed or was reordered.
    least_slice_d, most_slice_d : float, optional
        The mean D of the slice that moved least, and of the one that moved most.
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
    reordered_rows: int = 0
    new_rows: int = 0
    gone_rows: int = 0
    name_after: str | None = None
    slices: int | None = None
    changed_slices: int | None = None
    least_slice_d: float | None = None
    most_slice_d: float | None = None

    @property
    def changed(self) -> bool:
        """Whether any number of it is another one, or stands elsewhere in its row."""
        return self.changed_rows + self.reordered_rows > 0

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
class VectorShift:
    """How far the numbers of a tensor moved that has no rows to test: a norm, a bias, a scalar, a convolution.

    Attributes
    ----------
    name : str
        The name of the tensor.
    stack, layer, kind
        As for :class:`TensorShift`.
    shape : tuple of int
        The shape of the tensor.
    numbers : int
        How many numbers it has.
    changed_numbers : int
        How many of them changed.
    not_finite : int
        Numbers that are NaN or Inf in either checkpoint. They count in no other attribute.
    relative_l2 : float, optional
        The L2 norm of the change, divided by that of the tensor before. None if all numbers were 0 and some changed.
    max_abs : float
        The largest absolute difference of a number.
    name_after : str, optional
        The name in the second checkpoint, if that is another one.
    """

    name: str
    stack: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    numbers: int
    changed_numbers: int
    not_finite: int
    relative_l2: float | None
    max_abs: float
    name_after: str | None = None


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
    return counted(count, "matrix", "matrices")


def counted(count: int, one: str, many: str) -> str:
    """Say a number of things in words."""
    return f"{count:,} {one if count == 1 else many}"
