"""How far every matrix moved between two checkpoints: the KS test on each row of each 2-D tensor.

The paper tunes the embedding because its rows shift more than those of any other matrix. A scan compares all matrices.
It holds one block of rows in memory at a time.
"""

import csv
import functools
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

from .checkpoint import Checkpoint, open_checkpoint
from .options import Method
from .tensor_files import BLOCK_BYTES, FLOATS, StoredTensor, check_reading, row_blocks
from .tensor_names import HEAD_NAMES, locate_embedding

FORMAT = "kslottery-scan/1"
_LISTED = 5  # names in a line of the legend
_LAYER = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers|layer|blocks|block|h)\.(?P<number>\d+)\.(?P<kind>.+)$")
_WRAPPERS = re.compile(r"^(?:base_model\.|model\.|transformer\.|language_model\.|_orig_mod\.)+")


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
        """The scan as a JSON object, format ``kslottery-scan/1``."""
        content = {"format": FORMAT, **asdict(self)}
        for entry, tensor in zip(content["tensors"], self.tensors, strict=True):
            entry["significant_share"] = tensor.significant_share
        return content

    def to_csv(self) -> str:
        """The scan as CSV: a line for each tensor, a column for each attribute. None is an empty field."""
        buffer = io.StringIO()
        entries = self.to_json()["tensors"]
        writer = csv.DictWriter(buffer, list(entries[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        return buffer.getvalue()

    def legend(self) -> list[str]:
        """Lines that explain the figures and say what was not compared."""
        lines = [
            f"significant: share of rows with p < {self.alpha:g}, each tested on its own; changed: rows with D > 0"
        ]
        if any(shift.embedding for shift in self.tensors):
            lines.append("*: the input embedding")
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
            lines.append(f"not compared, no matrix (biases, norms): {_count(self.not_2d, 'tensor', 'tensors')}")
        return lines

    def by_kind(self) -> dict[str, list[TensorShift]]:
        """The matrices of each kind, from all layers."""
        kinds: dict[str, list[TensorShift]] = {}
        for shift in self.tensors:
            kinds.setdefault(shift.kind, []).append(shift)
        return kinds


def scan_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    alpha: float = 0.05,
    method: Method = "auto",
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Compare every row of every matrix that two checkpoints share.

    Two tensors are compared if they are matrices of floats and have the same name and shape.

    Parameters
    ----------
    before, after : str or path
        The checkpoints, as for :func:`kslottery_fast.tickets.ks_select_checkpoints`.
    alpha : float
        Significance level of each row on its own.
    method : {"auto", "exact", "asymp", "paper"}
        How p is computed. See :func:`kslottery_fast.ks.significance.pvalues`.
    block_bytes : int
        The size of a block of both checkpoints. It changes the speed, never the result.
    progress : callable(done, total), optional
        Called after every block with the MiB of both checkpoints.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        A path is not a checkpoint, the checkpoints share no matrix, or an option is out of range.
    TypeError
        An argument has a wrong type.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> matrix = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"h.0.w.weight": matrix}, f"{folder}/before.safetensors")
    ...     save_file({"h.0.w.weight": matrix * 3}, f"{folder}/after.safetensors")
    ...     scan = scan_checkpoints(f"{folder}/before.safetensors", f"{folder}/after.safetensors")
    >>> [(shift.kind, shift.changed_rows, shift.significant_rows) for shift in scan.tensors]
    [('w', 9, 9)]
    """
    check_reading(block_bytes, progress)
    critical_count(1000, alpha, method)  # refuses bad options before anything is read
    first, second = open_checkpoint(before, "before"), open_checkpoint(after, "after")
    pairs, skipped = _pairs(first, second)
    if not pairs:
        examples = [
            f"{path} has {', '.join([*names][:2]) or 'none'}"
            for path, names in ((before, first.files), (after, second.files))
        ]
        raise InputError(
            f"{before} and {after} share no 2-D tensor of floats by name and shape: {'; '.join(examples)}; are "
            "they two states of one model?"
        )
    table, notes = _embedding_name(first)
    total = sum(tensor.nbytes for pair in pairs for tensor in pair)
    done, shifts = 0, []
    # Two different samples of one number each always have D = 1, so no such row is tested.
    threshold = functools.cache(lambda d: critical_count(d, alpha, method) if d > 1 else 2)
    for pair in pairs:
        counts, inf_rows = [torch.empty(0, dtype=torch.int64)], 0
        for _, x, y in row_blocks(*pair, block_bytes):
            h, flags = ops.ks_statistics(x, y)
            counts.append(h[flags & HAS_NAN == 0])
            inf_rows += int((flags == HAS_INF).sum())
            done += x.nbytes + y.nbytes
            if progress is not None:
                progress(done >> 20, total >> 20)
        rows, d = pair[0].shape
        least = threshold(d) if rows else d  # a file may claim any d for a matrix without rows
        shifts.append(_shift(pair[0], torch.cat(counts), inf_rows, least, pair[0].name == table))
    shifts.sort(key=_place)
    return Scan(str(before), str(after), alpha, method, shifts, notes=notes, **skipped)


def mean_d(shifts: Sequence[TensorShift]) -> float | None:
    """The mean D over the rows of several matrices. None if no matrix has one.

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
    """The share of significant rows of several matrices. None if none could be tested.

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
    """A number of matrices in words."""
    return _count(count, "matrix", "matrices")


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _pairs(first: Checkpoint, second: Checkpoint) -> tuple[list[tuple[StoredTensor, StoredTensor]], dict[str, Any]]:
    """The matrices that can be compared, and the fields of Scan that name all others."""
    skipped: dict[str, Any] = {
        "only_before": sorted(first.files.keys() - second.files.keys()),
        "only_after": sorted(second.files.keys() - first.files.keys()),
        "other_shape": [],
        "quantized": [],
        "not_2d": 0,
    }
    pairs = []
    for name in sorted(first.files.keys() & second.files.keys()):
        pair = first[name], second[name]
        if any(len(tensor.shape) != 2 or tensor.shape[1] == 0 for tensor in pair):
            skipped["not_2d"] += 1
        elif any(tensor.dtype not in FLOATS for tensor in pair):
            skipped["quantized"].append(name)
        elif pair[0].shape != pair[1].shape:
            skipped["other_shape"].append(name)
        else:
            pairs.append(pair)
    return pairs, skipped


def _embedding_name(checkpoint: Checkpoint) -> tuple[str | None, list[str]]:
    """The matrix to mark as the input embedding. Without one, a note says why."""
    try:
        name, why_not = locate_embedding(checkpoint)
    except InputError as error:  # config.json is broken
        name, why_not = None, str(error)
    return name, [f"the input embedding is not marked: {why_not}"] if name is None else []


def _shift(tensor: StoredTensor, counts: Tensor, inf_rows: int, threshold: int, embedding: bool) -> TensorShift:
    rows, d = tensor.shape
    changed = int((counts > 0).sum())
    total, largest = (int(counts.sum()), int(counts.max())) if len(counts) else (0, 0)
    return TensorShift(
        tensor.name,
        *_parts(tensor.name),
        rows=rows,
        dimension=d,
        embedding=embedding,
        nan_rows=rows - len(counts),
        inf_rows=inf_rows,
        changed_rows=changed,
        significant_rows=int((counts >= threshold).sum()) if threshold <= d else None,
        mean_d=total / len(counts) / d if len(counts) else None,
        max_d=largest / d if len(counts) else None,
        mean_d_changed=total / changed / d if changed else None,
    )


def _parts(name: str) -> tuple[str, int | None, str]:
    """Stack, layer and kind of a tensor.

    >>> _parts("model.layers.7.self_attn.q_proj.weight"), _parts("transformer.wte.weight")
    (('', 7, 'self_attn.q_proj'), ('', None, 'wte'))
    >>> _parts("model.encoder.layers.0.fc1.weight"), _parts("model.layers.1.mlp.experts.13.up_proj.weight")
    (('encoder', 0, 'encoder fc1'), ('', 1, 'mlp.experts.*.up_proj'))
    """
    short = _WRAPPERS.sub("", name).removesuffix(".weight")
    match = _LAYER.match(short)
    if match is None:
        return "", None, short
    kind = re.sub(r"\bexperts\.\d+\.", "experts.*.", match["kind"])
    stack = match["stack"]
    return stack, int(match["number"]), f"{stack} {kind}" if stack else kind


def _place(shift: TensorShift) -> tuple[int, str, int, str]:
    """The sort key of the order in which a token passes the matrices.

    The input embedding is first. The matrices outside the layers, the layers and the head follow.
    """
    if shift.layer is not None:
        return 2, shift.stack, shift.layer, shift.name
    return 0 if shift.embedding else 3 if shift.name.endswith(HEAD_NAMES) else 1, "", 0, shift.name
