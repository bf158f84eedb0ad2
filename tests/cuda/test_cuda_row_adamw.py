"""csrc/cuda/row_adamw.cu, executed on the CPU: the bits of the CPU's kernel, and what only a device step does."""

from __future__ import annotations

import math

import pytest
import torch
from adamw_cases import (
    DTYPES,
    HYPER,
    ROWS,
    VOCAB,
    WIDTHS,
    arguments,
    as_step,
    assert_same_bits,
    copied,
    random,
    update_on_the_cpu,
)

from kslottery_fast import ops
from kslottery_fast.ops.schemas import LEFT_OUT


class TestOneTable:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("d", WIDTHS)
    def test_equals_the_cpu_bit_for_bit(self, cuda, d, dtype):
        got = arguments(d, dtype)
        expected = copied(got)
        cuda.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)

    @pytest.mark.parametrize("rows", [ROWS, None])
    @pytest.mark.parametrize("grad_dtype", DTYPES)
    @pytest.mark.parametrize("master", [False, True])
    def test_any_gradient_master_and_whole_tables(self, seeded, rows, grad_dtype, master):
        got = arguments(140, torch.bfloat16, rows=rows, master=master, grad_dtype=grad_dtype)
        expected = copied(got)
        seeded.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    @pytest.mark.parametrize("view", ["columns apart", "odd row stride", "one element off", "transposed"])
    def test_strided_and_unaligned_tables(self, cuda, view, dtype):
        got = arguments(8, dtype)
        for name in ("table", "grad"):
            rows, cols = got[name].shape
            larger = random(rows * 2 + cols, cols * 2 + 1, seed=9, dtype=dtype)
            target = {
                "columns apart": larger[:rows, : 2 * cols : 2],
                "odd row stride": larger[:rows, :cols],
                "one element off": larger.view(-1)[1 : rows * cols + 1].view(rows, cols),
                "transposed": larger.view(-1)[: rows * cols].view(cols, rows).t(),
            }[view]
            got[name] = target.copy_(got[name])
        expected = copied(got)
        cuda.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)

    @pytest.mark.parametrize("d", [2, 5, 6, 7])
    def test_rows_padded_to_whole_packs_whose_end_is_not_theirs(self, cuda, d):
        got = arguments(d)
        for name in ("table", "grad"):
            padded = torch.full((len(got[name]), 8), 77.0)
            got[name] = padded[:, :d].copy_(got[name])
        expected = copied(got)
        cuda.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)
        assert got["table"].as_strided((VOCAB, 8), (8, 1))[:, d:].eq(77).all()

    def test_unaligned_moments(self, cuda):
        got = arguments(8)
        for name in ("exp_avg", "exp_avg_sq"):
            got[name] = torch.cat([torch.zeros(1), got[name].flatten()])[1:].view(3, 8)
        expected = copied(got)
        cuda.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)

    @pytest.mark.parametrize(
        "changes", [{"beta1": 0.3}, {"beta1": 0.0, "beta2": 0.0}, {"eps": 0.1}, {"lr": 0.0}], ids=str
    )
    def test_hyperparameters_at_the_first_step(self, cuda, changes):
        got = arguments(140)
        expected = copied(got)
        cuda.row_adamw_(**got, step=1, **(HYPER | changes))
        update_on_the_cpu(expected, step=1, **changes)
        assert_same_bits(got, expected)

    def test_other_rows_are_neither_read_nor_written(self, cuda):
        got = arguments(140)
        others = [row for row in range(VOCAB) if row not in ROWS]
        got["table"][others] = math.nan
        cuda.row_adamw_(**got, step=3, **HYPER)
        assert got["table"][others].isnan().all()
        assert got["table"][ROWS].isfinite().all()

    def test_special_values_come_out_as_on_the_cpu(self, cuda):
        got = arguments(8)
        got["grad"][0] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38, 1.0])
        expected = copied(got)
        cuda.row_adamw_(**got, step=3, **HYPER)
        update_on_the_cpu(expected, step=3)
        assert_same_bits(got, expected)

    def test_no_rows_is_no_work(self, cuda):
        got = arguments(8, rows=torch.empty(0, dtype=torch.int64))
        before = got["table"].clone()
        cuda.row_adamw_(**got, step=3, **HYPER)
        assert torch.equal(got["table"], before)

    @pytest.mark.parametrize("bad", [-1, VOCAB, 2**40])
    def test_a_row_outside_the_table_ends_the_kernel_and_writes_nothing_outside(self, cuda, bad):
        got = arguments(140) | {"rows": torch.tensor([5, bad, 3])}
        before = got["table"].clone()
        with pytest.raises(RuntimeError, match="device-side assert: a row id is outside the table"):
            cuda.row_adamw_(**got, step=3, **HYPER)
        others = [row for row in range(VOCAB) if row not in (5, 3)]
        assert torch.equal(got["table"][others], before[others])


