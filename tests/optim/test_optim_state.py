"""RowAdamW's state: resumed bit for bit, taken over from torch, refused where it does not fit."""

from __future__ import annotations

import io

import pytest
import torch
from optim_cases import ROWS, D, V, gradients, table
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.optim.row_adamw import RowAdamW


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
