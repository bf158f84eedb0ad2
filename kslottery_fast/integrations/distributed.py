"""Rows under torch.distributed: kept whole beside FSDP2's shards, gathered for saving, selected from shards.

DistributedDataParallel needs nothing from here: with attached rows it reduces k x d numbers a step, since nothing
else requires a gradient. ``docs/training.md`` has a recipe for each way to shard a model.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kslottery_fast import ops
from kslottery_fast.dtensors import is_dtensor, is_sharded, local, whole
from kslottery_fast.errors import InputError
from kslottery_fast.rows import attached_model, get_rows
from kslottery_fast.rowset import RowSet
from kslottery_fast.tickets import Tickets, select_tickets

# No mark on the set: a copy or a pickle would keep it, and lose the hook.
_replicated: weakref.WeakSet[RowSet] = weakref.WeakSet()


@torch.no_grad()
def replicate_rows(model: nn.Module, group: dist.ProcessGroup | None = None) -> set[nn.Parameter]:
    """Keep the rows whole on every process and average their gradients, while FSDP2 shards the frozen rest.

    All processes start from the rows of the group's first one. Every backward then reduces k x d numbers. Call it
    after ``attach_rows``, and hand what it returns to ``fully_shard``, which then leaves the rows alone::

        attach_rows(model, tickets)
        fully_shard(model, ignored_params=replicate_rows(model))

    Parameters
    ----------
    model : a model with attached rows, on its device, not sharded yet.
    group : the processes that see different batches; default: all.

    Returns
    -------
    The parameters of all attached sets.

    Raises
    ------
    InputError : no rows attached; rows that are sharded; no process group.

    Notes
    -----
    After :func:`kslottery_fast.adapters.add_rows` call it again: the new set is replicated, the others are left alone.

    In a mixed batch (:func:`kslottery_fast.adapters.mixed_rows`) every process has to read the same sets, since
    each set that got a gradient is reduced.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError("replicate_rows needs a process group; call torch.distributed.init_process_group first")
    embedding = get_rows(attached_model(model))
    assert embedding is not None
    sets = cast("list[RowSet]", list(embedding.row_sets.values()))
    if any(is_sharded(row_set.rows) for row_set in sets):
        raise InputError("the rows are sharded already; call replicate_rows before fully_shard")
    size = dist.get_world_size(group)

    def average(rows: Tensor) -> None:
        # With gradient accumulation grad holds what was averaged before, equal on all processes, and the
        # average of equal numbers is that number: so every backward may do this.
        assert rows.grad is not None
        dist.all_reduce(rows.grad, group=group)
        rows.grad /= size

    for row_set in sets:
        if row_set in _replicated:  # a second hook would reduce its gradients twice
            continue
        dist.broadcast(row_set.rows, group_src=0, group=group)
        row_set.rows.register_post_accumulate_grad_hook(average)
        _replicated.add(row_set)
    return {row_set.rows for row_set in sets}


@torch.no_grad()
def gather_rows(model: nn.Module) -> Tensor:
    """Return the whole rows [k, d] in use, sharded (FSDP2, DeepSpeed ZeRO-3) or not. All processes have to call it.

    With ``save_rows_adapter`` it saves the rows of a sharded model: every process gathers, one writes.

    Raises
    ------
    InputError : no rows attached or in use.
    """
    embedding = get_rows(attached_model(model))
    assert embedding is not None
    return whole(embedding.rows).clone()


def ks_select_sharded(
    emb_before: Tensor,
    emb_after: Tensor,
    alpha: float | None = 0.05,
    *,
    method: str = "auto",
    correction: str | None = None,
    top_k: int | None = None,
) -> Tickets:
    """``ks_select`` on tables that are sharded over processes; no process ever holds a whole table.

    Each process tests the rows of its own shard, and 16 bytes are gathered for each row that counts: those that
    reach the threshold (with "bh" or ``top_k``: those that moved at all). All processes get equal tickets.

    Parameters
    ----------
    emb_before, emb_after : DTensors [V, d] on one device mesh, both ``Shard(0)`` along one mesh dimension and
        replicated along the others: what ``fully_shard`` makes of an embedding.
    alpha, method, correction, top_k : as for :func:`kslottery_fast.ks_select`.

    Raises
    ------
    InputError : not DTensors sharded by rows over one mesh; different shapes; NaN or Inf, on all processes,
        naming token ids; an unknown option.

    Warns
    -----
    RuntimeWarning : no row is selected, or fewer than ``top_k``.
    """
    return select_tickets(_ShardedTables(emb_before, emb_after), alpha, method, correction, top_k)


class _ShardedTables:
    """Two DTensors that are sharded alike by rows."""

    names = ("emb_before", "emb_after")

    def __init__(self, before: Any, after: Any) -> None:
        for name, table in zip(self.names, (before, after), strict=True):
            if not is_dtensor(table):
                raise InputError(f"{name} is a {type(table).__name__}, expected a DTensor; ks_select takes the others")
        if before.shape != after.shape or before.dim() != 2 or before.shape[1] == 0:
            shapes = f"{list(before.shape)} and {list(after.shape)}"
            raise InputError(f"emb_before and emb_after are {shapes}; expected one shape [V, d]")
        alike = before.device_mesh == after.device_mesh and before.placements == after.placements
        by_rows = [dim for dim, placement in enumerate(before.placements) if placement.is_shard(0)]
        others = [placement for placement in before.placements if not placement.is_shard(0)]
        if not alike or len(by_rows) != 1 or not all(placement.is_replicate() for placement in others):
            raise InputError(
                f"emb_before is placed {before.placements}, emb_after {after.placements}; expected both Shard(0) along "
                "one dimension of one mesh and Replicate() along the others: use table.redistribute"
            )
        self.shape = (before.shape[0], before.shape[1])
        self.group: dist.ProcessGroup = before.device_mesh.get_group(by_rows[0])
        self.before, self.after = local(before.detach()), local(after.detach())

    def counts(self, threshold: int = 0) -> Tensor:
        """As selection.Tables says; the same on all processes."""
        h, flags = ops.ks_statistics(self.before, self.after, threshold)
        rows = torch.nonzero((h != 0) | (flags != 0))[:, 0]
        sizes = self._gather(torch.tensor([len(self.before), len(rows)], device=h.device))
        offset = sum(int(size[0]) for size in sizes[: dist.get_rank(self.group)])
        # A row that is not finite travels as -1, so that all processes raise the same error.
        found = torch.stack([rows + offset, torch.where(flags[rows] != 0, -1, h[rows])], dim=1)
        longest = max(int(size[1]) for size in sizes)
        padded = torch.nn.functional.pad(found, (0, 0, 0, longest - len(found)))
        gathered = self._gather(padded)
        ids, h = torch.cat([part[: int(size[1])] for part, size in zip(gathered, sizes, strict=True)]).unbind(1)
        bad = ids[h < 0].tolist()
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise InputError(
                f"emb_before or emb_after has NaN or Inf in {len(bad)} rows (token ids {shown}): training diverged, or "
                "a checkpoint is damaged"
            )
        return torch.zeros(self.shape[0], dtype=torch.int64, device=h.device).index_put_((ids,), h)

    def _gather(self, part: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return parts
