"""Updates of row AdamW with the same numbers every time, and the same update by the CPU's kernel."""

from __future__ import annotations

import torch

from kslottery_fast import ops
from kslottery_fast.ops import native

HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
VOCAB, ROWS = 7, torch.tensor([5, 0, 3])
# One column; around a pack (4, or 2 of float64), a warp of packs, a tile (128 packs), and several tiles of several
# blocks that have to loop.
WIDTHS = [1, 3, 4, 5, 126, 128, 131, 171, 172, 512, 515, 1100]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(d, dtype=torch.float32, *, rows=ROWS, master=False, grad_dtype=None):
    """What row_adamw_ takes, with moments as after some steps."""
    table = random(VOCAB, d, dtype=dtype)
    k = VOCAB if rows is None else len(rows)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    exact = table if rows is None else table[rows]
    return {
        "table": table,
        "rows": rows,
        "grad": random(k, d, seed=1, dtype=grad_dtype or dtype),
        "exp_avg": random(k, d, seed=2, dtype=state),
        "exp_avg_sq": random(k, d, seed=3, dtype=state).square(),
        "master": exact.float().contiguous() if master else None,
    }


def copied(values):
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in values.items()}


def assert_same_bits(got, expected):
    for name, value in expected.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def as_step(parts, steps, lrs, **hyper):
    """Arguments of row_adamw_step_ for several of row_adamw_'s."""
    columns = ["table", "rows", "grad", "exp_avg", "exp_avg_sq", "master"]
    lists = [[part[name] for part in parts] for name in columns]
    lists[5] = [torch.empty(0) if master is None else master for master in lists[5]]
    names = ("beta1", "beta2", "eps", "weight_decay")
    per_table = {"whole_grads": [False] * len(parts)}
    return (*lists, steps, lrs), per_table | {name: [hyper.get(name, HYPER[name])] * len(parts) for name in names}


def update_on_the_cpu(values, *, lazy=False, **changes):
    """The same update by the native CPU kernel, which no fixture has replaced."""
    library = native.module()
    assert library is not None
    hyper = HYPER | changes
    table, grad = values["table"], values["grad"]
    matrix = ops.kernels._matrix
    library.row_adamw(
        matrix(table),
        0 if values["rows"] is None else values["rows"].data_ptr(),
        grad.shape[0],
        0 if values["master"] is None else values["master"].data_ptr(),
        matrix(grad),
        values["exp_avg"].data_ptr(),
        values["exp_avg_sq"].data_ptr(),
        hyper["step"],
        *(hyper[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        lazy,
        1,
    )
