"""Row AdamW and the row embedding on a real GPU: the CPU's bits, graphs, streams, devices, GradScaler."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kslottery_fast import RowAdamW, attach_rows, ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HYPER: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
VOCAB, K = 997, 18
reduced = pytest.mark.reduced


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_rows(k=K, seed=1):
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))[:k]


def adamw_arguments(d, dtype, master=False):
    rows, table = some_rows(), random(VOCAB, d, dtype=dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    moments = random(K, d, seed=3, dtype=state), random(K, d, seed=4, dtype=state).square()
    exact = table[rows].float() if master else None
    return [table, rows, random(K, d, seed=2, dtype=dtype), *moments], exact


def embedding_arguments(d, dtype, n=(8, 128)):
    trained, slots = some_rows(), torch.full((VOCAB,), -1, dtype=torch.int32)
    slots[trained] = torch.arange(K, dtype=torch.int32)
    generator = torch.Generator().manual_seed(5)
    ids = torch.where(
        torch.rand(n, generator=generator) < 0.5,
        trained[torch.randint(K, n, generator=generator)],
        torch.randint(VOCAB, n, generator=generator),
    )
    return random(VOCAB, d, dtype=dtype), random(K, d, seed=6), slots, ids


def on(device, values):
    return [value.to(device) if torch.is_tensor(value) else value for value in values]


def assert_same_bits(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=0, atol=0, equal_nan=True)


@reduced
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 67, 4096])
def test_row_adamw_gives_the_bits_of_the_cpu(gpu, d, dtype):
    narrow = dtype in (torch.float16, torch.bfloat16)
    values, master = adamw_arguments(d, dtype, master=narrow)
    there, exact = on(gpu, copy.deepcopy(values)), None if master is None else master.to(gpu)
    for step in (1, 2, 500):
        ops.row_adamw_(*values, step=step, master=master, **HYPER)
        ops.row_adamw_(*there, step=step, master=exact, **HYPER)
    assert_same_bits(there + ([exact] if narrow else []), values + ([master] if narrow else []))


@reduced
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 67, 4096])
def test_the_look_up_and_its_gradient_give_the_bits_of_the_cpu(gpu, d, dtype):
    table, rows, slots, ids = embedding_arguments(d, dtype)
    there = on(gpu, (table, rows, slots, ids))
    out = ops.row_embedding(table, rows, slots, ids)
    assert_same_bits([ops.row_embedding(*there)], [out])
    grad = random(*out.shape, seed=7, dtype=dtype)
    ours = ops.row_embedding_backward(grad.to(gpu), there[2], there[3], K)
    assert_same_bits([ours], [ops.row_embedding_backward(grad, slots, ids, K)])


@pytest.mark.parametrize("n", [1, 100, 5_000, 300_000])
@pytest.mark.parametrize("k", [1, 255, 256, 900])
def test_gradients_of_any_number_of_tokens_and_rows(gpu, n, k):
    slots = torch.full((VOCAB,), -1, dtype=torch.int32)
    slots[some_rows(k)] = torch.arange(k, dtype=torch.int32)
    ids = torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(2))
    grad = random(n, 8, dtype=torch.bfloat16)
    got = ops.row_embedding_backward(grad.to(gpu), slots.to(gpu), ids.to(gpu), k)
    assert_same_bits([got], [ops.row_embedding_backward(grad, slots, ids, k)])


def test_ten_runs_give_the_same_bits(gpu):
    there = on(gpu, embedding_arguments(576, torch.float32, (64, 512)))
    grad = torch.randn(64, 512, 576, device=gpu)
    first = ops.row_embedding_backward(grad, there[2], there[3], K)
    for _ in range(9):
        assert_same_bits([ops.row_embedding_backward(grad, there[2], there[3], K)], [first])


def test_a_table_beyond_two_to_the_31_elements(gpu):
    # Of bfloat16, 4.3 GB; the last row starts behind 2^31 elements.
    vocab, d = 525_000, 4_096
    table = torch.zeros(vocab, d, dtype=torch.bfloat16, device=gpu)
    table[-1] = 2.0
    slots = torch.full((vocab,), -1, dtype=torch.int32, device=gpu)
    ids = torch.tensor([vocab - 1, 0, vocab - 1], device=gpu)
    out = ops.row_embedding(table, torch.ones(1, d, device=gpu), slots, ids)
    assert out.float().mean(dim=1).tolist() == [2.0, 0.0, 2.0]
    rows, state = torch.tensor([vocab - 1], device=gpu), torch.zeros(2, 1, d, device=gpu)
    hyper = HYPER | {"lr": 1.0, "weight_decay": 0.0}
    ops.row_adamw_(table, rows, torch.ones(1, d, device=gpu), state[0], state[1], step=1, **hyper)
    assert (table[-1].float().mean().item(), table[:-1].abs().max().item()) == (1.0, 0.0)


def make_optimizer(gpu, kind, dtype=torch.float32, lr=0.1):
    generator = torch.Generator().manual_seed(9)
    table = nn.Parameter(torch.randn(VOCAB, 64, generator=generator).to(gpu, dtype))
    beside = nn.Parameter(torch.randn(33, generator=generator).to(gpu))
    options: dict[str, Any] = {"capturable": True, "nonfinite": "skip"} if kind == "capturable" else {}
    return RowAdamW([{"params": [table], "rows": some_rows()}, {"params": [beside], "lr": 0.3}], lr=lr, **options)


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def gradients(optimizer, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in params_of(optimizer)]


def give(optimizer, grads):
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad = grad if param.grad is None else param.grad.copy_(grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_follows_a_schedule_step_numbers_and_gradients(gpu, dtype):
    optimizer, ordinary = make_optimizer(gpu, "capturable", dtype), make_optimizer(gpu, "ordinary", dtype)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 30) for each in (optimizer, ordinary)]
    stream, graph = torch.cuda.Stream(), None
    for step in range(30):
        grads = gradients(optimizer, step)
        give(optimizer, grads)
        give(ordinary, grads)
        if step < 3:
            stream.wait_stream(torch.cuda.current_stream())  # gradients and the rate were written there just now
            with torch.cuda.stream(stream):
                optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    optimizer.step()
            graph.replay()
        ordinary.step()
        for schedule in schedules:
            schedule.step()
    for ours, theirs in zip(params_of(optimizer), params_of(ordinary), strict=True):
        assert optimizer.state[ours]["step"].item() == 30
        # The schedule computes one rate on the device and the other on the host.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0, 1, 9, 99, 9_999, 10**7])
def test_a_step_number_on_the_device_gives_the_bits_of_the_cpu(gpu, step, dtype):
    d = 4_096
    table, grad, exp_avg = (random(K, d, seed=seed).to(dtype) for seed in (1, 2, 3))
    exp_avg_sq = random(K, d, seed=4).to(dtype).square() + 0.1
    here, there = (
        [each.clone() for each in (table, grad, exp_avg, exp_avg_sq)],
        on(gpu, (table, grad, exp_avg, exp_avg_sq)),
    )
    ops.row_adamw_(here[0], None, *here[1:], step=step + 1, **HYPER)
    number = torch.full((), float(step), device=gpu)
    rate = torch.full((), HYPER["lr"], dtype=torch.float64, device=gpu)
    options: dict[str, Any] = {name: [HYPER[name]] for name in ("beta1", "beta2", "eps", "weight_decay")}
    tensors: list[Any] = [[there[0]], [None], [there[1]], [there[2]], [there[3]], [torch.empty(0)], [number], [rate]]
    tensors.append(torch.zeros(3, dtype=torch.int32, device=gpu))
    ops.row_adamw_step_(*tensors, **options, whole_grads=[False])
    assert number.item() == step + 1
    assert_same_bits(there, here)


def test_a_captured_step_leaves_out_bad_gradients(gpu):
    optimizer = make_optimizer(gpu, "capturable")
    give(optimizer, gradients(optimizer, 0))
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = [param.detach().clone() for param in params_of(optimizer)]
    params_of(optimizer)[1].grad[5] = torch.nan
    graph.replay()
    assert_same_bits(params_of(optimizer), before)
    assert optimizer.skipped_steps == 1
    params_of(optimizer)[1].grad[5] = 1.0
    graph.replay()
    assert optimizer.skipped_steps == 1
    assert optimizer.state[params_of(optimizer)[0]]["step"].item() == 2
    assert not torch.equal(params_of(optimizer)[0], before[0])


@pytest.mark.parametrize("bad_step", [None, 2])
def test_a_grad_scaler_works_with_a_capturable_step_as_with_an_ordinary_one(gpu, bad_step):
    ends = []
    for kind in ("capturable", "ordinary"):
        optimizer, scaler = make_optimizer(gpu, kind), torch.amp.GradScaler("cuda", init_scale=1024.0)
        for step in range(5):
            optimizer.zero_grad()
            grads = gradients(optimizer, step)
            loss = sum((param * grad).sum() for param, grad in zip(params_of(optimizer), grads, strict=True))
            scaler.scale(loss * (torch.inf if step == bad_step else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append((params_of(optimizer), scaler.get_scale()))
    assert ends[0][1] == ends[1][1] == (512.0 if bad_step else 1024.0)
    for ours, theirs in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_optimizer_equals_the_one_on_the_cpu_bit_for_bit(gpu):
    there, here = make_optimizer(gpu, "ordinary"), make_optimizer("cpu", "ordinary")
    for step in range(20):
        grads = gradients(here, step)
        give(here, grads)
        give(there, [grad.to(gpu) for grad in grads])
        here.step()
        there.step()
    assert_same_bits(params_of(there), params_of(here))


def test_a_captured_training_step_with_attached_rows(gpu):
    """Forward, backward and update in one graph: none of the package's ops waits for the device."""
    torch.manual_seed(0)
    model: Any = attach_rows(nn.Embedding(VOCAB, 64).to(gpu), some_rows())
    optimizer = RowAdamW([model.rows], lr=0.1, capturable=True, nonfinite="skip")
    ids = torch.randint(VOCAB, (4, 32), device=gpu)
    ids[:, :4] = some_rows(4).to(gpu)
    weights = torch.randn(4, 32, 64, device=gpu)

    def train() -> None:
        optimizer.zero_grad(set_to_none=False)
        (model(ids) * weights).sum().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()
    graph.replay()
    after_replay = model.rows.detach().clone()
    state = optimizer.state[model.rows]
    assert state["step"].item() == 4
    expected = torch.zeros_like(after_replay).index_add_(
        0, model.slots[ids.flatten()].clamp(min=0).long(),
        torch.where((model.slots[ids] >= 0).unsqueeze(-1), weights, 0.0).view(-1, 64),
    )  # fmt: skip
    torch.testing.assert_close(model.rows.grad, expected, rtol=1e-4, atol=1e-4)


