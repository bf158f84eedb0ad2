"""Tensors that are sharded over processes: recognizing them, reading them, and decisions of all processes together.

These are DTensors (FSDP2), and parameters that DeepSpeed ZeRO-3 partitioned, which look like empty tensors until they
are gathered. The ops do not take DTensors, so each process works on its own part.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part (FSDP2)."""
    # The import takes a second. A process that holds a DTensor has already done it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, getattr(module, "DTensor", ()))


def local(tensor: Tensor) -> Tensor:
    """Return the part that this process holds. A plain tensor is returned as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def cuts_rows(tensor: Tensor) -> bool:
    """Tell whether this process may hold a part of a row. Only a matrix has several rows."""
    placements = tensor.placements if is_dtensor(tensor) else ()  # type: ignore[attr-defined]
    return any(not (place.is_replicate() or (tensor.dim() == 2 and place.is_shard(0))) for place in placements)


def is_partitioned(tensor: Tensor) -> bool:
    """Tell whether DeepSpeed ZeRO-3 keeps a parameter in parts."""
    return hasattr(tensor, "ds_id")


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor or a parameter in parts."""
    return is_dtensor(tensor) or is_partitioned(tensor)


def whole_shape(tensor: Tensor) -> torch.Size:
    """Return the shape of the whole tensor."""
    return tensor.ds_shape if is_partitioned(tensor) else tensor.shape  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, detached. If it is sharded, all processes have to call this, and all get it."""
    if is_partitioned(tensor):
        import deepspeed  # partitioning the parameter has already imported it

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    tensor = tensor.detach()
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def rows_of(table: Any, ids: Tensor) -> Tensor:
    """Return rows [k, d] of a DTensor on every process. All processes have to call this."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * table.device_mesh.ndim
    index = DTensor.from_local(ids, table.device_mesh, everywhere)
    return whole(torch.nn.functional.embedding(index, table.detach()))


def on_any_process(flag: bool, tensor: Any) -> bool:
    """Tell whether ``flag`` is set on any process that shares a DTensor. For a plain tensor it is the flag itself."""
    if not is_dtensor(tensor):
        return flag
    found = torch.tensor([flag], dtype=torch.int32, device=tensor.to_local().device)
    for dim in range(tensor.device_mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=tensor.device_mesh.get_group(dim))
    return bool(found.item())
