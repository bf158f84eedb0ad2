"""A state dict whose tables are sharded over two processes, saved with torch.distributed.checkpoint."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from stored_tables import NAME, D, V
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

PLACES = {NAME: Shard(0), "columns.weight": Shard(1)}


def made() -> dict[str, torch.Tensor]:
    """The tensors that are saved: one is cut by rows, the other by columns."""
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(V, D, generator=generator) for name in PLACES}


def save_on_two_processes(folder: Path) -> None:
    """Fork two processes, which have all modules at once, and let each save its part."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def _save(rank: int, folder: Path) -> None:
    store = folder.with_name("rendezvous")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    state = {name: distribute_tensor(table, mesh, [PLACES[name]]) for name, table in made().items()}
    dcp.save(state, checkpoint_id=folder)
    dist.barrier()
    os._exit(0)
