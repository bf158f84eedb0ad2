"""Deciding which rows of two tables pass the test, for :func:`kslottery_fast.ks_select`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kslottery_fast import ops
from kslottery_fast.base.arguments import check_integer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Method
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

from .corrections import adjust, check_correction
from .order import order_note, reordered_rows
from .significance import check_alpha, critical_count, pvalues, resolve_table_method
from .tables import counts_and_largest, refuse_flagged, same_memory, table_pair

_FEW_ROWS = 4096  # that the host sorts sooner than a GPU does


@dataclass(frozen=True)
class Selection:
    """The rows that pass, and what decided.

    Attributes
    ----------
    token_ids, counts : Tensor
        int64 [k] on the CPU, by falling count h, then by rising id.
    shape : (int, int)
        V and d of the tables.
    threshold_count : int
        The smallest h that passes.
    alpha : float or None
        As asked for.
    method : {"exact", "asymp", "paper"}
        As asked for, with "auto" resolved.
    note : str or None
        Why so few rows pass.
    """

    token_ids: Tensor
    counts: Tensor
    shape: tuple[int, int]
    threshold_count: int
    alpha: float | None
    method: str
    note: str | None


class Tables(Protocol):
    """Two tables of one shape, in memory or on disk, and the names that messages give them."""

    shape: tuple[int, int]
    names: tuple[str, str]

    def counts(self, threshold: int = 0) -> Tensor:
        """The counts h of all rows, int64 [V].

        Without a threshold all are exact. With one, those that reach it are exact, and so is the largest of all.
        The others are exact or 0.

        Raises
        ------
        InputError
            NaN or Inf in a table. The message names its rows.
        """

    def reordered(self) -> Tensor:
        """The rows that hold the same values in another order, int64 [k], ascending.

        It is asked for where :meth:`counts` were all 0, and never before.
        """


class TablesInMemory:
    """Two [V, d] tensors on one device."""

    def __init__(self, before: Tensor, after: Tensor, names: tuple[str, str]) -> None:
        self.before, self.after, self.names = before, after, names
        self.shape = (before.shape[0], before.shape[1])
        self._identical: Tensor | None = None

    def counts(self, threshold: int = 0) -> Tensor:
        """See :class:`Tables`."""
        h, flags, self._identical = counts_and_largest(self.before, self.after, threshold)
        self._refuse(flags)
        return h

    def reordered(self) -> Tensor:
        """See :class:`Tables`."""
        return reordered_rows(self.before, self.after, identical=self._identical)

    def reached(self, threshold: int) -> tuple[Tensor, Tensor]:
        """The rows whose h reaches the threshold and their h, in the order of :class:`Selection`.

        On a GPU the host waits twice: for the number of rows, and for the rows. With the rows it learns whether there
        is NaN or Inf. To ask for each number separately would cost up to a fifth of the kernel's time.
        With ``KSL_CUDA_COMPACTION=kernel`` in the environment it waits once, and sorts few rows itself.
        """
        compaction = os.environ.get("KSL_CUDA_COMPACTION", "operators")
        if compaction not in ("operators", "kernel"):
            raise InputError(f"KSL_CUDA_COMPACTION is {compaction!r}; expected operators or kernel, or leave it unset")
        h, flags = ops.ks_statistics(self.before, self.after, threshold)
        if compaction == "kernel":
            found = ops.kernels.reached_rows(h, flags, threshold, HAS_NAN | HAS_INF)
            if found is not None and found[2]:
                self._refuse(flags)
            if found is not None and len(found[0]) <= _FEW_ROWS:
                order = torch.from_numpy(np.lexsort((found[0].numpy(), -found[1].numpy())))
                return found[0][order], found[1][order]
        flagged = (flags & (HAS_NAN | HAS_INF)).any()
        ids, counts, bad = _on_host(*_rows_reaching(h, threshold, self.shape[1]), flagged.view(1))
        if bool(bad):
            self._refuse(flags)
        return ids, counts

    def _refuse(self, flags: Tensor) -> None:
        refuse_flagged(self.before, self.after, flags, HAS_NAN | HAS_INF, self.names)


def check_options(alpha: Any, correction: Any, top_k: Any) -> float | None:
    """Return ``alpha`` as a float, or None where ``top_k`` makes it superfluous.

    Raises
    ------
    InputError, TypeError
        As for :func:`kslottery_fast.ks_select`.
    """
    check_correction(correction)
    if top_k is not None:
        check_integer(top_k, "top_k", 1)
        if correction is not None:
            raise InputError(
                f"correction is {correction!r} and top_k is {top_k}: the rows with the largest D are the same with any "
                "correction; leave correction out, or top_k to select by corrected p-values"
            )
    return None if alpha is None and top_k is not None else check_alpha(alpha)


def select_in_memory(
    before: Any,
    after: Any,
    names: tuple[str, str],
    alpha: float | None,
    method: str,
    correction: str | None,
    top_k: int | None,
) -> Selection:
    """:func:`select_rows` for two tensors or arrays [V, d]. Messages call them by ``names``."""
    first, second = table_pair(before, after, names)
    found = select_rows(TablesInMemory(first, second, names), alpha, method, correction, top_k)
    if same_memory(first, second):
        return replace(found, note=f"{names[0]} and {names[1]} are the same memory: clone the table before tuning it")
    return found


def select_rows(
    tables: Tables, alpha: float | None, method: str, correction: str | None, top_k: int | None
) -> Selection:
    """Decide as :func:`kslottery_fast.ks_select` does. The options and errors are the same."""
    alpha = check_options(alpha, correction, top_k)
    method = resolved = resolve_table_method(tables.shape[1], cast(Method, method))
    V, d = tables.shape
    every = top_k is not None or correction == "bh"  # otherwise a decision is enough for most rows
    threshold, level = 1, alpha or 0.0  # without alpha there is top_k, which needs neither
    if top_k is None and V == 0:
        threshold = d + 1  # nothing is compared with it, and a file may state any d for a table without rows
    elif top_k is None:
        # For "bh" this is what a single row would need. It is reported as the threshold if no row is selected.
        # alpha / V may underflow. Then V p < alpha means that p has underflowed too, and so does p < ulp(0).
        single = level if correction is None else max(level / V, math.ulp(0.0))
        threshold = critical_count(d, single, resolved)
    if top_k is not None:
        h = tables.counts()
        ids = _by_falling_count(h, d)[: min(top_k, V)]
        ids, counts = _on_host(ids, h[ids])
        moved = int((counts > 0).sum())  # these come first
        ids, counts = ids[:moved], counts[:moved]
        largest = int(counts[0]) if moved else 0
    elif correction == "bh":
        h = tables.counts().cpu()
        significant = adjust(pvalues(h, d, resolved), "bh") < level
        ids, counts = _rows_reaching(torch.where(significant, h, -1), 0, d)
        largest = int(h.max()) if V else 0
    elif isinstance(tables, TablesInMemory) and not _is_on_the_host(tables.before):
        ids, counts = tables.reached(threshold)
        if V and not len(ids):
            largest = int(tables.counts(threshold).max())
    else:
        h = tables.counts(threshold)
        ids, counts = _on_host(*_rows_reaching(h, threshold, d))
        largest = int(h.max()) if V else 0
    if every and len(counts):
        threshold = int(counts[-1])
    note = None
    if V and len(ids) < (top_k or 1):
        if largest == 0:
            note = _why_none(tables)
        else:
            note = _why_so_few(largest, d, threshold, len(ids), level, correction, top_k)
    return Selection(ids, counts, tables.shape, threshold, alpha, method, note)


def _rows_reaching(h: Tensor, threshold: int, d: int) -> tuple[Tensor, Tensor]:
    """The rows with ``h >= threshold`` by falling h, then rising id, and their h. This waits once for a device."""
    ids = torch.nonzero(h >= threshold)[:, 0]
    counts = h[ids]
    order = _by_falling_count(counts, d)
    return ids[order], counts[order]


def _by_falling_count(h: Tensor, d: int) -> Tensor:
    """The places of counts -1..d by falling count. Equal counts keep their order.

    The keys are short because a radix sort takes one pass for each of their bytes, and numpy's sorts at most 16 bits.
    """
    if _is_on_the_host(h) and d < 2**16 - 1:
        return torch.from_numpy(np.argsort((d - h).numpy().astype(np.uint16), kind="stable"))
    return torch.sort((d - h).to(torch.int16 if d < 2**15 - 1 else torch.int64), stable=True).indices


def _is_on_the_host(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _on_host(*parts: Tensor) -> list[Tensor]:
    """Vectors as int64 on the CPU, with one copy."""
    if parts[0].device.type == "cpu":
        return [part.to(torch.int64) for part in parts]
    return list(torch.cat([part.to(torch.int64) for part in parts]).cpu().split([len(part) for part in parts]))


def _why_none(tables: Tables) -> str:
    rows = tables.reordered()
    if len(rows):
        return order_note(tables.names, rows)
    both = f"no row differs between {tables.names[0]} and {tables.names[1]}"
    return f"{both}: all are identical, so nothing was trained, or both are the same model"


def _why_so_few(
    largest: int, d: int, threshold: int, found: int, alpha: float, correction: str | None, top_k: int | None
) -> str:
    if top_k is not None:
        return f"only {found} row{'' if found == 1 else 's'} moved (D > 0), but top_k is {top_k}"
    after_correction = "" if correction is None else " after the correction for many tests"
    if threshold > d:
        return (
            f"no row of {d} number{'' if d == 1 else 's'} can be significant at alpha {alpha:g}{after_correction}: "
            "use a larger alpha, or top_k"
        )
    return (
        f"no row is significant at alpha {alpha:g}{after_correction}: the largest D is {largest / d:.4f}, "
        f"the threshold {threshold / d:.4f}; train longer or with a higher learning rate, or use top_k"
    )
