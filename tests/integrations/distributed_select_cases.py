"""Tickets of sharded tables on two gloo processes; distributed_cases.py runs these cases along with its own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tiny_models import make
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from kslottery_fast import InputError, embedding_table, ks_select
from kslottery_fast.tickets.sharded import ks_select_sharded


def select_on_shards_gives_the_tickets_of_the_whole_tables() -> None:
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(61, 64, generator=generator)
    after = before.clone()
    after[::3] += 0.8 * torch.rand(21, 1, generator=generator)
    tables = [distribute_tensor(table, mesh, [Shard(0)]) for table in (before, after)]
    for options in ({}, {"alpha": 0.3}, {"correction": "bh"}, {"top_k": 5}, {"method": "paper"}):
        got = ks_select_sharded(*tables, **options)
        assert got == ks_select(before, after, **options)
        assert len(got) > 0
    head = ks_select_sharded(*tables, table="output")
    assert (head, head.table) == (ks_select(before, after, table="output"), "output")
    only_last = before.clone()
    only_last[60] += 9.0  # nothing to gather from the first process
    assert ks_select_sharded(tables[0], distribute_tensor(only_last, mesh, [Shard(0)])).token_ids.tolist() == [60]
    reordered = before.clone()
    reordered[[3, 60]] = before[[3, 60]].flip(1)
    with pytest.warns(RuntimeWarning, match=r"but 2 rows hold them in another order \(token ids 3, 60\)"):
        ks_select_sharded(tables[0], distribute_tensor(reordered, mesh, [Shard(0)]))


def select_on_the_table_that_fsdp2_sharded() -> None:
    mesh = init_device_mesh("cpu", (2,))
    for tied in (True, False):
        tuned = make("llama", tied=tied)
        with torch.no_grad():
            tuned.get_input_embeddings().weight[[7, 30]] += 4
            if not tied:
                tuned.get_output_embeddings().weight[11] += 4
        models = [fully_shard(model, mesh=mesh) for model in (make("llama", tied=tied), tuned)]
        tickets = ks_select_sharded(*map(embedding_table, models))
        assert (sorted(tickets), tickets.table) == ([7, 30], "input")
        if not tied:
            heads = [model.get_output_embeddings().weight for model in models]
            tickets = ks_select_sharded(*heads, table="output")
            assert (list(tickets), tickets.table) == ([11], "output")


def nan_in_one_shard_is_an_error_on_both_processes() -> None:
    mesh = init_device_mesh("cpu", (2,))
    before, after = torch.randn(10, 8), torch.randn(10, 8)
    dist.broadcast(before, 0)
    dist.broadcast(after, 0)
    after[8, 2], after[9, 1] = float("nan"), float("inf")
    tables = [distribute_tensor(table, mesh, [Shard(0)]) for table in (before, after)]
    for options in ({}, {"top_k": 2}):
        with pytest.raises(InputError, match=r"NaN or Inf in 2 rows \(token ids 8, 9\)"):
            ks_select_sharded(*tables, **options)


SELECT_CASES = {
    case.__name__: case
    for case in (
        select_on_shards_gives_the_tickets_of_the_whole_tables,
        select_on_the_table_that_fsdp2_sharded,
        nan_in_one_shard_is_an_error_on_both_processes,
    )
}
