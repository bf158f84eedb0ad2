"""Rows under torch.distributed: kept whole beside FSDP2's shards, gathered for saving.

DistributedDataParallel needs nothing from here: with attached rows it reduces k x d numbers a step, since nothing
else requires a gradient. ``docs/training.md`` has a recipe for each way to shard a model.
"""

from __future__ import annotations

import weakref
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError

from .attach import attached_model, get_rows
from .rowset import RowSet

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
    After :func:`kslottery_fast.rows.add_rows` call it again: the new set is replicated, the others are left alone.

    In a mixed batch (:func:`kslottery_fast.rows.mixed_rows`) every process has to read the same sets, since
    each set that got a gradient is reduced.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError("replicate_rows needs a process group; call torch.distributed.init_process_group first")
    sets = cast("list[RowSet]", list(get_rows(attached_model(model)).row_sets.values()))
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
    return whole(get_rows(attached_model(model)).rows).clone()
