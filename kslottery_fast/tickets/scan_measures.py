"""Measuring how far one tensor moved: the KS test on its rows, or the change of its numbers."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kslottery_fast.checkpoints.tensors import row_blocks
from kslottery_fast.ks.order import counts_and_order
from kslottery_fast.ops.schemas import HAS_INF

from .row_differences import row_norms
from .scan_pairs import Pair
from .scan_shifts import TensorShift, VectorShift

Seen: TypeAlias = Callable[[Tensor], None]
"""Called with the rows of the first checkpoint that were compared."""

_LAYER = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers|layer|blocks|block|blk|h)\.(?P<number>\d+)\.(?P<kind>.+)$")
_WRAPPERS = re.compile(r"^(?:base_model\.|model\.|transformer\.|language_model\.|_orig_mod\.|module\.)+")


def matrix_shift(pair: Pair, block_bytes: int, seen: Seen, threshold: int, marks: dict[str, bool]) -> TensorShift:
    """Measure the rows that two matrices, or two 3-D tensors, both have.

    Parameters
    ----------
    pair : Pair
        Their rows have one length.
    block_bytes : int
        The size of a block of both.
    seen : callable
        Called after every block.
    threshold : int
        The smallest significant h.
    marks : dict
        The attributes ``embedding`` and ``head``.
    """
    tensor, other = pair
    rows, d = min(tensor.height, other.height), tensor.width
    counts, reordered, inf_rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)], 0
    for _, x, y in row_blocks(*pair, block_bytes):
        h, flags, elsewhere = counts_and_order(x, y)
        counts.append(h)
        reordered.append(elsewhere)
        inf_rows += int((flags == HAS_INF).sum())
        seen(x)
    every, orders = torch.cat(counts), torch.cat(reordered)
    h = every[every >= 0]
    changed = int((h > 0).sum())
    total, largest = (int(h.sum()), int(h.max())) if len(h) else (0, 0)
    stack, layer, kind = _parts(tensor.name)
    return TensorShift(
        tensor.name,
        stack,
        layer,
        kind,
        rows=rows,
        dimension=d,
        nan_rows=rows - len(h),
        inf_rows=inf_rows,
        changed_rows=changed,
        reordered_rows=int(orders.sum()),
        significant_rows=int((h >= threshold).sum()) if threshold <= d else None,
        mean_d=total / len(h) / d if len(h) else None,
        max_d=largest / d if len(h) else None,
        mean_d_changed=total / changed / d if changed else None,
        new_rows=max(0, other.height - tensor.height),
        gone_rows=max(0, tensor.height - other.height),
        name_after=_name_after(pair),
        embedding=marks["embedding"],
        head=marks["head"],
        **(_slices(every, orders, tensor.shape[0], d) if len(tensor.shape) == 3 else {}),
    )


def _slices(counts: Tensor, reordered: Tensor, slices: int, d: int) -> dict[str, Any]:
    """How far the matrices of a 3-D tensor moved, from the counts of all their rows, -1 for NaN."""
    if not len(counts):
        return {"slices": slices, "changed_slices": 0}
    h = counts.view(slices, -1)
    tested = (h >= 0).sum(dim=1)
    means = (h.clamp(min=0).sum(dim=1).double() / tested / d)[tested > 0]
    return {
        "slices": slices,
        "changed_slices": int(((h > 0) | reordered.view(slices, -1)).any(dim=1).sum()),
        "least_slice_d": means.min().item() if len(means) else None,
        "most_slice_d": means.max().item() if len(means) else None,
    }


def vector_shift(pair: Pair, block_bytes: int, seen: Seen) -> VectorShift:
    """Measure the numbers of two tensors of one shape. ``block_bytes`` and ``seen`` are as for :func:`matrix_shift`."""
    tensor = pair[0]
    changed = bad = 0
    moved = size = largest = 0.0
    for _, x, y in row_blocks(*pair, block_bytes):
        first, second = x.double(), y.double()
        finite = first.isfinite() & second.isfinite()
        first, second = first[finite], second[finite]
        difference = second - first
        bad += int((~finite).sum())
        changed += int((difference != 0).sum())
        moved, size = (
            math.hypot(known, row_norms(numbers[None]).item())
            for known, numbers in ((moved, difference), (size, first))
        )
        largest = max(largest, difference.abs().max().item() if len(difference) else 0.0)
        seen(x)
    return VectorShift(
        tensor.name,
        *_parts(tensor.name),
        shape=tuple(tensor.shape),
        numbers=math.prod(tensor.shape),
        changed_numbers=changed,
        not_finite=bad,
        relative_l2=moved / size if size else None if moved else 0.0,
        max_abs=largest,
        name_after=_name_after(pair),
    )


def _name_after(pair: Pair) -> str | None:
    return None if pair[0].name == pair[1].name else pair[1].name


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
