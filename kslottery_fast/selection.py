"""Which rows of a table are tickets: the decision behind :func:`kslottery_fast.ks_select`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .errors import InputError
from .ops.schemas import HAS_INF, HAS_NAN
from .stats import CORRECTIONS, adjust, check_alpha, critical_count, pvalues
from .table_pairs import refuse_flagged, same_memory


@dataclass(frozen=True)
class Selection:
    """The chosen rows in no promised order, their counts h, the smallest h that counts, and warnings."""

    token_ids: Tensor
    counts: Tensor
    threshold_count: int
    notes: list[str]


def select_rows(
    before: Tensor, after: Tensor, alpha: Any, method: str, correction: str | None, top_k: int | None
) -> Selection:
    """The parameters of :func:`ks_select`, for two [V, d] tensors on one device; ``method`` is not "auto"."""
    V, d = before.shape
    if correction not in CORRECTIONS:
        raise InputError(f"correction is {correction!r}: expected None, 'bonferroni' or 'bh'")
    if top_k is not None:
        _check_top_k(top_k)
    if alpha is not None or top_k is None:
        alpha = check_alpha(alpha)
    if top_k is None and correction != "bh":
        # Deciding is cheaper than knowing: h is computed for the chosen rows only.
        h = None
        threshold = critical_count(d, alpha / max(V, 1) if correction == "bonferroni" else alpha, method)
        decided, flags = ops.ks_decide(before, after, threshold)
        ids = torch.nonzero(decided)[:, 0]
    else:
        h, flags = ops.ks_statistics(before, after)
    refuse_flagged(before, after, flags, HAS_NAN | HAS_INF, ("emb_before", "emb_after"))
    if h is None:
        counts = ops.ks_statistics(before[ids], after[ids])[0]
    elif top_k is not None:
        ids = torch.sort(h, descending=True, stable=True).indices[:top_k]
        ids = ids[h[ids] > 0]
        counts = h[ids]
        threshold = int(counts.min()) if len(counts) else 1
    else:
        ids = torch.nonzero(adjust(pvalues(h, d, method), correction) < alpha)[:, 0]
        counts = h[ids]
        # With nothing selected: what a single row would have needed.
        threshold = int(counts.min()) if len(counts) else critical_count(d, alpha / max(V, 1), method)
    notes = []
    if same_memory(before, after):
        notes.append("emb_before and emb_after are the same memory: clone the table before tuning it")
    elif V and len(ids) < (top_k or 1):
        h = ops.ks_statistics(before, after)[0] if h is None else h
        notes.append(_why_so_few(int(h.max()), d, threshold, len(ids), alpha, correction, top_k))
    return Selection(ids, counts, threshold, notes)


def _check_top_k(top_k: Any) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k is {top_k!r}: expected a number of rows, or None")
    if top_k < 1:
        raise InputError(f"top_k is {top_k}: expected at least 1 row")


def _why_so_few(
    largest: int, d: int, threshold: int, found: int, alpha: float, correction: str | None, top_k: int | None
) -> str:
    if largest == 0:
        return "no row differs between emb_before and emb_after: nothing was trained, or both are the same model"
    if top_k is not None:
        return f"only {found} rows moved (D > 0), top_k asked for {top_k}"
    after_correction = "" if correction is None else " after the correction for many tests"
    if threshold > d:
        return (
            f"no row of {d} numbers can be significant at alpha {alpha:g}{after_correction}: "
            "use a larger alpha, or top_k"
        )
    return (
        f"no row is significant at alpha {alpha:g}{after_correction}: the largest D is {largest / d:.4f}, "
        f"the threshold {threshold / d:.4f}; train longer or with a higher learning rate, or use top_k"
    )
