"""How far every matrix moved between two checkpoints: the KS test on each row of each 2-D tensor.

The paper tunes the embedding because its rows shift like no other matrix's do. This looks at all of them,
streamed: one block of rows in memory at a time.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

from .tensor_files import BLOCK_BYTES, FLOATS, Checkpoint, StoredTensor, check_block_bytes, open_checkpoint, row_blocks
from .tensor_names import HEAD_NAMES, locate_embedding

FORMAT = "kslottery-scan/1"
_LAYER = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers|layer|blocks|block|h)\.(?P<number>\d+)\.(?P<kind>.+)$")
_WRAPPERS = re.compile(r"^(?:base_model\.|model\.|transformer\.|language_model\.|_orig_mod\.)+")


@dataclass(frozen=True)
class TensorShift:
    """How far the rows of one matrix moved.

    Rows with NaN in either checkpoint are counted as ``nan_rows`` and nowhere else. An Inf is larger or smaller than
    every number, and its row one like any other.
    """

    name: str
    stack: str  # "encoder" or "decoder" where there are two stacks of layers, else empty
    layer: int | None  # None outside the stack of layers
    kind: str  # what the matrix is, the same in every layer, such as self_attn.q_proj
    rows: int
    dimension: int  # d: the numbers of a row are a sample
    embedding: bool  # whether it is the input embedding
    nan_rows: int
    inf_rows: int  # rows with Inf and no NaN
    changed_rows: int  # rows with D > 0
    significant_rows: int | None  # rows with p < alpha, each on its own; None if no row of d numbers can be significant
    mean_d: float | None  # of all rows; None without rows
    max_d: float | None
    mean_d_changed: float | None  # of the rows that changed; None without such

    @property
    def significant_share(self) -> float | None:
        """Share of the rows without NaN that are significant; None if that cannot be told."""
        tested = self.rows - self.nan_rows
        return None if self.significant_rows is None or tested == 0 else self.significant_rows / tested


@dataclass(frozen=True)
class Scan:
    """The matrices of two checkpoints in the order of the model, and what was not compared and why.

    ``notes`` says what else is missing, such as why no matrix is marked as the input embedding.
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
        """One line a tensor, under the names of the attributes; what does not exist is empty."""
        buffer = io.StringIO()
        entries = self.to_json()["tensors"]
        writer = csv.DictWriter(buffer, list(entries[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        return buffer.getvalue()


def scan_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    alpha: float = 0.05,
    method: str = "auto",
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Compare every row of every 2-D floating tensor that both checkpoints have, by name and shape.

    Parameters
    ----------
    before, after, method, block_bytes
        As for :func:`kslottery_fast.tickets.ks_select_checkpoints`.
    alpha : float
        Significance level of each row on its own.
    progress : callable(done, total), optional
        In MiB of both checkpoints.

    Raises
    ------
    InputError
        What is no checkpoint, or two that share no matrix; alpha, method or block_bytes out of range.
    """
    check_block_bytes(block_bytes)
    critical_count(1000, alpha, method)  # refuses bad options before anything is read
    first, second = open_checkpoint(before), open_checkpoint(after)
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
    # Two samples of one number each always differ as much as two such samples can.
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


def matrices(count: int) -> str:
    """A number of matrices in words."""
    return f"{count:,} {'matrix' if count == 1 else 'matrices'}"


def _pairs(first: Checkpoint, second: Checkpoint) -> tuple[list[tuple[StoredTensor, StoredTensor]], dict[str, Any]]:
    """The matrices that can be compared, and the other fields of Scan, which tell of those that cannot."""
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
    """The matrix to mark; a scan works without, and then says why in a note."""
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
    """Sorts as a token passes them: the input embedding, what stands outside the layers, layers, head."""
    if shift.layer is not None:
        return 2, shift.stack, shift.layer, shift.name
    return 0 if shift.embedding else 3 if shift.name.endswith(HEAD_NAMES) else 1, "", 0, shift.name
