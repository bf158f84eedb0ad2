"""Rows under torch.distributed: kept whole where FSDP2 shards the model, gathered for saving.

DistributedDataParallel needs nothing from here. With attached rows it reduces k x d numbers a step, since nothing else
requires a gradient. ``docs/distributed.md`` has a recipe for each way to shard a model.
"""

import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kslottery_fast.base.arguments import check_choice, shown
from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TableName

from .attachment import attached_model, get_output_rows, get_rows
from .rowset import RowSet

# The sets themselves carry no mark: a copy or a pickle would keep the mark and lose the hook.
_replicated: weakref.WeakSet[RowSet] = weakref.WeakSet()


def replicate_rows(model: nn.Module, group: dist.ProcessGroup | None = None) -> set[nn.Parameter]:
    """Keep the rows whole on every process and average their gradients, while FSDP2 shards the frozen rest.

    All processes start from the rows of the group's first process. Every backward then reduces k x d numbers. Call it
    after ``attach_rows``, and hand what it returns to ``fully_shard``, which then leaves the rows alone::

        attach_rows(model, tickets)
        fully_shard(model, ignored_params=replicate_rows(model))

    Parameters
    ----------
    model : nn.Module
        A model with attached rows, on its device, not sharded yet.
    group : ProcessGroup, optional
        The processes that see different batches, by default all of them.

    Returns
    -------
    set of Parameter
        The parameters of all attached sets, those of the head included.

    Raises
    ------
    InputError
        No rows are attached, the rows are sharded, or there is no process group.
    TypeError
        An argument has the wrong type.

    Notes
    -----
    After :func:`kslottery_fast.rows.add_rows` call it again. It replicates the new set and leaves the others alone.

    In a mixed batch (:func:`kslottery_fast.rows.mixed_rows`) every process has to read the same sets, since each set
    that got a gradient is reduced.

    Examples
    --------
    >>> replicate_rows(nn.Embedding(10, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: no rows are attached to this model; call attach_rows first...
    """
    sets = _all_sets(model)
    if not dist.is_available() or not dist.is_initialized():
        raise InputError("replicate_rows needs a process group; call torch.distributed.init_process_group first")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group is {shown(group)}: expected a ProcessGroup, or None for all processes")
    trained = {row_set: list(row_set.parameters(recurse=False)) for row_set in sets}
    if any(is_sharded(parameter) for parameters in trained.values() for parameter in parameters):
        raise InputError("the rows are sharded already; call replicate_rows before fully_shard")
    size = dist.get_world_size(group)

    def average(parameter: Tensor) -> None:
        # With gradient accumulation grad also holds what was averaged before. That is equal on all processes, and the
        # average of equal numbers is that number.
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= size

    for row_set in sets:
        if row_set in _replicated:  # a second hook would reduce its gradients twice
            continue
        for parameter in trained[row_set]:
            with torch.no_grad():
                dist.broadcast(parameter, group_src=0, group=group)
            parameter.register_post_accumulate_grad_hook(average)
        _replicated.add(row_set)
    return {parameter for parameters in trained.values() for parameter in parameters}


def gather_rows(model: nn.Module, *, table: TableName = "input") -> Tensor:
    """Return the whole rows [k, d] in use, sharded (FSDP2, DeepSpeed ZeRO-3) or not. All processes have to call it.

    With ``save_rows_adapter`` it saves the rows of a sharded model: every process gathers, and one writes.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    table : {"input", "output"}
        Whether to gather the rows of the input embedding, or those that the output head has of its own.

    Raises
    ------
    InputError
        No rows are attached or in use, or the head has none of its own. ``table`` is unknown.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> gather_rows(attach_rows(nn.Embedding(10, 4), [7, 3])).shape
    torch.Size([2, 4])
    """
    check_choice(table, ("input", "output"), "table")
    owner = attached_model(model)
    return whole((get_rows(owner) if table == "input" else get_output_rows(owner)).rows).clone()


def _all_sets(model: nn.Module) -> list[RowSet]:
    """The sets of a model, and those of its head."""
    sets = get_rows(attached_model(model)).row_sets.values()
    return [module for row_set in sets for module in row_set.modules() if isinstance(module, RowSet)]
