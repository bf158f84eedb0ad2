"""csrc/cuda/row_embedding.cu, executed on the CPU: the bits of the CPU's kernels, forward and backward."""

from __future__ import annotations

import pytest
import torch

from kslottery_fast.ops import native, reference
from kslottery_fast.ops.kernels import _matrix
from kslottery_fast.ops.schemas import DTYPE_CODES

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
VOCAB, TRAINED = 23, torch.tensor([20, 2, 17])
# Around a piece of 16 bytes (2, 4 or 8 elements), the columns of a block backward (128, or 256 of 16 bits), and the
# 512 pieces of a block forward.
WIDTHS = [1, 2, 3, 4, 7, 8, 9, 127, 128, 129, 256, 257, 640]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slot_map(trained=TRAINED, vocab=VOCAB):
    slots = torch.full((vocab,), -1, dtype=torch.int32)
    slots[trained] = torch.arange(len(trained), dtype=torch.int32)
    return slots


def token_ids(n, vocab=VOCAB, seed=0):
    """Half of them with trained rows, each of these many times."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (n,), generator=generator)
    trained = TRAINED[torch.randint(len(TRAINED), (n,), generator=generator)]
    return torch.where(torch.rand(n, generator=generator) < 0.5, trained, ids)


def look_up_on_the_cpu(table, rows, slots, ids):
    out = table.new_empty(*ids.shape, table.shape[1])
    pointers = slots.data_ptr(), ids.data_ptr(), ids.numel(), out.data_ptr()
    native.module().row_embedding(_matrix(table), _matrix(rows), *pointers, 1)
    return out


def add_up_on_the_cpu(grad_out, slots, ids, k):
    dtype = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    sums = torch.empty(k, grad_out.shape[-1], dtype=dtype)
    flat = _matrix(grad_out.reshape(ids.numel(), grad_out.shape[-1]))
    arguments = slots.data_ptr(), len(slots), ids.data_ptr(), ids.numel(), k, sums.data_ptr(), DTYPE_CODES[dtype]
    native.module().row_embedding_backward(flat, *arguments, 1)
    return sums


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def with_guards(rows, cols, dtype):
    """An unfilled matrix with marked elements before and after it, and a check that they are as they were."""
    room = torch.full((64 + rows * cols + 64,), 77.0, dtype=dtype)

    def assert_intact():
        assert room[:64].eq(77).all()
        assert room[64 + rows * cols :].eq(77).all()

    return room[64 : 64 + rows * cols].view(rows, cols), assert_intact


class TestForward:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("d", WIDTHS)
    def test_equals_the_cpu_bit_for_bit(self, cuda, d, dtype):
        arguments = random(VOCAB, d, dtype=dtype), random(3, d, seed=1), slot_map(), token_ids(9)
        assert_same_bits(cuda.row_embedding(*arguments), look_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("rows_dtype", DTYPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_of_any_dtype_are_converted(self, seeded, dtype, rows_dtype):
        rows = random(3, 16, seed=1, dtype=rows_dtype)
        arguments = random(VOCAB, 16, dtype=dtype), rows, slot_map(), token_ids(9)
        assert_same_bits(seeded.row_embedding(*arguments), look_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 200])
    def test_any_number_of_ids_is_written_whole(self, seeded, shim, n):
        arguments = random(VOCAB, 128), random(3, 128, seed=1), slot_map(), token_ids(n)
        before = shim.blocks_executed()
        assert_same_bits(seeded.row_embedding(*arguments), look_up_on_the_cpu(*arguments))
        assert shim.blocks_executed() - before == (n * 32 + 511) // 512

    @pytest.mark.parametrize("d", [3, 4, 128])
    @pytest.mark.parametrize("n", [1, 16, 17])
    def test_nothing_beside_the_output_is_written(self, shim, n, d):
        table, rows, slots, ids = random(VOCAB, d), random(3, d, seed=1), slot_map(), token_ids(n)
        out, assert_intact = with_guards(n, d, torch.float32)
        pointers = slots.data_ptr(), ids.data_ptr(), n, out.data_ptr()
        shim.row_embedding(_matrix(table), _matrix(rows), *pointers, 0, 0)
        assert_same_bits(out, look_up_on_the_cpu(table, rows, slots, ids))
        assert_intact()

    @pytest.mark.parametrize("shape", [(), (3, 0), (2, 3, 4)])
    def test_ids_may_have_any_shape(self, cuda, shape):
        ids = torch.arange(torch.Size(shape).numel()).reshape(shape) % VOCAB
        assert cuda.row_embedding(random(VOCAB, 4), random(3, 4), slot_map(), ids).shape == (*shape, 4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("which", ["table", "rows"])
    @pytest.mark.parametrize("view", ["columns apart", "odd row stride", "one element off", "transposed"])
    def test_strided_and_unaligned_matrices(self, cuda, view, which, dtype):
        values = {"table": random(VOCAB, 16, dtype=dtype), "rows": random(3, 16, seed=1, dtype=dtype)}
        rows, cols = values[which].shape
        larger = torch.zeros(rows, 2 * cols + 1, dtype=dtype)
        target = {
            "columns apart": larger[:, : 2 * cols : 2],
            "odd row stride": larger[:, :cols],
            "one element off": larger.view(-1)[1 : rows * cols + 1].view(rows, cols),
            "transposed": larger.view(-1)[: rows * cols].view(cols, rows).t(),
        }[view]
        values[which] = target.copy_(values[which])
        arguments = values["table"], values["rows"], slot_map(), token_ids(9)
        assert_same_bits(cuda.row_embedding(*arguments), look_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("d", [2, 5, 6, 7])
    def test_rows_padded_to_whole_pieces_whose_end_is_not_theirs(self, cuda, d):
        arguments = torch.rand(VOCAB, 8)[:, :d], torch.rand(3, 8)[:, :d], slot_map(), token_ids(9)
        assert_same_bits(cuda.row_embedding(*arguments), look_up_on_the_cpu(*arguments))

    def test_every_token_trained_and_none(self, cuda):
        table, ids = random(VOCAB, 8), token_ids(40)
        everything = slot_map(torch.arange(VOCAB).flip(0))
        rows = random(VOCAB, 8, seed=1)
        assert_same_bits(cuda.row_embedding(table, rows, everything, ids), rows.flip(0)[ids])
        nothing = slot_map(torch.empty(0, dtype=torch.int64))
        assert_same_bits(cuda.row_embedding(table, rows[:0], nothing, ids), table[ids])

    @pytest.mark.parametrize("bad", [-1, VOCAB, 2**62])
    def test_an_id_outside_the_table_ends_the_kernel(self, cuda, bad):
        with pytest.raises(RuntimeError, match="device-side assert: ids holds an id outside the table"):
            cuda.row_embedding(random(VOCAB, 4), random(3, 4), slot_map(), torch.tensor([0, bad]))

    def test_a_slot_without_a_row_ends_the_kernel(self, cuda):
        slots = slot_map()
        slots[5] = 3
        with pytest.raises(RuntimeError, match="device-side assert: slots holds a slot without a row"):
            cuda.row_embedding(random(VOCAB, 4), random(3, 4), slots, torch.tensor([0, 5]))


class TestBackward:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("d", WIDTHS)
    def test_equals_the_cpu_bit_for_bit(self, cuda, d, dtype):
        arguments = random(61, d, dtype=dtype), slot_map(), token_ids(61), 3
        assert_same_bits(cuda.row_embedding_backward(*arguments), add_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 127, 128, 129, 300])
    def test_any_number_of_ids(self, seeded, n):
        arguments = random(n, 5), slot_map(), token_ids(n), 3
        assert_same_bits(seeded.row_embedding_backward(*arguments), add_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("d", [1, 128, 129, 256])
    def test_nothing_beside_the_sums_and_the_workspace_is_written(self, shim, d, dtype):
        n, slots, ids, grad_out = 64, slot_map(), token_ids(64), random(64, d, dtype=dtype)
        sums, assert_intact = with_guards(3, d, torch.float32)
        size = shim.row_embedding_backward_workspace(n, 3, 0, 0)
        workspace, assert_workspace_intact = with_guards(1, size, torch.uint8)
        where = workspace.data_ptr(), sums.data_ptr(), DTYPE_CODES[torch.float32]
        arguments = slots.data_ptr(), len(slots), ids.data_ptr(), n, 3
        shim.row_embedding_backward(_matrix(grad_out), *arguments, *where, 0, 0)
        assert_same_bits(sums, add_up_on_the_cpu(grad_out, slots, ids, 3))
        assert_intact()
        assert_workspace_intact()

    def test_sums_are_in_the_order_of_the_positions(self, seeded):
        # In float32 (1e8 + 1) - 1e8 is 0 while (1e8 - 1e8) + 1 is 1.
        slots, ids = slot_map(torch.tensor([0, 1]), 2), torch.tensor([0, 1, 0, 1, 0, 1])
        grads = torch.tensor([[1e8], [1e8], [1.0], [-1e8], [-1e8], [1.0]])
        assert seeded.row_embedding_backward(grads, slots, ids, 2).tolist() == [[0.0], [1.0]]

    @pytest.mark.parametrize("repeats", [1, 7, 8, 9, 16, 17])
    def test_a_token_that_fills_the_loads_ahead_exactly_or_not(self, cuda, repeats):
        ids = torch.cat([torch.full((repeats,), 2), torch.tensor([17, 3]), torch.full((repeats,), 20)])
        arguments = random(len(ids), 33), slot_map(), ids, 3
        assert_same_bits(cuda.row_embedding_backward(*arguments), add_up_on_the_cpu(*arguments))

    @pytest.mark.parametrize("k", [1, 2, 3, 4, 255, 256, 257])
    def test_any_number_of_rows_around_the_bits_that_are_sorted_by(self, cuda, k):
        slots = slot_map(torch.randperm(300, generator=torch.Generator().manual_seed(3))[:k], 300)
        ids = torch.cat([torch.arange(300), token_ids(60, 300)])
        arguments = random(len(ids), 2), slots, ids, k
        got = cuda.row_embedding_backward(*arguments)
        assert_same_bits(got, add_up_on_the_cpu(*arguments))
        assert_same_bits(got, reference.row_embedding_backward(*arguments))

    @pytest.mark.parametrize("view", ["expanded", "columns apart", "odd row stride", "one element off"])
    def test_strided_gradients(self, cuda, view):
        larger = random(20, 13, dtype=torch.bfloat16)
        grad_out = {
            "expanded": larger[0, 0].expand(20, 6),
            "columns apart": larger[:, :12:2],
            "odd row stride": larger[:, :6],
            "one element off": larger.view(-1)[1:121].view(20, 6),
        }[view]
        arguments = grad_out, slot_map(), token_ids(20), 3
        assert_same_bits(cuda.row_embedding_backward(*arguments), add_up_on_the_cpu(*arguments))

    def test_rows_without_a_token_get_zeros_and_no_rows_nothing(self, cuda):
        got = cuda.row_embedding_backward(random(4, 6), slot_map(), torch.tensor([1, 1, 2, 3]), 3)
        assert got[[0, 2]].eq(0).all()
        assert got[1].ne(0).all()
        nothing = slot_map(torch.empty(0, dtype=torch.int64))
        assert cuda.row_embedding_backward(random(4, 6), nothing, torch.arange(4), 0).shape == (0, 6)

    @pytest.mark.parametrize("bad", [-1, VOCAB, 2**62])
    def test_an_id_outside_the_table_ends_the_kernel(self, cuda, bad):
        with pytest.raises(RuntimeError, match="device-side assert: ids holds an id outside the table"):
            cuda.row_embedding_backward(random(2, 4), slot_map(), torch.tensor([0, bad]), 3)

    def test_a_slot_without_a_row_ends_the_kernel(self, cuda):
        with pytest.raises(RuntimeError, match="device-side assert: slots holds a slot without a row"):
            cuda.row_embedding_backward(random(2, 4), slot_map(), torch.tensor([0, 17]), 2)

    def test_a_batch_too_large_for_one_call_is_refused(self, shim):
        with pytest.raises(ValueError, match=r"ids has 4294967296 entries; .* split the batch"):
            shim.row_embedding_backward_workspace(2**32, 3, 0, 0)
        with pytest.raises(ValueError, match="k is 2147483648; slots are int32"):
            shim.row_embedding_backward_workspace(3, 2**31, 0, 0)
