"""row_embedding reads the overlay, only trained rows get gradients, and conversions round as in torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import reference

VOCAB, D = 50, 2100  # wider than the pieces of 1024 that the kernels work in
TRAINED = torch.tensor([31, 2, 17])
IDS = torch.tensor([[2, 31, 5, 2], [49, 2, 0, 17]])
both = pytest.mark.parametrize("module", [ops, reference], ids=["native", "reference"])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slot_map(trained=TRAINED, vocab=VOCAB):
    slots = torch.full((vocab,), -1, dtype=torch.int32)
    slots[trained] = torch.arange(len(trained), dtype=torch.int32)
    return slots


def overlay(table, rows):
    return table.index_copy(0, TRAINED, rows.to(table.dtype))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_an_embedding_of_the_table_with_the_rows_written_in(module, dtype):
    table, rows = random(VOCAB, D, dtype=dtype), random(3, D, seed=1)
    out = module.row_embedding(table, rows, slot_map(), IDS)
    assert torch.equal(out, functional.embedding(IDS, overlay(table, rows)))
    assert out.dtype == dtype


@both
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_ids_may_have_any_shape(module, shape):
    ids = torch.arange(torch.Size(shape).numel()).reshape(shape) % VOCAB
    out = module.row_embedding(random(VOCAB, 4), random(3, 4), slot_map(), ids)
    assert out.shape == (*shape, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_equals_that_of_the_overlay_and_accumulates_in_float32(dtype):
    table = random(VOCAB, D, dtype=dtype)
    weights = random(*IDS.shape, D, seed=2, dtype=dtype)
    rows = random(3, D, seed=1).requires_grad_()
    (ops.row_embedding(table, rows, slot_map(), IDS) * weights).sum().backward()
    expected = torch.stack([weights[token == IDS].float().sum(dim=0) for token in TRAINED])
    assert rows.grad.dtype == torch.float32
    torch.testing.assert_close(rows.grad, expected, rtol=1e-6, atol=1e-6)
    assert table.grad is None


def test_gradcheck_in_float64():
    table, rows = (
        random(9, 4, dtype=torch.float64),
        random(2, 4, seed=1, dtype=torch.float64).requires_grad_(),
    )
    slots, ids = slot_map(torch.tensor([7, 1]), 9), torch.tensor([7, 1, 1, 3])
    assert torch.autograd.gradcheck(lambda r: ops.row_embedding(table, r, slots, ids), (rows,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradient_has_the_dtype_of_the_rows(dtype):
    rows = random(3, 4, dtype=dtype).requires_grad_()
    ops.row_embedding(random(VOCAB, 4), rows, slot_map(), IDS).sum().backward()
    assert rows.grad.dtype == dtype
    assert rows.grad[:, 0].tolist() == [1, 3, 1]


def test_a_frozen_overlay_records_no_gradient():
    assert not ops.row_embedding(random(VOCAB, 4), random(3, 4), slot_map(), IDS).requires_grad


def test_a_table_that_requires_grad_is_refused_rather_than_left_untrained():
    table, rows = random(VOCAB, 4).requires_grad_(), random(3, 4).requires_grad_()
    with pytest.raises(InputError, match=r"table requires grad, .* use table.requires_grad_\(False\)"):
        ops.row_embedding(table, rows, slot_map(), IDS)


@both
def test_backward_adds_up_in_the_order_of_the_positions(module):
    # In float32 (1e8 + 1) - 1e8 is 0 while (1e8 - 1e8) + 1 is 1.
    slots, ids = slot_map(torch.tensor([0, 1]), 2), torch.tensor([0, 1, 0, 1, 0, 1])
    grads = torch.tensor([[1e8], [1e8], [1.0], [-1e8], [-1e8], [1.0]])
    assert module.row_embedding_backward(grads, slots, ids, 2).tolist() == [[0.0], [1.0]]


def test_backward_takes_an_expanded_gradient():
    slots = slot_map()
    expanded = torch.tensor(2.0).expand(*IDS.shape, 3)
    got = ops.row_embedding_backward(expanded, slots, IDS, 3)
    assert torch.equal(got, ops.row_embedding_backward(expanded.contiguous(), slots, IDS, 3))


@both
@pytest.mark.parametrize("bad", [-1, VOCAB, 2**62])
def test_an_id_outside_the_table_is_an_error_not_a_memory_fault(module, bad):
    ids = torch.tensor([0, bad])
    message = f"ids holds {bad}, outside the table's rows 0 to {VOCAB - 1}"
    with pytest.raises(InputError, match=message):
        module.row_embedding(random(VOCAB, 4), random(3, 4), slot_map(), ids)
    with pytest.raises(InputError, match=message):
        module.row_embedding_backward(random(2, 4), slot_map(), ids, 3)


@both
def test_a_slot_without_a_row_is_an_error(module):
    slots = slot_map()
    slots[5] = 3
    with pytest.raises(InputError, match=r"slots.* 3, but there are 3 rows"):
        module.row_embedding(random(VOCAB, 4), random(3, 4), slots, IDS)
    with pytest.raises(InputError, match=r"slots.* 3, but there are 3 rows"):
        module.row_embedding_backward(random(*IDS.shape, 4), slots, IDS, 3)


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": random(VOCAB)}, "table has shape .*two dimensions"),
        ({"rows": random(3, 5)}, r"rows has shape \[3, 5\]; expected 4 columns, as table has"),
        ({"slots": slot_map().long()}, r"slots is torch.int64 \[50\]; expected int32"),
        ({"slots": slot_map()[:-1]}, "slots has 49 entries; expected 50, one per row of table"),
        ({"ids": IDS.int()}, r"ids has dtype torch.int32; expected int64 token ids: use ids.long\(\)"),
    ],
)
def test_bad_arguments_are_named(module, changes, message):
    arguments = {"table": random(VOCAB, 4), "rows": random(3, 4), "slots": slot_map(), "ids": IDS} | changes
    with pytest.raises(InputError, match=message):
        module.row_embedding(**arguments)


@both
def test_backward_names_a_gradient_of_another_shape_and_a_negative_k(module):
    with pytest.raises(InputError, match=r"grad_out has shape \[8, 4\]; expected the shape of ids, \[2, 4\], and"):
        module.row_embedding_backward(random(8, 4), slot_map(), IDS, 3)
    with pytest.raises(InputError, match="k is -1; expected the number of trained rows"):
        module.row_embedding_backward(random(2, 4, 4), slot_map(), IDS, -1)


class TestConversions:
    """csrc/dtypes.h by way of the look-up: rows of one dtype read through a table of another."""

    def convert(self, values, dtype):
        slots, ids = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        table = torch.zeros(1, len(values), dtype=dtype)
        return ops.row_embedding(table, values[None], slots, ids)[0]

    def assert_same_value(self, got, expected):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
        signs = got.signbit() == expected.signbit()
        assert signs[~expected.isnan()].all()  # tells -0.0 from 0.0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_all_65536_narrow_values_widen_exactly(self, dtype):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        self.assert_same_value(self.convert(values, torch.float32), values.float())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_random_bit_patterns_halfway_points_and_edges_narrow_as_in_torch(self, dtype):
        bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
        narrow = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
        halfway = (narrow[:-1].double() + narrow[1:].double()).div(2).float()
        edges = torch.tensor([65519.996, 65520.0, 2.0**-14, 2.0**-25, 2.0**-24, 1e-45, -0.0, torch.inf, -torch.inf])
        around = torch.cat([halfway, halfway.nextafter(torch.tensor(torch.inf)), narrow])
        values = torch.cat([bits.to(torch.int32).view(torch.float32), around, edges, -edges, edges.mul(3)])
        self.assert_same_value(self.convert(values, dtype), values.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_doubles_narrow_as_in_torch(self, dtype):
        values = random(10_000, dtype=torch.float64) * 10.0 ** random(10_000, seed=1, dtype=torch.float64).mul(3)
        self.assert_same_value(self.convert(values, dtype), values.to(dtype))
