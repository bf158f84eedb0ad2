"""What two gloo processes do: run by test_distributed.py, once for all cases, as RANK=r python distributed_cases.py.

Each case is a function without arguments that asserts; the outcome of all goes to the file named by the argument.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from distributed_head_cases import HEAD_CASES
from distributed_select_cases import SELECT_CASES
from tiny_models import TOKENS, batch, make
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kslottery_fast import (
    InputError,
    RowAdamW,
    add_rows,
    attach_rows,
    embedding_table,
    get_rows,
    ks_select,
    ks_select_rows,
    merge_rows,
    use_rows,
)
from kslottery_fast.rows.adapter_file import load_adapter, save_adapter
from kslottery_fast.rows.attach import output_role
from kslottery_fast.rows.distributed import gather_rows, replicate_rows
from kslottery_fast.tickets.sharded import ks_select_sharded

K, D, STEPS = len(TOKENS), 16, 4
CASES: dict[str, Callable[[], None]] = HEAD_CASES | SELECT_CASES


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def raises(message: str, function: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        function()


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    """The mean square of the logits on a batch of this rank's own."""
    inputs = batch(embedding_owner(model), seed=10 * step + rank)
    return model(**inputs).logits.float().square().mean()


def embedding_owner(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def alone(token_ids: list[int], dtype: torch.dtype = torch.float32, output: str = "auto") -> torch.Tensor:
    """The rows after the same steps in one process, on the average of all ranks' losses."""
    model = attach_rows(make("llama").to(dtype), token_ids, output=output)
    optimizer = RowAdamW([get_rows(model).rows], lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        torch.stack([loss_of(model, step, rank) for rank in range(2)]).mean().backward()
        optimizer.step()
    return get_rows(model).rows.detach()


def accumulated_alone() -> torch.Tensor:
    """The gradient of two steps in one process, on the average of all ranks' losses."""
    model = attach_rows(make("llama"), TOKENS)
    for step in range(2):
        torch.stack([loss_of(model, step, rank) for rank in range(2)]).mean().backward()
    return get_rows(model).rows.grad


def train(model: nn.Module, optimizer: RowAdamW, steps: range = range(STEPS)) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, dist.get_rank()).backward()
        optimizer.step()


def check(rows: torch.Tensor, want: torch.Tensor, token_ids: list[int] = TOKENS) -> None:
    """The rows of this process are those of one process, have moved, and are the same bits on both."""
    # Adam divides a gradient by its own size: sums in another order move a row by a small part of a step.
    torch.testing.assert_close(rows, want, rtol=0, atol=1e-4)
    start = make("llama").get_input_embeddings().weight.detach()[token_ids]
    assert (want - start).abs().max() > 0.1
    every = [torch.empty_like(rows) for _ in range(2)]
    dist.all_gather(every, rows.contiguous())
    assert torch.equal(every[0], every[1])


def sharded(
    token_ids: list[int] = TOKENS, *, replicated: bool, dtype: torch.dtype = torch.float32, output: str = "auto"
) -> nn.Module:
    """Each layer and the rest are units of FSDP2."""
    model = attach_rows(make("llama").to(dtype), token_ids, output=output)
    ignored = replicate_rows(model) if replicated else set()
    for layer in model.model.layers:
        fully_shard(layer, ignored_params=ignored)
    fully_shard(model, ignored_params=ignored)
    table = embedding_table(model)
    assert isinstance(table, DTensor)
    assert len(table.to_local()) == len(table) // 2
    return model


@case
def ddp_reduces_k_times_d_numbers_a_step_and_trains_as_one_process() -> None:
    for output in ("frozen", "tied"):
        model = attach_rows(make("llama"), TOKENS, output=output)
        wrapped, sizes = DistributedDataParallel(model), []

        def count(_, bucket, sizes=sizes):
            sizes.append(bucket.buffer().numel())
            total = dist.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
            return total.then(lambda future: future.value()[0])

        wrapped.register_comm_hook(None, count)
        train(wrapped, RowAdamW([get_rows(wrapped).rows], lr=0.05))
        assert sizes == [K * D] * STEPS, sizes
        assert not [name for name, _ in model.named_buffers() if "row" in name]  # DDP sends buffers in each forward
        check(get_rows(wrapped).rows.detach(), alone(TOKENS, output=output))


@case
def ddp_with_accumulation_reduces_once_a_step() -> None:
    model = attach_rows(make("llama"), TOKENS)
    wrapped, sizes = DistributedDataParallel(model), []

    def count(_, bucket):
        sizes.append(bucket.buffer().numel())
        return dist.all_reduce(bucket.buffer() / 2, async_op=True).get_future().then(lambda f: f.value()[0])

    wrapped.register_comm_hook(None, count)
    with wrapped.no_sync():
        loss_of(wrapped, 0, dist.get_rank()).backward()
    loss_of(wrapped, 1, dist.get_rank()).backward()
    assert sizes == [K * D]
    torch.testing.assert_close(get_rows(model).rows.grad, accumulated_alone())


@case
def replicated_and_sharded_rows_accumulate_the_average_gradient() -> None:
    # On its own: Adam divides a gradient by its size, so that the steps would hide a factor.
    for replicated in (True, False):
        model = sharded(replicated=replicated)
        for step in range(2):
            loss_of(model, step, dist.get_rank()).backward()
        gradient = get_rows(model).rows.grad
        whole = gradient if replicated else gradient.full_tensor()
        torch.testing.assert_close(whole, accumulated_alone())


@case
def fsdp2_with_replicated_rows_trains_as_one_process() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = sharded(replicated=True, dtype=dtype)
        rows = get_rows(model).rows
        assert not isinstance(rows, DTensor)
        assert rows.dtype == torch.float32
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
            train(model, RowAdamW([rows], lr=0.05))
        assert [call.args[0].numel() for call in reduce.call_args_list] == [K * D] * STEPS
        if dtype == torch.float32:
            check(gather_rows(model), alone(TOKENS))


@case
def fsdp2_with_sharded_rows_trains_as_one_process() -> None:
    # Three rows on two processes; and one process without any.
    for token_ids, output in ((TOKENS, "frozen"), (TOKENS, "tied"), ([7], "frozen")):
        model = sharded(token_ids, replicated=False, output=output)
        rows = get_rows(model).rows
        assert isinstance(rows, DTensor)
        optimizer = RowAdamW([rows], lr=0.05)
        train(model, optimizer)
        assert len(rows.to_local()) == (len(token_ids) + 1 - dist.get_rank()) // 2
        assert optimizer.state[rows]["exp_avg"].to_local().shape == rows.to_local().shape
        check(gather_rows(model), alone(token_ids, output=output), token_ids)


@case
def fsdp2_shards_float32_rows_of_a_bfloat16_model() -> None:
    model = sharded(replicated=False, dtype=torch.bfloat16)
    before = gather_rows(model)
    train(model, RowAdamW([get_rows(model).rows], lr=0.05))
    assert get_rows(model).rows.dtype == torch.float32
    assert (gather_rows(model) - before).abs().max() > 0.1


@case
def a_sharded_run_resumes_bit_for_bit() -> None:
    straight, resumed = sharded(replicated=False), sharded(replicated=False)
    optimizers = [RowAdamW([get_rows(model).rows], lr=0.05, weight_decay=0.1) for model in (straight, resumed)]
    train(straight, optimizers[0])
    train(resumed, optimizers[1], range(2))
    again = RowAdamW([get_rows(resumed).rows], lr=0.05, weight_decay=0.1)
    again.load_state_dict(optimizers[1].state_dict())
    train(resumed, again, range(2, STEPS))
    assert torch.equal(gather_rows(straight), gather_rows(resumed))


@case
def a_whole_state_dict_that_one_process_has_read_is_loaded_by_both() -> None:
    whole = attach_rows(make("llama"), [11, 4, 8])
    get_rows(whole).rows.data.mul_(3)
    for replicated, broadcast in itertools.product((True, False), repeat=2):
        model = sharded(replicated=replicated)
        has_read = not broadcast or dist.get_rank() == 0
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        set_model_state_dict(model, dict(whole.state_dict()) if has_read else {}, options=options)
        assert get_rows(model).token_ids.tolist() == [11, 4, 8]
        assert torch.equal(gather_rows(model), get_rows(whole).rows)


@case
def nan_on_one_process_stops_the_step_on_both() -> None:
    for policy in ("raise", "skip"):
        model = sharded(replicated=False)
        rows, before = get_rows(model).rows, gather_rows(model)
        optimizer = RowAdamW([rows], nonfinite=policy)
        loss_of(model, 0, 0).backward()
        if dist.get_rank() == 1:
            rows.grad.to_local().fill_(float("nan"))
        if policy == "skip":
            optimizer.step()
            assert optimizer.skipped_steps == 1
        else:
            raises("NaN or Inf in 1 rows" if dist.get_rank() else "NaN or Inf on another process", optimizer.step)
        assert torch.equal(gather_rows(model), before)


@case
def tickets_of_sharded_rows_are_those_of_whole_ones() -> None:
    model, whole = sharded(replicated=False), attach_rows(make("llama"), TOKENS)
    with torch.no_grad():
        get_rows(whole).rows[1] += 5
        rows = get_rows(model).rows
        rows.copy_(distribute_tensor(get_rows(whole).rows.detach(), rows.device_mesh, rows.placements))
    assert ks_select_rows(model) == ks_select_rows(whole)
    assert ks_select_rows(model).token_ids.tolist() == [TOKENS[1]]


@case
def an_adapter_of_a_sharded_model_is_that_of_the_whole_one() -> None:
    for replicated, output in itertools.product((True, False), ("frozen", "tied")):
        model = sharded(replicated=replicated, output=output)
        train(model, RowAdamW([get_rows(model).rows], lr=0.05))
        with tempfile.TemporaryDirectory() as own:
            folders: list[str] = [own, own]
            dist.broadcast_object_list(folders)
            save_adapter(model, folders[0])
            dist.barrier()
            assert (dist.get_rank() == 0) or not list(Path(own).iterdir())
            loaded = load_adapter(make("llama"), folders[0])
            dist.barrier()
        assert output_role(loaded) == output
        assert torch.equal(get_rows(loaded).rows, gather_rows(model))
        inputs = batch(make("llama"))
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@case
def what_does_not_fit_is_refused() -> None:
    mesh = init_device_mesh("cpu", (2,))
    table = torch.ones(10, 8)
    rows, columns = (distribute_tensor(table, mesh, [Shard(dim)]) for dim in (0, 1))
    raises("emb_before is a Tensor: expected a DTensor", lambda: ks_select_sharded(table, rows))
    raises("expected both Shard(0)", lambda: ks_select_sharded(rows, columns))
    whole = distribute_tensor(table, mesh, [Replicate()])
    raises("expected both Shard(0)", lambda: ks_select_sharded(whole, whole))
    narrow = distribute_tensor(torch.ones(10, 4), mesh, [Shard(0)])
    raises("[10, 8] and [10, 4]", lambda: ks_select_sharded(rows, narrow))
    raises("use kslottery_fast.tickets.ks_select_sharded", lambda: ks_select(rows, rows))
    model = sharded(replicated=False)
    raises("the rows are sharded already; call replicate_rows before", lambda: replicate_rows(model))
    raises("cannot merge into a table that is sharded; save the rows", lambda: merge_rows(model))
    raises("is sharded (a DTensor); attach the rows before", lambda: attach_rows(fully_shard(make("llama")), TOKENS))
    parameter = nn.Parameter(rows)
    raises("'rows' needs a whole table", lambda: RowAdamW([{"params": [parameter], "rows": [1]}]))


@case
def replicas_start_from_the_rows_of_the_first_process_in_every_set() -> None:
    model = add_rows(attach_rows(make("llama"), TOKENS), "fr", [9])
    with torch.no_grad():
        for row_set in get_rows(model).row_sets.values():
            row_set.rows.fill_(float(dist.get_rank()))
    assert len(replicate_rows(model)) == 2
    assert all(row_set.rows.abs().max() == 0 for row_set in get_rows(model).row_sets.values())


@case
def a_set_that_is_added_later_is_replicated_by_another_call_and_no_set_twice() -> None:
    model = attach_rows(make("llama"), TOKENS)
    first = replicate_rows(model)
    add_rows(model, "fr", TOKENS)
    sets = get_rows(model).row_sets
    with torch.no_grad():
        sets["fr"].rows.add_(float(dist.get_rank()))
    copied = copy.deepcopy(model)
    with mock.patch.object(dist, "broadcast", wraps=dist.broadcast) as sent:
        assert replicate_rows(model) == {*first, sets["fr"].rows}
        assert sent.call_count == 1
        assert len(replicate_rows(copied)) == 2  # a copy has lost the hooks
        assert sent.call_count == 3
    for each in (model, copied):
        for name in ("default", "fr"):
            use_rows(each, name)
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
                for step in range(2):
                    loss_of(each, step, dist.get_rank()).backward()
            assert reduce.call_count == 2
            torch.testing.assert_close(get_rows(each).rows.grad, accumulated_alone())


@case
def ddp_with_sets_that_no_batch_reads_needs_to_be_told() -> None:
    for told in (True, False):
        model = add_rows(attach_rows(make("llama"), TOKENS), "fr", [9])
        wrapped = DistributedDataParallel(model, find_unused_parameters=told)
        loss_of(wrapped, 0, dist.get_rank()).backward()
        with nullcontext() if told else pytest.raises(RuntimeError, match="find_unused_parameters=True"):
            loss_of(wrapped, 1, dist.get_rank()).backward()
        if told:
            torch.testing.assert_close(get_rows(model).rows.grad, accumulated_alone())


def outcome_of(function: Callable[[], None]) -> str:
    try:
        function()
    except BaseException:
        return traceback.format_exc()
    return ""


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    outcomes = {name: outcome_of(function) for name, function in CASES.items()}
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(outcomes), encoding="utf-8")
    # No barrier and no destroy_process_group: after a failure on one side they would wait for ever.
    os._exit(0)


if __name__ == "__main__":
    main()
