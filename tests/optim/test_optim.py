"""RowAdamW is torch.optim.AdamW on the sub-table, and touches nothing else."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from optim_cases import ROWS, D, V, gradients, table
from tiny_models import TOKENS, batch, make
from torch import nn

from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import attach_rows, get_rows

# Both round every operation to float32; torch's vector code fuses some, so that the last bits of a step (lr
# 1e-2) differ. 1,000 steps of at most lr each add up to this, and rows move by far more than it.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


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