class TestOneStepOfManyTables:
    """row_adamw_step_: steps and learning rates in device memory."""

    def parts(self):
        return [
            arguments(140),
            arguments(1100, torch.float64),
            arguments(3, torch.bfloat16, master=True),
            arguments(600, torch.float16, rows=None),
        ]

    @pytest.mark.parametrize("count", [1, 4, 16, 17, 35])
    def test_any_number_of_tables_equals_one_after_the_other(self, seeded, shim, count):
        parts = [arguments(5 + 37 * (i % 7), DTYPES[i % 4], rows=None if i % 3 == 0 else ROWS) for i in range(count)]
        expected = [copied(part) for part in parts]
        steps, lrs = [torch.tensor(float(i)) for i in range(count)], [torch.tensor(0.5**i) for i in range(count)]
        control = torch.zeros(3, dtype=torch.int32)
        lists, hyper = as_step(parts, steps, lrs)
        seeded.row_adamw_step_(*lists, control, **hyper)
        for i, (part, reference) in enumerate(zip(parts, expected, strict=True)):
            update_on_the_cpu(reference, step=i + 1, lr=0.5**i)
            assert_same_bits(part, reference)
        assert [step.item() for step in steps] == [i + 1 for i in range(count)]
        assert control.tolist() == [0, 0, 0]

    def test_blocks_take_turns_and_every_tile_is_updated_once(self, cuda, shim):
        parts = [arguments(4096, rows=None), arguments(1, rows=None), arguments(2048, rows=None)]
        expected = [copied(part) for part in parts]
        before = shim.blocks_executed()
        steps, lrs = [torch.tensor(2.0) for _ in parts], [torch.tensor(0.01, dtype=torch.float64)] * 3
        lists, hyper = as_step(parts, steps, lrs)
        cuda.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper)
        assert shim.blocks_executed() - before == 4  # of 7 * 8 + 1 + 7 * 4 tiles
        for part, reference in zip(parts, expected, strict=True):
            update_on_the_cpu(reference, step=3)
            assert_same_bits(part, reference)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_learning_rate_and_the_step_are_read_anew_by_every_launch(self, cuda, dtype):
        part = arguments(140)
        expected = copied(part)
        step, lr = torch.tensor(0.0), torch.tensor(0.0, dtype=dtype)
        lists, hyper = as_step([part], [step], [lr])
        control = torch.zeros(3, dtype=torch.int32)
        for number, rate in enumerate([0.5, 0.25, 0.0, 1.0], start=1):
            lr.fill_(rate)
            cuda.row_adamw_step_(*lists, control, **hyper)
            update_on_the_cpu(expected, step=number, lr=rate)
            assert_same_bits(part, expected)
        assert step.item() == 4

    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.98), (0.0, 0.9999999)], ids=str)
    def test_powers_that_the_device_computes_have_the_bits_of_the_cpu(self, cuda, betas):
        """In float64, which shows every bit. The device multiplies with fma, the CPU without."""
        for step in (*range(1, 40), 100, 1_023, 4_096, 99_999, 10**7, 2**24 - 1):
            part = arguments(4, torch.float64)
            expected = copied(part)
            lists, hyper = as_step([part], [torch.tensor(float(step - 1))], [torch.tensor(0.25)])
            hyper |= {"beta1": [betas[0]], "beta2": [betas[1]]}
            cuda.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper)
            update_on_the_cpu(expected, step=step, lr=0.25, beta1=betas[0], beta2=betas[1])
            assert_same_bits(part, expected)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", [(0, 0, 0), (1, 2, 1099), (2, 1, 2), (3, 6, 599)])
    def test_a_step_with_a_bad_gradient_is_left_out_whole_and_counted(self, seeded, bad, where):
        parts = self.parts()
        table, *place = where
        parts[table]["grad"][tuple(place)] = bad
        before = [copied(part) for part in parts]
        steps, lrs = [torch.tensor(1.0) for _ in parts], [torch.tensor(0.1) for _ in parts]
        lists, hyper = as_step(parts, steps, lrs)
        control = torch.zeros(3, dtype=torch.int32)
        seeded.row_adamw_step_(*lists, control, **hyper, skip_nonfinite=True)
        for part, old in zip(parts, before, strict=True):
            assert_same_bits(part, old)
        assert [step.item() for step in steps] == [1.0] * 4
        assert control.tolist() == [0, 0, 1]
        parts[table]["grad"][tuple(place)] = 1.0
        seeded.row_adamw_step_(*lists, control, **hyper, skip_nonfinite=True)
        assert [step.item() for step in steps] == [2.0] * 4
        assert control.tolist() == [0, 0, 1]
        assert not torch.equal(parts[0]["exp_avg"], before[0]["exp_avg"])

    def test_a_bad_gradient_in_a_later_launch_leaves_out_the_earlier_ones(self, cuda):
        parts = [arguments(5) for _ in range(20)]
        parts[19]["grad"][2, 4] = math.nan
        before = [copied(part) for part in parts]
        steps = [torch.tensor(0.0) for _ in parts]
        lists, hyper = as_step(parts, steps, [torch.tensor(0.1)] * 20)
        control = torch.zeros(3, dtype=torch.int32)
        cuda.row_adamw_step_(*lists, control, **hyper, skip_nonfinite=True)
        for part, old in zip(parts, before, strict=True):
            assert_same_bits(part, old)
        assert control.tolist() == [0, 0, 1]
        assert sum(step.item() for step in steps) == 0

    def test_finite_gradients_of_any_size_are_not_bad(self, cuda):
        parts = self.parts()
        parts[1]["grad"][0] = 1e300
        parts[0]["grad"][0] = 3e38
        steps = [torch.tensor(1.0) for _ in parts]
        lists, hyper = as_step(parts, steps, [torch.tensor(0.1) for _ in parts])
        control = torch.zeros(3, dtype=torch.int32)
        cuda.row_adamw_step_(*lists, control, **hyper, skip_nonfinite=True)
        assert control[LEFT_OUT].item() == 0
        assert [step.item() for step in steps] == [2.0] * 4

    @pytest.mark.parametrize("found_inf", [0.0, 1.0])
    def test_grad_scale_divides_and_found_inf_leaves_out(self, cuda, found_inf):
        parts = self.parts()
        expected = [copied(part) for part in parts]
        for part in parts:
            part["grad"] *= 8
        steps = [torch.tensor(2.0) for _ in parts]
        lists, hyper = as_step(parts, steps, [torch.tensor(0.01, dtype=torch.float64) for _ in parts])
        flags = {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(found_inf)}
        control = torch.zeros(3, dtype=torch.int32)
        cuda.row_adamw_step_(*lists, control, **hyper, **flags)
        for part, reference in zip(parts, expected, strict=True):
            if not found_inf:
                update_on_the_cpu(reference, step=3)
            part["grad"] /= 8
            assert_same_bits(part, reference)
        assert [step.item() for step in steps] == [2.0 if found_inf else 3.0] * 4
        assert control.tolist() == [0, 0, 0]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bad", [False, True])
    def test_rows_are_taken_out_of_the_gradient_of_a_whole_table(self, cuda, dtype, bad):
        part = arguments(140, dtype)
        whole = random(VOCAB, 140, seed=8, dtype=dtype)
        whole[[1, 2, 4, 6]] = math.nan  # rows that are not read
        whole[ROWS[0], 3] = math.nan if bad else 1.0
        part["grad"] = whole[ROWS].clone()
        expected, step = copied(part), torch.tensor(2.0)
        if not bad:
            update_on_the_cpu(expected, step=3)
        lists, hyper = as_step([part], [step], [torch.tensor(0.01, dtype=torch.float64)])
        lists[2][0] = whole
        hyper["whole_grads"] = [True]
        cuda.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper, skip_nonfinite=True)
        assert_same_bits(part, expected)
        assert step.item() == (2 if bad else 3)

    def test_steps_go_up_even_without_rows(self, cuda):
        part = arguments(8, rows=torch.empty(0, dtype=torch.int64))
        step = torch.tensor(4.0)
        lists, hyper = as_step([part], [step], [torch.tensor(0.1)])
        cuda.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper)
        assert step.item() == 5

    def test_what_was_written_has_a_new_version(self, cuda):
        parts = [arguments(8), arguments(8, torch.bfloat16, master=True)]
        steps, control = [torch.tensor(0.0), torch.tensor(0.0)], torch.zeros(3, dtype=torch.int32)
        lists, hyper = as_step(parts, steps, [torch.tensor(0.1)] * 2)
        written = [*lists[0], *lists[3], *lists[4], lists[5][1], *steps, control]
        read = [*lists[2], ROWS]
        before = [tensor._version for tensor in (*written, *read)]
        cuda.row_adamw_step_(*lists, control, **hyper)
        changed = [t._version > v for t, v in zip((*written, *read), before, strict=True)]
        assert changed == [True] * len(written) + [False] * len(read)


