"""Rows that moved between two checkpoints on disk, of any size: ``ks_select`` and L2 shifts over blocks of rows."""

import os
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_choice, check_integer, check_tokenizer, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows, Correction, Method, TableName, TicketTable
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.checkpoints.checkpoint import Checkpoint
from kslottery_fast.checkpoints.pairs import open_pair, rounding_warning
from kslottery_fast.checkpoints.tensor_names import find_tensor, stores_one_table
from kslottery_fast.checkpoints.tensors import BLOCK_BYTES, StoredTensor, check_reading, row_blocks
from kslottery_fast.ks.decision import check_options
from kslottery_fast.ks.order import reordered_rows
from kslottery_fast.ks.tables import counts_and_largest, refuse_flagged
from kslottery_fast.ops.schemas import HAS_INF, HAS_NAN

from .aligned import aligned_names, check_name_map
from .row_differences import l2_shifts
from .select import select_tickets
from .selected_rows import SelectedRows, largest_shifts
from .tickets import Tickets

Progress = Callable[[int, int], None]
_NOT_FINITE = HAS_NAN | HAS_INF


def ks_select_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    tensor: str | tuple[str, str] = "auto",
    alpha: float | None = 0.05,
    method: Method = "auto",
    correction: Correction | None = None,
    top_k: int | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
    rows: ComparedRows = "all",
    name_map: Mapping[str, str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> Tickets:
    """Select the tickets of two checkpoints: :func:`kslottery_fast.ks_select` on tables of any size.

    The tables are read in blocks of rows, straight from the page cache and each byte once. Apart from a few bytes for
    every row (V, not V * d), no private memory is needed.

    Parameters
    ----------
    before, after : str or path
        The original and the tuned model: whatever :func:`kslottery_fast.checkpoints.opening.open_checkpoint` opens.
        ``after`` may also be the folder of a PEFT adapter, whose base model is ``before``.
    tensor : str, or (str, str)
        The name of the [V, d] tensor, or two names if ``before`` and ``after`` call it differently. "auto" finds the
        table that ``table`` names. A single name that ``after`` lacks is aligned as :func:`.scan.scan_checkpoints`
        aligns names, and a warning says so.
    alpha, method, correction, top_k, tokenizer
        As for :func:`kslottery_fast.ks_select`, with the same result as on the whole tables. The dtypes of the two
        tables may differ.
    table : {"input", "output"}
        Which table is compared: the input embedding, or that of the output head. The tickets remember it. A tied
        checkpoint stores one table for both; if both checkpoints are tied, the tickets say "shared". With ``tensor`` it
        says which table that is.
    rows : {"all", "shared"}
        As for :func:`kslottery_fast.ks_select`: what happens to tables of different heights.
    name_map : mapping of str to str, optional
        What the table of ``before`` is called in ``after``: names, or how names begin, such as
        ``{"model": "model.language_model"}``.
    block_bytes : int
        The size of a block of both tables. It changes the speed, never the result.
    progress : callable(done, total), optional
        Called after every block with the number of rows that were compared, and of all rows.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        A path is missing, is not a safetensors checkpoint, or is cut short. A shard is missing. There is no such
        tensor, or not exactly one that may be the table. The shapes differ, or the dtype is quantized. A
        table has NaN or Inf; the message gives the first token ids. An option is unknown. The message names the file.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        No row is selected, or fewer than ``top_k``, or the two tables have different names. The message says why and
        what to do.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> tuned = table.clone()
    >>> tuned[[5, 17]] += 3.0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"model.embed_tokens.weight": table}, f"{folder}/before.safetensors")
    ...     save_file({"model.embed_tokens.weight": tuned}, f"{folder}/after.safetensors")
    ...     tickets = ks_select_checkpoints(f"{folder}/before.safetensors", f"{folder}/after.safetensors")
    >>> sorted(tickets)
    [5, 17]
    """
    check_reading(block_bytes, progress)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    check_options(alpha, correction, top_k)
    first, second, found = _matching_tables(before, after, tensor, table, rows, name_map)
    pair = _Pair(first, second, block_bytes, progress)
    return select_tickets(pair, alpha, method, correction, top_k, tokenizer, found, pair.sizes)


def l2_select_checkpoints(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    k: int,
    *,
    tensor: str | tuple[str, str] = "auto",
    table: TableName = "input",
    rows: ComparedRows = "all",
    name_map: Mapping[str, str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> SelectedRows:
    """Select the k rows of two checkpoints that moved furthest in the L2 norm, in tables of any size.

    Parameters
    ----------
    before, after, tensor, table, rows, name_map, block_bytes, progress
        As for :func:`ks_select_checkpoints`.
    k : int
        How many rows. Of rows that moved equally far the lower token id comes first. Rows that did not move are never
        selected.

    Returns
    -------
    SelectedRows

    Raises
    ------
    InputError
        As :func:`ks_select_checkpoints`.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        Fewer than k rows moved.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> table = torch.zeros(10, 4)
    >>> tuned = table.clone()
    >>> tuned[5], tuned[7] = 1.0, 3.0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"model.embed_tokens.weight": table}, f"{folder}/before.safetensors")
    ...     save_file({"model.embed_tokens.weight": tuned}, f"{folder}/after.safetensors")
    ...     rows = l2_select_checkpoints(f"{folder}/before.safetensors", f"{folder}/after.safetensors", 2)
    >>> list(rows), rows.values.tolist()
    ([7, 5], [6.0, 2.0])
    """
    check_integer(k, "k", 1)
    check_reading(block_bytes, progress)
    first, second, found = _matching_tables(before, after, tensor, table, rows, name_map)
    V = min(first.height, second.height)
    shifts = torch.zeros(V, dtype=torch.float64)
    bad: list[int] = []
    for start, old, new in row_blocks(first, second, block_bytes):
        here = shifts[start : start + len(old)] = l2_shifts(old, new)
        if not bool(here.isfinite().all()):
            bad += (start + (~(old.isfinite() & new.isfinite()).all(dim=1)).nonzero()[:, 0]).tolist()
        if progress is not None:
            progress(start + len(old), V)
    if bad:
        raise InputError(
            f"{first} or {second} has NaN or Inf in {len(bad)} rows, the first of them {bad[:5]}: the checkpoint is "
            "damaged, or its training diverged"
        )
    return largest_shifts(shifts, k, found, (first.height, second.height))


class _Pair:
    """The rows that two stored tables both have."""

    def __init__(self, before: StoredTensor, after: StoredTensor, block_bytes: int, progress: Progress | None) -> None:
        self.before, self.after = before, after
        self.shape = (min(before.height, after.height), before.width)
        self.sizes = None if before.height == after.height else (before.height, after.height)
        self.names = (str(before), str(after))
        self._block_bytes, self._progress = block_bytes, progress
        self._done = self._total = 0
        self._changed: set[int] = set()

    def counts(self, threshold: int = 0) -> Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`. NaN and Inf are refused after all rows were read."""
        V = self.shape[0]
        self._total += V
        h, flags = torch.zeros(V, dtype=torch.int64), torch.zeros(V, dtype=torch.uint8)
        # One number stands for a row: Inf if the row of that table is not finite, else 0.
        marks = torch.zeros(V, 1), torch.zeros(V, 1)
        known, self._changed = 0, set()
        for start, first, second in row_blocks(self.before, self.after, self._block_bytes):
            here = slice(start, start + len(first))
            h[here], flags[here], identical = counts_and_largest(first, second, threshold, known)
            if not bool(identical.all()):
                self._changed.add(start)
            known = max(known, int(h[here].max()))
            bad = torch.nonzero(flags[here] & _NOT_FINITE)[:, 0]
            for mark, block in zip(marks, (first, second), strict=True):
                mark[here][bad[~torch.isfinite(block[bad]).all(dim=1)]] = torch.inf
            self._done += len(first)
            if self._progress is not None:
                self._progress(self._done, self._total)
        refuse_flagged(*marks, flags, _NOT_FINITE, self.names)
        return h

    def reordered(self) -> Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`. It reads the blocks again that are not identical."""
        only = self._changed
        blocks = row_blocks(self.before, self.after, self._block_bytes, only) if only else ()
        found = [start + reordered_rows(first, second) for start, first, second in blocks]
        return torch.cat([torch.empty(0, dtype=torch.int64), *found])


def _matching_tables(
    before: Any, after: Any, tensor: Any, table: Any, rows: Any = "all", name_map: Any = None
) -> tuple[StoredTensor, StoredTensor, TicketTable]:
    """The two tensors to compare, with rows of one length, and the table that they are.

    Their heights differ only with ``rows="shared"``.
    """
    check_choice(table, get_args(TableName), "table")
    check_choice(rows, get_args(ComparedRows), "rows")
    renaming = check_name_map(name_map)
    names = (tensor, tensor) if isinstance(tensor, str) else tensor
    if not isinstance(names, (tuple, list)) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise TypeError(f"tensor is {shown(tensor)}: expected 'auto', a name, or the two names in before and after")
    if renaming and not isinstance(tensor, str):
        raise InputError("tensor has the names in before and after: leave name_map (--map) out, or the second name")
    checkpoints = open_pair(before, after)
    for note in dict.fromkeys(checkpoints[0].notes + checkpoints[1].notes):
        warn_caller(note)
    first = find_tensor(checkpoints[0], names[0], table)
    other = _name_after(*checkpoints, first, tensor, renaming) if isinstance(tensor, str) else names[1]
    second = find_tensor(checkpoints[1], other, table)
    shapes = f"{first} is {list(first.shape)}, {second} is {list(second.shape)}"
    if first.width != second.width:
        raise InputError(f"{shapes}: rows of different lengths are not two states of one model")
    if first.height != second.height and rows == "all":
        raise InputError(
            f"{shapes}: was the vocabulary resized between them? rows='shared' (--rows shared) compares the "
            f"{min(first.height, second.height)} rows that both have"
        )
    if warning := rounding_warning(first, second):
        warn_caller(warning)
    shared = table == "output" and tuple(names) == ("auto", "auto") and all(map(stores_one_table, checkpoints))
    return first, second, "shared" if shared else table


def _name_after(
    before: Checkpoint, after: Checkpoint, tensor: StoredTensor, name: str, name_map: Mapping[str, str]
) -> str:
    """What the tensor of ``before`` that was asked for by ``name`` is called in ``after``."""
    if not name_map and (name == "auto" or name in after):
        return name
    found = aligned_names(before, after, name_map).get(tensor.name)
    if found is None:
        return tensor.name  # find_tensor says that there is none, and which there are
    if not name_map:
        warn_caller(
            f"{after.source} has no tensor {name}: {found} is compared, which ends like it and has the same shape"
        )
    return found
