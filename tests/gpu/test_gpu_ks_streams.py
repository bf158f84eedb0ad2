"""KS statistics on a real GPU: large tables, streams, graphs, several devices, offsets beyond 2^31."""

from __future__ import annotations

import pytest
import torch

from kslottery_fast import ops


def shifted(rows, d, dtype, device="cpu", seed=0):
    """Two tables. Every third row is equal in both, and the others differ by noise and by a shift."""
    generator = torch.Generator(device).manual_seed(seed)
    before = torch.randn(rows, d, generator=generator, device=device)
    after = before + 0.3 * torch.randn(rows, d, generator=generator, device=device) + 0.02
    after[::3] = before[::3]
    return before.to(dtype), after.to(dtype)


def assert_equal(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("d", [576, 1_024, 2_048, 4_096, 8_192, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_large_random_tables_equal_the_cpus(gpu, dtype, d):
    before, after = shifted(8_000_000 // d, d, dtype)
    there = before.to(gpu), after.to(gpu)
    assert_equal(ops.ks_statistics(*there), ops.ks_statistics(before, after))
    for threshold in (1, d // 50, d // 30):
        assert_equal(ops.ks_decide(*there, threshold), ops.ks_decide(before, after, threshold))
        assert_equal(ops.ks_statistics(*there, threshold), ops.ks_statistics(before, after, threshold))


@pytest.mark.parametrize("sizes", [(576, 576), (4_096, 1_000), (33_000, 40_000)])
def test_sides_and_places_equal_the_cpus(gpu, sizes):
    (n, m), rows = sizes, 2_000_000 // max(sizes)
    x, y = shifted(rows, n, torch.float32)[0], shifted(rows, m, torch.bfloat16, seed=1)[1]
    assert_equal(ops.ks_rows(x.to(gpu), y.to(gpu)), ops.ks_rows(x, y))


def test_any_layout_gives_the_same(gpu):
    before, after = shifted(500, 640, torch.float32, gpu)
    expected = ops.ks_statistics(before, after)
    transposed, every_other = before.t().contiguous().t(), torch.zeros(500, 1_280, device=gpu)[:, ::2].copy_(before)
    unaligned = torch.zeros(before.numel() + 1, device=gpu)[1:].view(before.shape).copy_(before)
    for view in (transposed, every_other, unaligned):
        assert_equal(ops.ks_statistics(view, after), expected)


def test_work_goes_to_the_current_stream_and_waits_for_nothing(gpu):
    before, after = shifted(2_000, 4_096, torch.float32, gpu)
    expected = ops.ks_statistics(before, after)
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(gpu), torch.empty_like(after)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # 0.1 s: what does not keep the order of the stream reads `late` too early
        late.copy_(after)
        result = ops.ks_statistics(before, late)
        assert not stream.query()  # the op came back while the stream still worked
    stream.synchronize()
    assert_equal(result, expected)


@pytest.mark.parametrize("name", ["ks_statistics", "ks_decide", "ks_rows"])
def test_a_captured_graph_sees_new_values(gpu, name):
    before, after = shifted(300, 1_024, torch.float32, gpu)
    arguments = (before, after, 40) if name == "ks_decide" else (before, after)
    op = getattr(ops, name)
    op(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(*arguments)
    for seed in range(3):
        after.copy_(shifted(300, 1_024, torch.float32, gpu, seed=seed)[1])
        graph.replay()
        assert_equal(captured, op(*arguments))


def test_a_captured_graph_has_its_own_memory_for_rows_too_long_for_shared_memory(gpu):
    x, y = shifted(300, 33_000, torch.float32, gpu)
    ops.ks_rows(x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.ks_rows(x, y)
    for seed in range(2):
        y.copy_(shifted(300, 33_000, torch.float32, gpu, seed=seed)[1])
        graph.replay()
        ops.ks_rows(y, x)  # takes and gives back scratch memory of its own between replays
        graph.replay()
        assert_equal(captured, ops.ks_rows(x.cpu(), y.cpu()))


def test_tables_on_another_device_than_the_current_one(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    before, after = shifted(300, 1_024, torch.float32)
    for number in range(torch.cuda.device_count()):
        there = before.to(f"cuda:{number}"), after.to(f"cuda:{number}")
        results = ops.ks_statistics(*there)
        assert results[0].device == there[0].device
        assert_equal(results, ops.ks_statistics(before, after))
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_beyond_2_to_the_31_values_are_found(gpu, dtype):
    d, rows = 4_096, 2**31 // 4_096 + 5
    free, _ = torch.cuda.mem_get_info(gpu)
    if free < 2.2 * rows * d * dtype.itemsize:
        pytest.skip("the tables do not fit this device's memory")
    before = torch.zeros(rows, d, dtype=dtype, device=gpu)
    after = torch.zeros(rows, d, dtype=dtype, device=gpu)
    before[-3:], after[-3:] = (table.to(gpu) for table in shifted(3, d, dtype, seed=3))
    h, flags = ops.ks_statistics(before, after)
    assert h[:-3].max() == 0
    assert flags.max() == 0
    assert torch.equal(h[-3:], ops.ks_statistics(before[-3:].cpu(), after[-3:].cpu())[0].to(gpu))
    assert h[-3:].max() > 0


def test_more_rows_than_2_to_the_24_of_one_value(gpu):
    rows = 2**24 + 7
    before = torch.zeros(rows, 1, device=gpu)
    after = before.clone()
    after[-1] = 1
    h, _ = ops.ks_statistics(before, after)
    assert (h.sum().item(), h[-1].item()) == (1, 1)
