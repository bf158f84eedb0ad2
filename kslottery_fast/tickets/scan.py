"""How far every matrix moved between two checkpoints: the KS test on each row of each 2-D tensor.

The paper tunes the embedding because its rows shift more than those of any other matrix. A scan compares all matrices.
It holds one block of rows in memory at a time.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Method, TableName
from kslottery_fast.checkpoints.checkpoint import Checkpoint
from kslottery_fast.checkpoints.gguf_names import named_alike
from kslottery_fast.checkpoints.pairs import open_pair, rounding_notes
from kslottery_fast.checkpoints.tensor_names import HEAD_NAMES, find_tensor, locate_embedding, locate_head
from kslottery_fast.checkpoints.tensors import BLOCK_BYTES, StoredTensor, check_reading, row_blocks
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

from .scan_result import FORMAT, Scan, TensorShift, matrices, mean_d, significant_share

__all__ = ["FORMAT", "Scan", "TensorShift", "matrices", "mean_d", "scan_checkpoints", "significant_share"]

_LAYER = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers|layer|blocks|block|blk|h)\.(?P<number>\d+)\.(?P<kind>.+)$")
_WRAPPERS = re.compile(r"^(?:base_model\.|model\.|transformer\.|language_model\.|_orig_mod\.)+")


def scan_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    alpha: float = 0.05,
    method: Method = "auto",
    table: TableName | None = None,
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
    table : {"input", "output"}, optional
        Compare this table alone: the input embedding, or that of the output head. By default all matrices are compared.
    block_bytes : int
        The size of a block of both checkpoints. It changes the speed, never the result.
    progress : callable(done, total), optional
        Called after every block with the MiB of both checkpoints. If something lies on the Hub, the first call comes
        before it is fetched.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        A path is not a checkpoint, the checkpoints share no matrix or not this table, or an option is out of range.
    TypeError
        An argument has the wrong type.

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
    check_choice(table, (None, *get_args(TableName)), "table")
    critical_count(1000, alpha, method)  # refuses bad options before anything is read
    first, second = named_alike(*open_pair(before, after))
    pairs, skipped = _pairs(first, second)
    if table is not None:
        pairs, skipped = _one_table(first, pairs, table), {key: [] for key in skipped} | {"not_2d": 0}
    if not pairs:
        examples = [
            f"{path} has {', '.join([*names][:2]) or 'none'}" for path, names in ((before, first), (after, second))
        ]
        raise InputError(
            f"{before} and {after} share no 2-D tensor of floats by name and shape: {'; '.join(examples)}; are "
            "they two states of one model?"
        )
    (embedding, notes), head = _embedding_name(first), _head_name(first)
    notes += [*dict.fromkeys([*first.notes, *second.notes]), *rounding_notes(pairs)]
    total = sum(tensor.nbytes for pair in pairs for tensor in pair)
    done, shifts = 0, []
    if progress is not None and any(tensor.remote for pair in pairs for tensor in pair):
        progress(0, total >> 20)  # before anything is fetched
    # Two different samples of one number each always have D = 1, so no such row is tested.
    threshold = functools.cache(lambda d: critical_count(d, alpha, method) if d > 1 else 2)
    for pair in pairs:
        counts, inf_rows = [torch.empty(0, dtype=torch.int64)], 0
        for _, x, y in row_blocks(*pair, block_bytes):
            h, flags = ops.ks_statistics(x, y)
            counts.append(h[flags & HAS_NAN == 0])
            inf_rows += int((flags == HAS_INF).sum())
            done += sum(len(x) * tensor.nbytes // tensor.height for tensor in pair)
            if progress is not None:
                progress(done >> 20, total >> 20)
        rows, d = pair[0].shape
        least = threshold(d) if rows else d  # a file may claim any d for a matrix without rows
        marks = {"embedding": pair[0].name == embedding, "head": pair[0].name == head}
        shifts.append(_shift(pair[0], torch.cat(counts), inf_rows, least, **marks))
    shifts.sort(key=_place)
    return Scan(str(before), str(after), alpha, method, shifts, notes=notes, **skipped)


def _pairs(first: Checkpoint, second: Checkpoint) -> tuple[list[tuple[StoredTensor, StoredTensor]], dict[str, Any]]:
    """The matrices that can be compared, and the fields of Scan that name all others."""
    skipped: dict[str, Any] = {
        "only_before": sorted(first.keys() - second.keys()),
        "only_after": sorted(second.keys() - first.keys()),
        "other_shape": [],
        "quantized": [],
        "not_2d": 0,
    }
    pairs = []
    for name in sorted(first.keys() & second.keys()):
        pair = first[name], second[name]
        if any(len(tensor.shape) != 2 or tensor.shape[1] == 0 for tensor in pair):
            skipped["not_2d"] += 1
        elif any(tensor.floats is None for tensor in pair):
            skipped["quantized"].append(name)
        elif pair[0].shape != pair[1].shape:
            skipped["other_shape"].append(name)
        else:
            pairs.append(pair)
    return pairs, skipped


def _one_table(
    first: Checkpoint, pairs: list[tuple[StoredTensor, StoredTensor]], table: TableName
) -> list[tuple[StoredTensor, StoredTensor]]:
    """The pair of the table that was asked for."""
    found = find_tensor(first, "auto", table)
    chosen = [pair for pair in pairs if pair[0].name == found.name]
    if not chosen:
        raise InputError(
            f"{found} is not in the other checkpoint by this name and shape; ks_select_checkpoints (kslottery select) "
            "takes two names (tensor=)"
        )
    return chosen


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


def _shift(
    tensor: StoredTensor, counts: Tensor, inf_rows: int, threshold: int, *, embedding: bool, head: bool
) -> TensorShift:
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
        head=head,
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
    return 0 if shift.embedding else 3 if shift.head or shift.name.endswith(HEAD_NAMES) else 1, "", 0, shift.name
