"""RowAdamW is torch.optim.AdamW on the sub-table, and touches nothing else."""

from __future__ import annotations

import copy
import io

import peft
import pytest
import torch
from tiny_models import TOKENS, batch, make
from torch import nn

from kslottery_fast.errors import InputError
from kslottery_fast.optim import RowAdamW
from kslottery_fast.rows import attach_rows, get_rows

V, D = 30, 8
ROWS = [7, 3, 20]
# Both round every operation to float32; torch's vector code fuses some, so that the last bits of a step (lr
# 1e-2) differ. 1,000 steps of at most lr each add up to this, and rows move by far more than it.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def table(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(V, D, generator=generator).to(dtype))


def gradients(steps: int, shape: tuple[int, ...] = (V, D)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Sizes over eight orders of magnitude, and a row that gets no gradient half of the time.
    grads = [torch.randn(shape, generator=generator) * 10.0 ** ((step % 9) - 6) for step in range(steps)]
    for grad in grads[::2]:
        grad[3 % shape[0]] = 0
    return grads


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_thousand_steps_equal_torch_adamw_on_the_sub_table(weight_decay):
    full, sub = table(), nn.Parameter(table().detach()[ROWS].clone())
    start = full.detach().clone()
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": weight_decay}
    ours = RowAdamW([{"params": [full], "rows": ROWS}], **options)
    theirs = torch.optim.AdamW([sub], foreach=False, **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 1000) for each in (ours, theirs)]
    for grad in gradients(1000):
        full.grad, sub.grad = grad, grad[ROWS].clone()
        for each in (ours, theirs, *schedules):
            each.step()
    torch.testing.assert_close(full[ROWS], sub, **TOLERANCE)
    assert (full - start)[ROWS].abs().min() > 1e-3
    others = [row for row in range(V) if row not in ROWS]
    assert torch.equal(full[others], start[others])
    assert ours.state[full]["exp_avg"].shape == (3, D)


def test_a_compact_parameter_equals_rows_of_a_full_table_bit_for_bit():
    full, compact = table(), nn.Parameter(table().detach()[ROWS].clone())
    ours, small = RowAdamW([{"params": [full], "rows": ROWS}]), RowAdamW([compact])
    for grad in gradients(20):
        full.grad, compact.grad = grad, grad[ROWS].clone()
        ours.step()
        small.step()
    assert torch.equal(full[ROWS], compact)


def test_parameters_of_any_shape_train_beside_rows_as_with_torch():
    shapes = [(4, 5), (6,), (2, 3, 4), ()]
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    others = copy.deepcopy(params)
    ours, theirs = RowAdamW(params, lr=0.1), torch.optim.AdamW(others, lr=0.1, weight_decay=0.0, foreach=False)
    for step in range(10):
        for param, other in zip(params, others, strict=True):
            param.grad = torch.full_like(param, 0.3 * (step - 3))
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, **TOLERANCE)


def test_a_sparse_gradient_gives_the_same_rows_as_a_dense_one_bit_for_bit():
    sparse, dense = nn.Embedding(V, D, sparse=True), nn.Embedding(V, D)
    dense.load_state_dict(sparse.state_dict())
    optimizers = [RowAdamW([{"params": [e.weight], "rows": ROWS}]) for e in (sparse, dense)]
    ids = torch.tensor([7, 7, 20, 4, 7, 0])
    for _ in range(5):
        for embedding, optimizer in zip((sparse, dense), optimizers, strict=True):
            embedding.weight.grad = None
            embedding(ids).square().sum().backward()
            optimizer.step()
    assert sparse.weight.grad.is_sparse
    assert torch.equal(sparse.weight, dense.weight)


def test_the_other_rows_of_weight_and_gradient_are_not_even_read():
    full = table()
    others = [row for row in range(V) if row not in ROWS]
    full.data[others] = float("nan")
    full.grad = torch.full((V, D), float("nan"))
    full.grad[ROWS] = 1.0
    RowAdamW([{"params": [full], "rows": ROWS}]).step()
    assert torch.isfinite(full[ROWS]).all()
    assert torch.isnan(full[others]).all()