def test_work_goes_on_the_current_stream(gpu):
    """The input is made on a side stream after a long wait: an op on another stream would read it too early."""
    table, rows, slots, ids = on(gpu, embedding_arguments(512, torch.float32))
    expected = ops.row_embedding(table, rows, slots, ids)
    late = torch.zeros_like(table)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(table)
        out = ops.row_embedding(late, rows, slots, ids)
    stream.synchronize()
    assert_same_bits([out], [expected])


def test_no_op_waits_for_the_device(gpu):
    table, rows, slots, ids = on(gpu, embedding_arguments(512, torch.float32))
    rows.requires_grad_()
    optimizer = RowAdamW([rows], capturable=True, nonfinite="skip")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for attempt in range(
            2
        ):  # the first time kernels are loaded and memory is taken from the device, which may wait
            stream.synchronize()
            if attempt:
                torch.cuda._sleep(500_000_000)  # a quarter of a second
            ops.row_embedding(table, rows, slots, ids).sum().backward()
            assert not attempt or not stream.query(), "an op waited"
            optimizer.step()
            assert not attempt or not stream.query(), "the step waited"
    stream.synchronize()


def test_every_device_of_the_machine_works_while_another_is_current(gpu):
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        values, _ = adamw_arguments(67, torch.float32)
        there = on(device, copy.deepcopy(values))
        with torch.cuda.device((index + 1) % torch.cuda.device_count()):
            ops.row_adamw_(*there, step=1, **HYPER)
            arguments = embedding_arguments(67, torch.float32)
            out = ops.row_embedding(*on(device, arguments))
            current = torch.cuda.current_device()
        ops.row_adamw_(*values, step=1, **HYPER)
        assert_same_bits([*there, out], [*values, ops.row_embedding(*arguments)])
        assert current == (index + 1) % torch.cuda.device_count()


@pytest.mark.parametrize("name", ["row_embedding", "row_adamw_step_"])
def test_compiled_with_the_default_backend(gpu, name):
    if name == "row_embedding":
        there = on(gpu, embedding_arguments(64, torch.float32))
        compiled = torch.compile(ops.row_embedding, fullgraph=True)
        assert_same_bits([compiled(*there)], [ops.row_embedding(*there)])
        return
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True)):
        values, _ = adamw_arguments(64, torch.float32)
        lists = [[value] for value in on(gpu, values)]
        scalars = [torch.empty(0)], [torch.zeros((), device=gpu)], [torch.full((), 0.1, device=gpu)]
        control = torch.zeros(3, dtype=torch.int32, device=gpu)
        names = ("beta1", "beta2", "eps", "weight_decay")
        wrap(ops.row_adamw_step_)(
            *lists, *scalars, control, **{name: [HYPER[name]] for name in names}, whole_grads=[False]
        )
        results.append([each[0] for each in lists] + [scalars[1][0]])
    assert_same_bits(*results)
