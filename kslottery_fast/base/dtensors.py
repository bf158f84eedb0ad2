"""Tensors that are sharded over processes: telling them, their local part, and what all processes must agree on.

DTensors (FSDP2), and parameters that DeepSpeed ZeRO-3 partitioned, which look like empty tensors until gathered. The
ops know no DTensors, so each process works on its own part.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part (FSDP2)."""
    # Importing this takes a second; who holds a DTensor has done so.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, getattr(module, "DTensor", ()))


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds; a plain tensor is its own."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def is_partitioned(tensor: Tensor) -> bool:
    """Tell whether DeepSpeed ZeRO-3 keeps this parameter in parts."""
    return hasattr(tensor, "ds_id")


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is of either kind."""
    return is_dtensor(tensor) or is_partitioned(tensor)


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of all of a tensor."""
    return tensor.ds_shape if is_partitioned(tensor) else tensor.shape  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached. Where it is sharded all processes have to call this, and all get it."""
    if is_partitioned(tensor):
        import deepspeed  # whoever partitioned it has imported this

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    tensor = tensor.detach()
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def rows_of(table: Any, ids: Tensor) -> Tensor:
    """Rows [k, d] of a DTensor, on every process; they all have to call this."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * table.device_mesh.ndim
    index = DTensor.from_local(ids, table.device_mesh, everywhere)
    return whole(torch.nn.functional.embedding(index, table.detach()))


def on_any_process(flag: bool, tensor: Any) -> bool:
    """Whether ``flag`` is set on any of the processes that share a DTensor; for a plain tensor the flag itself."""
    if not is_dtensor(tensor):
        return flag
    found = torch.tensor([flag], dtype=torch.int32, device=tensor.to_local().device)
    for dim in range(tensor.device_mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=tensor.device_mesh.get_group(dim))
    return bool(found.item())