def test_momentum_keeps_moving_a_row_whose_gradient_is_zero_as_in_torch():
    full = table()
    optimizer = RowAdamW([{"params": [full], "rows": ROWS}])
    full.grad = torch.ones(V, D)
    optimizer.step()
    after = full.detach().clone()
    full.grad = torch.zeros(V, D)
    optimizer.step()
    assert (full[ROWS] != after[ROWS]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [ROWS, None])
def test_narrow_tables_follow_float32_master_rows(dtype, rows):
    narrow = table(dtype)
    if rows is None:
        narrow = nn.Parameter(narrow.detach()[ROWS].clone())
    exact = nn.Parameter((narrow if rows is None else narrow[ROWS]).detach().float().clone())
    ours = RowAdamW([{"params": [narrow], "rows": rows}], lr=1e-5)
    theirs = torch.optim.AdamW([exact], lr=1e-5, weight_decay=0.0, foreach=False)
    for _ in range(300):  # each step is far below half a unit of a bfloat16 near one
        narrow.grad = torch.ones_like(narrow)
        exact.grad = torch.ones_like(exact)
        ours.step()
        theirs.step()
    got = narrow if rows is None else narrow[ROWS]
    torch.testing.assert_close(ours.state[narrow]["master"], exact.detach(), **TOLERANCE)
    assert torch.equal(got, ours.state[narrow]["master"].to(dtype))


@pytest.mark.parametrize("max_norm", [0.1, 10.0])
def test_a_masked_table_with_accumulation_clipping_and_a_schedule_equals_torch_on_the_sub_table(max_norm):
    full, sub = table(), nn.Parameter(table().detach()[ROWS].clone())
    start = full.detach().clone()
    options = {"lr": 1e-2, "weight_decay": 0.05}
    ours = RowAdamW([{"params": [full], "rows": ROWS}], **options)
    theirs = torch.optim.AdamW([sub], foreach=False, **options)
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.01, 1000) for each in (ours, theirs)]
    clipped = 0
    for index, grad in enumerate(gradients(2000)):
        # What autograd does over two batches; the other rows get gradients too, far larger ones.
        full.grad = grad * 1.0 if full.grad is None else full.grad + grad
        sub.grad = grad[ROWS] if sub.grad is None else sub.grad + grad[ROWS]
        full.grad[[row for row in range(V) if row not in ROWS]] = 1e6
        if index % 2 == 0:
            continue
        ours.mask_gradients()
        norms = [nn.utils.clip_grad_norm_(param, max_norm) for param in (full, sub)]
        torch.testing.assert_close(*norms)
        clipped += bool(norms[1] > max_norm)
        for each in (ours, theirs, *schedules):
            each.step()
        full.grad = sub.grad = None
    assert 100 < clipped < 900
    torch.testing.assert_close(full[ROWS], sub, **TOLERANCE)
    others = [row for row in range(V) if row not in ROWS]
    assert torch.equal(full[others], start[others])


def test_lora_weights_train_beside_rows_as_with_torch():
    def model() -> nn.Module:
        base = make("llama")
        wrapped = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        attach_rows(base, TOKENS, freeze=False)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 10)
        return wrapped

    models = model(), model()
    groups = []
    for each in models:
        rows = get_rows(each).rows
        lora = [p for p in each.parameters() if p.requires_grad and p is not rows]
        assert len(lora) == 8
        groups.append([{"params": [rows], "lr": 1e-2, "weight_decay": 0.0}, {"params": lora, "lr": 1e-3}])
    optimizers = RowAdamW(groups[0], weight_decay=0.1), torch.optim.AdamW(groups[1], weight_decay=0.1, foreach=False)
    for step in range(20):
        for each, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            each(**batch(models[0], seed=step)).logits.square().mean().backward()
            optimizer.step()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4, msg=name)
    assert (get_rows(models[0]).rows - get_rows(models[0]).weight[TOKENS]).abs().max() > 0.05


def test_gradient_accumulation_adds_up_before_the_step():
    one, two = nn.Embedding(V, D), nn.Embedding(V, D)
    two.load_state_dict(one.state_dict())
    for embedding, batches in ((one, [[7, 3, 9, 20]]), (two, [[7, 3], [9, 20]])):
        for ids in batches:
            embedding(torch.tensor(ids)).square().sum().backward()
        RowAdamW([{"params": [embedding.weight], "rows": ROWS}]).step()
    assert torch.equal(one.weight, two.weight)


