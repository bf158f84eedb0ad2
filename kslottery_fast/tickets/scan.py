"""How far every tensor moved between two checkpoints: the KS test on each row of each matrix, and vectors in numbers.

The paper tunes the embedding because its rows shift more than those of any other matrix. A scan compares all matrices.
It holds one block of rows in memory at a time.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import get_args

from torch import Tensor

from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows, Method, TableName
from kslottery_fast.checkpoints.checkpoint import Checkpoint
from kslottery_fast.checkpoints.gguf_names import named_alike
from kslottery_fast.checkpoints.pairs import open_pair, rounding_notes
from kslottery_fast.checkpoints.tensor_names import HEAD_NAMES, locate_embedding, locate_head
from kslottery_fast.checkpoints.tensors import BLOCK_BYTES, check_reading
from kslottery_fast.ks.significance import critical_count

from .aligned import check_name_map
from .scan_measures import matrix_shift, vector_shift
from .scan_pairs import Pair, nothing_shared, only_table, pair_tensors
from .scan_result import FORMAT, Scan
from .scan_shifts import TensorShift, VectorShift, matrices, mean_d, significant_share

__all__ = [
    "FORMAT",
    "Scan",
    "TensorShift",
    "VectorShift",
    "matrices",
    "mean_d",
    "scan_checkpoints",
    "significant_share",
]


def scan_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    alpha: float = 0.05,
    method: Method = "auto",
    table: TableName | None = None,
    rows: ComparedRows = "all",
    name_map: Mapping[str, str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Compare every row of every matrix that two checkpoints share, and every number of all other tensors of floats.

    Two tensors are compared if they have one name and shape. Wrappers and versions change how names begin. So tensors
    whose names only one checkpoint has are aligned: two of one shape are the same tensor if their names share the
    longest ending, such as "model.h.0.w" and "module.model.h.0.w". The result says so. Of a 3-D tensor, such as the
    experts of a layer [E, V, d], all E * V rows are compared.

    Parameters
    ----------
    before, after : str or path
        The checkpoints, as for :func:`kslottery_fast.tickets.ks_select_checkpoints`.
    alpha : float
        Significance level of each row on its own.
    method : {"auto", "exact", "asymp", "paper"}
        How p is computed. See :func:`kslottery_fast.ks.significance.pvalues`.
    table : {"input", "output"}, optional
        Compare this table alone: the input embedding, or that of the output head. By default all tensors are compared.
    rows : {"all", "shared"}
        What happens to matrices of different heights, such as the embedding after tokens were added. With "all" they
        are named and left out. With "shared" the first rows are compared, those that both have.
    name_map : mapping of str to str, optional
        What tensors of ``before`` are called in ``after``, where the names cannot be aligned: names, or how names
        begin, such as ``{"model": "model.language_model"}``.
    block_bytes : int
        The size of a block of both checkpoints. It changes the speed, never the result.
    progress : callable(done, total), optional
        Called after every block with the MiB of both checkpoints, and once before the first one if they are fetched
        from elsewhere.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        A path is not a checkpoint, the checkpoints share no matrix or not this table, ``name_map`` does not fit, or an
        option is out of range.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import tempfile
    >>> import torch
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
    check_choice(table, (None, *get_args(TableName)), "table")
    check_choice(rows, get_args(ComparedRows), "rows")
    renaming = check_name_map(name_map)
    critical_count(1000, alpha, method)  # refuses bad options before anything is read
    first, second = named_alike(*open_pair(before, after, every=True))
    pairs = pair_tensors(first, second, rows, renaming)
    if not pairs.matrices and (not pairs.vectors or pairs.quantized or pairs.other_shape):
        raise nothing_shared(first, second, pairs)
    if table is not None:
        pairs = only_table(first, pairs, table)
    (embedding, notes), head = _embedding_name(first), _head_name(first)
    notes += [*dict.fromkeys([*first.notes, *second.notes]), *rounding_notes(pairs.matrices)]
    read = pairs.matrices + pairs.vectors
    total, done = sum(_bytes_of(pair, _height(pair)) for pair in read), 0
    if progress is not None and any(tensor.remote for pair in read for tensor in pair):
        progress(0, total >> 20)  # says what will be fetched before any rows are
    # Two different samples of one number each always have D = 1, so no such row is tested.
    threshold = functools.cache(lambda d: critical_count(d, alpha, method) if d > 1 else 2)

    def seen(pair: Pair, block: Tensor) -> None:
        nonlocal done
        done += _bytes_of(pair, len(block))
        if progress is not None:
            progress(done >> 20, total >> 20)

    shifts = []
    for pair in pairs.matrices:
        marks = {"embedding": pair[0].name == embedding, "head": pair[0].name == head}
        # A file may claim any d for a matrix without rows.
        least = threshold(pair[0].width) if _height(pair) else pair[0].width
        shifts.append(matrix_shift(pair, block_bytes, functools.partial(seen, pair), least, marks))
    vectors = [vector_shift(pair, block_bytes, functools.partial(seen, pair)) for pair in pairs.vectors]
    return Scan(
        str(before),
        str(after),
        alpha,
        method,
        tensors=sorted(shifts, key=_place),
        vectors=sorted(vectors, key=_place_of_vector),
        notes=notes,
        rows=rows,
        renamed=pairs.renamed,
        only_before=pairs.only_before,
        only_after=pairs.only_after,
        other_shape=pairs.other_shape,
        quantized=pairs.quantized,
        not_2d=pairs.not_2d,
    )


def _height(pair: Pair) -> int:
    """How many rows both have."""
    return min(tensor.height for tensor in pair)


def _bytes_of(pair: Pair, rows: int) -> int:
    """The bytes that are read for so many rows. Those that an adapter makes of the base are not read twice."""
    first, second = pair
    return rows * (first.row_bytes + (0 if second.derived_from(first) else second.row_bytes))


def _embedding_name(checkpoint: Checkpoint) -> tuple[str | None, list[str]]:
    """The matrix to mark as the input embedding. Without one, a note says why."""
    try:
        name, why_not = locate_embedding(checkpoint)
    except InputError as error:  # config.json is broken
        name, why_not = None, str(error)
    return name, [f"the input embedding is not marked: {why_not}"] if name is None else []


def _head_name(checkpoint: Checkpoint) -> str | None:
    """The matrix to mark as the output head, if there is one. In a tied model it is the input embedding."""
    try:
        return locate_head(checkpoint)[0]
    except InputError:  # config.json is broken, which the note on the input embedding says
        return None


def _place(shift: TensorShift) -> tuple[int, str, int, str]:
    """The sort key of the order in which a token passes the matrices.

    The input embedding is first. The matrices outside the layers, the layers and the head follow.
    """
    if shift.layer is not None:
        return 2, shift.stack, shift.layer, shift.name
    return 0 if shift.embedding else 3 if shift.head or shift.name.endswith(HEAD_NAMES) else 1, "", 0, shift.name


def _place_of_vector(shift: VectorShift) -> tuple[bool, str, int, str]:
    """The same order for vectors: those outside the layers, then the layers."""
    return shift.layer is not None, shift.stack, shift.layer or 0, shift.name
