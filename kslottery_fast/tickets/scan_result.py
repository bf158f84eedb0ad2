"""What a scan of two checkpoints found, and its file."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from typing_extensions import Self

from kslottery_fast.base.arguments import check_path, shown
from kslottery_fast.base.content import check_fields
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.base.options import ComparedRows

from .aligned import beginnings
from .scan_shifts import MARKS, TensorShift, VectorShift, counted, matrices

FORMAT = "kslottery-scan/2"
OLDER = "kslottery-scan/1"
"""The format of version 0.1, without vectors, 3-D tensors, other names and rows in another order."""
FILE = "scan.json"
_LISTED = 5  # names in a line of the legend
S = TypeVar("S", TensorShift, VectorShift)


@dataclass(frozen=True)
class Scan:
    """How far the tensors of two checkpoints moved. :func:`scan_checkpoints` makes it.

    Attributes
    ----------
    before, after : str
        The paths of the checkpoints.
    alpha, method : float, str
        The test of each row.
    tensors : list of TensorShift
        The matrices and 3-D tensors in the order of the model.
    only_before, only_after : list of str
        Tensors that only one of the checkpoints has.
    other_shape, quantized : list of str
        Tensors that cannot be compared, since their shapes differ, or matrices that do not hold floats.
    not_2d : int
        The number of other tensors that were not compared, such as vectors of integers.
    notes : list of str
        Remarks, such as the reason why no matrix is marked as the input embedding.
    vectors : list of VectorShift
        All other tensors of floats, such as norms and biases, in the order of the model.
    renamed : dict of str to str
        The names in ``after`` of the tensors that have another one there.
    rows : {"all", "shared"}
        What was done about matrices of different heights.
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
    vectors: list[VectorShift] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    rows: ComparedRows = "all"

    def to_json(self) -> dict[str, Any]:
        """Return the scan as a dict, which JSON can hold, of the format ``kslottery-scan/2``."""
        content = {"format": FORMAT, **asdict(self)}
        for entry, tensor in zip(content["tensors"], self.tensors, strict=True):
            entry["significant_share"] = tensor.significant_share
        for entry in content["vectors"]:
            entry["shape"] = list(entry["shape"])
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Make a scan from what :meth:`to_json` returned, also that of version 0.1.

        Parameters
        ----------
        content : dict

        Returns
        -------
        Scan

        Raises
        ------
        InputError
            It is something else. The message says what is missing or unknown.
        """
        if not isinstance(content, Mapping) or content.get("format") not in (FORMAT, OLDER):
            found = content.get("format") if isinstance(content, Mapping) else None
            raise InputError(f"not the file of a scan: format is {found!r}, expected {FORMAT!r} or {OLDER!r}")
        names = {each.name for each in fields(cls)}
        values = {name: value for name, value in content.items() if name != "format"}
        if unknown := sorted(values.keys() - names):
            raise InputError(f"unknown key {unknown[0]!r}")
        values["tensors"] = _shifts(TensorShift, values.get("tensors"), "tensors")
        values["vectors"] = [
            replace(each, shape=_sizes(each.shape))
            for each in _shifts(VectorShift, values.get("vectors", []), "vectors")
        ]
        try:
            scan = cls(**values)
        except TypeError:
            required = [each.name for each in fields(cls) if each.name not in ("vectors", "renamed", "rows")]
            raise InputError(f"missing {', '.join(sorted(set(required) - values.keys()))}") from None
        for each in (scan, *scan.tensors, *scan.vectors):
            check_fields(each)
        return scan

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ``scan.json`` that ``kslottery scan`` wrote, also one of version 0.1.

        Parameters
        ----------
        path : str or path
            The file, or the folder that holds it.

        Returns
        -------
        Scan

        Raises
        ------
        InputError
            There is no such file, or it is something else. The message names it.
        TypeError
            ``path`` is not a path.
        """
        file = check_path(path)
        file = file / FILE if file.is_dir() else file
        try:
            return cls.from_json(read_json(file))
        except InputError as error:
            text = str(error)
            raise InputError(text if str(file) in text else f"{file}: {text}") from None

    def to_csv(self) -> str:
        """Return the scan as CSV: a line for each tensor, matrices first, a column for each attribute.

        What a tensor does not have is an empty field, and so is None.
        """
        content = self.to_json()
        entries = content["tensors"] + content["vectors"]
        for entry in content["vectors"]:
            entry["shape"] = "x".join(map(str, entry["shape"]))
        columns = [each.name for each in fields(TensorShift)] + ["significant_share"]
        columns += [each.name for each in fields(VectorShift) if each.name not in columns]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
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
        if any(shift.changed_slices for shift in self.tensors):
            lines.append("[3 of 8]: 3 of the 8 matrices in a 3-D tensor, such as the experts of a layer, changed")
        if any(shift.reordered_rows for shift in self.tensors):
            lines.append("other order: rows with the same values in another order, which D does not see")
        if any(shift.significant_rows is None for shift in self.tensors):
            lines.append(f"no test: rows so short that none could reach p < {self.alpha:g}")
        return lines + self._warnings() + [f"note: {note}" for note in self.notes] + self._left_out()

    def _warnings(self) -> list[str]:
        lines = []
        for what, treated, attribute in (("NaN", "left out", "nan_rows"), ("Inf", "counted as values", "inf_rows")):
            bad = [(shift.name, rows) for shift in self.tensors if (rows := getattr(shift, attribute))]
            if bad:
                names = _some([f"{name} ({counted(rows, 'row', 'rows')})" for name, rows in bad])
                lines.append(f"WARNING: {what} in {matrices(len(bad))}, {treated}: {names}")
        vectors = [
            f"{each.name} ({counted(each.not_finite, 'number', 'numbers')})" for each in self.vectors if each.not_finite
        ]
        if vectors:
            lines.append(
                f"WARNING: NaN or Inf in {counted(len(vectors), 'vector', 'vectors')}, left out: {_some(vectors)}"
            )
        return lines

    def _left_out(self) -> list[str]:
        lines = []
        if self.renamed:
            # Quotes show an empty beginning.
            pairs = beginnings(self.renamed.items()).most_common()
            begin = _some([f"'{old}' is '{new}' ({counted(n, 'tensor', 'tensors')})" for (old, new), n in pairs])
            lines.append(f"names that begin differently in {self.before} and {self.after}: {begin}")
        for attribute, where in (("new_rows", self.after), ("gone_rows", self.before)):
            rows = [f"{each.name} ({n:,})" for each in self.tensors if (n := getattr(each, attribute))]
            if rows:
                lines.append(f"not compared, rows that only {where} has: {_some(rows)}")
        skipped = {
            f"only in {self.before}": self.only_before,
            f"only in {self.after}": self.only_after,
            "of different shapes": self.other_shape,
            "not of floats (quantized?)": self.quantized,
        }
        lines += [f"not compared, {what}: {_some(names)}" for what, names in skipped.items() if names]
        if self.other_shape and self.rows == "all":
            lines.append("--rows shared compares the rows that matrices of different heights both have")
        if self.not_2d:
            lines.append(f"not compared, neither matrices nor floats: {counted(self.not_2d, 'tensor', 'tensors')}")
        return lines

    def by_kind(self) -> dict[str, list[TensorShift]]:
        """Return the matrices of each kind, from all layers."""
        kinds: dict[str, list[TensorShift]] = {}
        for shift in self.tensors:
            kinds.setdefault(shift.kind, []).append(shift)
        return kinds

    def vectors_by_kind(self) -> dict[str, list[VectorShift]]:
        """Return the vectors of each kind, from all layers."""
        kinds: dict[str, list[VectorShift]] = {}
        for shift in self.vectors:
            kinds.setdefault(shift.kind, []).append(shift)
        return kinds


def _shifts(kind: type[S], entries: Any, name: str) -> list[S]:
    """The tensors under one key of a file."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name} must be a list of objects")
    try:
        return [kind(**{key: entry[key] for key in entry if key != "significant_share"}) for entry in entries]
    except TypeError as error:
        raise InputError(f"{name}: {str(error).partition('() ')[2]}") from None


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple)):
        raise InputError(f"vectors: shape is {shown(shape)}, expected a list of integers")
    return tuple(shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