def test_masking_makes_the_clipping_norm_count_the_trained_rows_alone():
    for sparse in (False, True):
        embedding = nn.Embedding(V, D, sparse=sparse)
        optimizer = RowAdamW([{"params": [embedding.weight], "rows": ROWS}])
        embedding(torch.tensor([7, 1, 2, 2, 3])).sum().backward()
        optimizer.mask_gradients()
        gradient = embedding.weight.grad.to_dense()
        assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 7]
        if not sparse:
            norm = nn.utils.clip_grad_norm_(embedding.parameters(), 1.0)
            assert norm.item() == pytest.approx((2 * D) ** 0.5)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [ROWS, None])
def test_a_run_resumed_in_the_middle_is_bit_equal(dtype, rows):
    def steps(param: nn.Parameter, optimizer: RowAdamW, grads: list[torch.Tensor]) -> None:
        for grad in grads:
            param.grad = grad.to(dtype)
            optimizer.step()

    grads = gradients(40)
    straight = table(dtype)
    steps(straight, RowAdamW([{"params": [straight], "rows": rows}], weight_decay=0.1), grads)

    first = table(dtype)
    optimizer = RowAdamW([{"params": [first], "rows": rows}], weight_decay=0.1)
    steps(first, optimizer, grads[:17])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = nn.Parameter(first.detach().clone())
    resumed = RowAdamW([{"params": [second], "rows": rows}], lr=99.0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    assert resumed.state[second]["exp_avg"].dtype == torch.float32
    assert resumed.state[second]["exp_avg"] is not state["state"][0]["exp_avg"]
    steps(second, resumed, grads[17:])
    assert torch.equal(second, straight)


def test_loading_ones_own_state_changes_nothing_as_accelerate_does_it():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[param]["step"].item() == 2


def test_a_state_moved_to_another_device_loads_again_as_accelerate_does_it():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()
    rows = state["param_groups"][0]["rows"]
    state["param_groups"][0]["rows"] = rows.as_subclass(Elsewhere)
    optimizer.load_state_dict(state)
    assert type(optimizer.param_groups[0]["rows"]) is torch.Tensor
    optimizer.load_state_dict(optimizer.state_dict())


class Elsewhere(torch.Tensor):
    """Stands for a tensor on another device: only its copy on the CPU is a plain tensor."""

    def cpu(self):  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def __deepcopy__(self, memo):
        return self.clone().as_subclass(Elsewhere)


def test_a_state_of_torch_adamw_is_taken_over_by_a_compact_parameter():
    straight, param = (nn.Parameter(table().detach().clone()) for _ in range(2))
    theirs = torch.optim.AdamW([straight], lr=0.01, foreach=False)
    ours = RowAdamW([param], lr=0.5)
    grads = gradients(6)
    for step, grad in enumerate(grads):
        straight.grad = param.grad = grad
        theirs.step()
        if step == 2:
            param.data.copy_(straight.detach())
            ours.load_state_dict(theirs.state_dict())
        elif step > 2:
            ours.step()
    torch.testing.assert_close(param, straight, rtol=1e-6, atol=1e-7)


def test_named_parameters_keep_their_names_as_in_torch():
    embedding = nn.Embedding(V, D)
    optimizer = RowAdamW(embedding.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    embedding.weight.grad = torch.ones_like(embedding.weight)
    before = embedding.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(embedding.weight, before)
    with pytest.raises(InputError, match=r"dtype torch\.int32"):
        RowAdamW([("ids", torch.ones(2, dtype=torch.int32))])


def test_a_state_of_other_rows_or_shapes_is_refused():
    param = table()
    optimizer = RowAdamW([{"params": [param], "rows": ROWS}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()
    other = RowAdamW([{"params": [table()], "rows": [1, 2, 4]}])
    with pytest.raises(InputError, match="of other rows than this optimizer trains"):
        other.load_state_dict(state)
    with pytest.raises(InputError, match="of other rows"):
        RowAdamW([table()]).load_state_dict(state)
    assert not other.state
    narrow = RowAdamW([{"params": [nn.Parameter(torch.ones(V, 4))], "rows": ROWS}])
    with pytest.raises(InputError, match=r"exp_avg \[3, 8\], expected \[3, 4\]"):
        narrow.load_state_dict(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_with_nan_raises_before_anything_is_written(bad):
    first, second = nn.Parameter(torch.ones(2, 3)), table()
    optimizer = RowAdamW([{"params": [first]}, {"params": [second], "rows": ROWS}])
    before = [first.detach().clone(), second.detach().clone()]
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    second.grad[3, 5] = bad
    message = r"\[30, 8\] holds NaN or Inf in 1 rows \(first: token 3\); nothing was updated"
    with pytest.raises(InputError, match=message):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    assert not optimizer.state


def test_a_gradient_with_nan_can_be_skipped_and_the_run_goes_on_as_if_it_had_not_been():
    param, other = table(), table()
    skipping = RowAdamW([{"params": [param], "rows": ROWS}], nonfinite="skip")
    plain = RowAdamW([{"params": [other], "rows": ROWS}])
    for step, grad in enumerate(gradients(6)):
        param.grad = torch.full_like(grad, float("nan")) if step == 3 else grad
        skipping.step()
        if step != 3:
            other.grad = grad
            plain.step()
    assert skipping.skipped_steps == 1
    assert torch.equal(param, other)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_first_step_with_nan_leaves_no_state_behind(nonfinite):
    """Master rows taken then would win over weights that are loaded afterwards."""
    param = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    optimizer = RowAdamW([param], lr=0.5, nonfinite=nonfinite)
    param.grad = torch.full_like(param, float("nan"))
    if nonfinite == "skip":
        optimizer.step()
    else:
        with pytest.raises(InputError, match="nothing was updated"):
            optimizer.step()
    assert not optimizer.state
    param.data.fill_(64.0)
    param.grad.fill_(1.0)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full((3, 4), 63.5, dtype=torch.bfloat16))
    assert not optimizer.state[param]["master"].requires_grad


def test_a_finite_gradient_whose_sum_overflows_is_not_taken_for_a_diverged_one():
    param = nn.Parameter(torch.ones(2, 3, dtype=torch.float16))
    param.grad = torch.full((2, 3), 60_000.0, dtype=torch.float16)
    assert param.grad.sum().isinf()
    RowAdamW([param], lr=0.1).step()
    assert torch.equal(param.detach(), torch.full((2, 3), 0.9, dtype=torch.float16))


def test_a_grad_scaler_leaves_out_steps_with_inf():
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = RowAdamW([param])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((param * torch.tensor(float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, torch.ones(2, 3))
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(param.sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(param.detach(), torch.full((2, 3), 0.99))


def test_none_gradients_and_empty_groups_are_left_alone():
    param, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = RowAdamW([{"params": []}, {"params": [param, unused]}])
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = RowAdamW([param])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert optimizer.step(closure).item() < 4.0


def test_the_learning_rate_is_read_at_every_step():
    param = nn.Parameter(torch.ones(1, 2))
    optimizer = RowAdamW([param], lr=torch.tensor(0.5))
    param.grad = torch.ones_like(param)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((1, 2), 0.5))
    optimizer.param_groups[0]["lr"] = 0.0
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0, expected"),
        ({"lr": float("nan")}, "lr is nan, expected"),
        ({"eps": -1e-8}, "eps is -1e-08, expected"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected two numbers"),
        ({"betas": (0.9,)}, "expected two numbers"),
        ({"nonfinite": "ignore"}, "nonfinite must be 'raise' or 'skip', not 'ignore'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RowAdamW([table()], **options)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"rows": [1, 1]}, "rows has 1 more than once"),
        ({"rows": [V]}, "rows has 30, outside 0..29"),
        ({"rows": []}, "rows is empty"),
        ({"rows": [1], "params": [nn.Parameter(torch.ones(V))]}, r"'rows' needs a table \[V, d\]"),
        ({"params": [nn.Parameter(torch.ones(2), requires_grad=False).to(torch.int32)]}, "dtype torch.int32"),
        ({"params": [nn.Parameter(torch.ones(2, 3, 4).permute(2, 0, 1))]}, "is not contiguous"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_bad_groups_are_refused_and_not_added(group, message):
    optimizer = RowAdamW([table()])
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": [table()], **group})
    assert len(optimizer.param_groups) == 1