class TestLazy:
    """Rows without a gradient are left as they are, in tiles that hold parts of one row or several rows."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("d", WIDTHS)
    def test_equals_the_cpu_bit_for_bit(self, seeded, d, dtype):
        got = arguments(d, dtype, rows=None)
        got["grad"][[0, 3, 6]] = 0.0
        got["grad"][3, d - 1] = 1.0  # in the last tile of its row
        got["grad"][6, 0] = -0.0
        expected, before = copied(got), copied(got)
        seeded.row_adamw_(**got, step=3, **HYPER, lazy=True)
        update_on_the_cpu(expected, step=3, lazy=True)
        assert_same_bits(got, expected)
        for name in ("table", "exp_avg", "exp_avg_sq"):
            same = (got[name] == before[name]).all(dim=1)
            assert same[[0, 6]].all()
            assert not same[[1, 2, 3, 4, 5]].any() or name == "table"

    def test_in_a_step_of_many_tables_with_whole_gradients_and_a_scale(self, seeded):
        parts = [arguments(5 + 37 * (i % 7), DTYPES[i % 4], rows=None if i % 3 == 0 else ROWS) for i in range(19)]
        lazy = [i % 2 == 0 for i in range(19)]
        for part in parts:
            part["grad"][1] = 0.0
        parts[0]["grad"][2] = 1e-45  # 0 after the division
        expected = [copied(part) for part in parts]
        lists, hyper = as_step(parts, [torch.tensor(2.0) for _ in parts], [torch.tensor(0.01)] * 19)
        for i, part in enumerate(parts):
            if part["rows"] is not None:
                lists[2][i] = torch.full_like(part["table"], math.nan).index_copy_(0, ROWS, part["grad"])
                hyper["whole_grads"][i] = True
        scale = torch.tensor(8.0)
        seeded.row_adamw_step_(*lists, torch.zeros(3, dtype=torch.int32), **hyper, lazy=lazy, grad_scale=scale)
        for part, reference, leaves in zip(parts, expected, lazy, strict=True):
            kept, state = reference["grad"], reference["exp_avg"].dtype
            reference["grad"] = kept.to(state) / scale.to(state)
            update_on_the_cpu(reference, step=3, lr=float(torch.tensor(0.01)), lazy=leaves)
            assert_same_bits(part, reference | {"grad": kept})
        assert torch.equal(parts[0]["exp_avg"][2], arguments(5, rows=None)["exp_avg"][2])

    def test_a_step_that_is_left_out_stays_out(self, cuda):
        part = arguments(140)
        part["grad"][1] = 0.0
        part["grad"][2, 7] = math.inf
        before, step = copied(part), torch.tensor(2.0)
        lists, hyper = as_step([part], [step], [torch.tensor(0.1)])
        control = torch.zeros(3, dtype=torch.int32)
        cuda.row_adamw_step_(*lists, control, **hyper, lazy=[True], skip_nonfinite=True)
        assert_same_bits(part, before)
        assert (step.item(), control.tolist()) == (2.0, [0, 0, 1])


def test_the_launcher_checks_what_it_is_given(shim):
    table = torch.zeros(2, 2)
    matrix = ops.kernels._matrix(table)
    zeros = dict.fromkeys(("row_ids", "master", "read", "step_at", "lr_at", "lr_dtype"), 0)
    moments = {"exp_avg": table.data_ptr(), "exp_avg_sq": table.data_ptr()}
    hyper = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    good = {"table": matrix, "k": 2, "grad": matrix, "whole_grad": False, **zeros, **moments, **hyper}
    three = ops.kernels._matrix(torch.zeros(3, 2))
    for fault, message in [
        ({"step_at": 1}, "a step number on the device needs the control's state"),
        ({"step": 0}, "step is 0, but steps count from 1"),
        ({"master": table.data_ptr()}, "master is for tables narrower than float32"),
        ({"grad": ops.kernels._matrix(torch.zeros(2, 3))}, r"grad is \[2, 3\], expected \[2, 2\]"),
        ({"grad": three, "whole_grad": True, "k": 1}, r"grad is \[3, 2\], expected \[2, 2\]"),
        ({"grad": three, "k": 3}, "grad has 3 rows, but table has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            shim.row_adamw_step([shim.RowUpdate(**(good | fault))], 0, 0, 0, False, 0, 0)
    with pytest.raises(ValueError, match="skip_nonfinite needs the control's state"):
        shim.row_adamw_step([shim.RowUpdate(**good)], 0, 0, 0, True, 0, 0)


def test_an_update_takes_its_fields_by_name_alone(shim):
    with pytest.raises(TypeError):
        shim.RowUpdate((0, 0, 0, 0, 0, 1), 0, 0, 0)


def test_quotients_of_32_and_64_bits_are_those_of_the_language(shim):
    assert shim.probe("quotients") == [0] * 49
