"""The rows of the GPU's table.

They are KS on whole tables and on columns, a step of AdamW on 18 rows, the look-up with its gradient, and training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kslottery_fast import RowAdamW, ks_2samp, ks_select, ks_statistics, ops
from kslottery_fast.ks.significance import critical_count

from . import gpu_training, peers
from .gpu_device import Device
from .ks_workloads import ALPHA, CHANGES, DEVIATION, SEED
from .measure import Contender
from .workloads import Spec, Workload

CASES = ("every row shifted", "5% of rows changed", "identical")
DTYPES = (torch.float32, torch.bfloat16)
KERNEL = "ks_select kernel"  # what of ks_select runs on the device
UNEQUAL_OP, UNEQUAL = "ks_2samp", (200, 100_000, 80_000)  # rows, n, m
SCIPY_ROWS = 2  # that scipy gets in a turn
KS_OPS = ("ks_select", KERNEL, "ks_decide", "ks_statistics")


@dataclass(frozen=True)
class Sizes:
    """The sizes of what is measured. They are small in a dry run."""

    tables: tuple[tuple[int, int], ...] = ((32_000, 4_096), (128_256, 8_192))
    rows: tuple[int, int] = (18, 4_096)  # that train
    vocab: int = 128_256
    tokens: tuple[int, int] = (8, 512)
    sample: int = 4_096  # rows for sort + searchsorted, whose result and work space are 20 times the input
    steps: int = 100  # of AdamW in one graph
    unequal: tuple[int, int, int] = UNEQUAL
    model: tuple[int, int] = (128_256, 4_096)  # its table
    batch: tuple[int, int] = (8, 128)  # tokens of a training step


SMALL = Sizes(
    tables=((96, 64),),
    rows=(3, 16),
    vocab=96,
    tokens=(2, 8),
    sample=16,
    steps=4,
    unequal=(3, 50, 40),
    model=(96, 64),
    batch=(2, 8),
)


def unequal_spec(shape: tuple[int, int, int]) -> Spec:
    """The row of ks_2samp on columns of two sizes."""
    rows, n, m = shape
    return Spec(UNEQUAL_OP, (rows, n), torch.float64, f"against {m:,} values")


def specs(sizes: Sizes) -> list[Spec]:
    """All rows. Those that share their data are next to each other."""
    tables = [
        Spec(op, shape, dtype, case) for shape in sizes.tables for dtype in DTYPES for case in CASES for op in KS_OPS
    ]
    adamw = [Spec("RowAdamW", sizes.rows, torch.float32, case) for case in ADAMW_CASES]
    embedding = [
        Spec("row_embedding", sizes.rows, dtype, case) for dtype in DTYPES for case in ("forward", "forward, backward")
    ]
    steps = [Spec(gpu_training.STEP, sizes.model, torch.bfloat16, case) for case in gpu_training.CASES]
    return [*tables, *adamw, *embedding, unequal_spec(sizes.unequal), *steps]


def prepare(spec: Spec, sizes: Sizes, device: Device) -> Workload:
    """The data and the contenders of one row."""
    if spec.op in KS_OPS:
        return _ks(spec, sizes, device)
    if spec.op == UNEQUAL_OP:
        return _unequal(sizes, device)
    if spec.op == gpu_training.STEP:
        return gpu_training.prepare(spec, sizes.batch, device.torch_device)
    return (_adamw if spec.op == "RowAdamW" else _embedding)(spec, sizes, device)


@functools.lru_cache(maxsize=1)
def tables_of(shape: tuple[int, int], dtype: torch.dtype, case: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both tables, with the same numbers every time. One pair is kept for the ops that share it."""
    share, noise, shift = CHANGES[case]
    generator = torch.Generator(device).manual_seed(SEED)

    def normal(rows: int) -> Tensor:
        return torch.empty(rows, shape[1], device=device).normal_(generator=generator).mul_(DEVIATION)

    before = normal(shape[0])
    after = before.clone()
    changed = torch.randperm(shape[0], generator=generator, device=device)[: round(share * shape[0])]
    for block in changed.split(4096):  # no third table besides the two
        after[block] += normal(len(block)) * noise + shift * DEVIATION
    return before.to(dtype), after.to(dtype)


def _ks(spec: Spec, sizes: Sizes, device: Device) -> Workload:
    before, after = tables_of(spec.shape, spec.dtype, spec.case, device.torch_device)
    threshold = critical_count(spec.shape[1], ALPHA)
    run: dict[str, Callable[[], Any]] = {
        "ks_select": lambda: ks_select(before, after, alpha=ALPHA),
        KERNEL: lambda: ops.ks_statistics(before, after, threshold)[0],
        "ks_decide": lambda: ops.ks_decide(before, after, threshold)[0],
        "ks_statistics": lambda: ks_statistics(before, after),
    }
    ours = Contender(lambda turn: run[spec.op](), waits=spec.op in ("ks_select", "ks_statistics"))
    x, y, scale = peers.sample(before, after, sizes.sample)
    torch_ks = Contender(lambda turn: peers.batched_statistics(x, y), scale)
    chosen = peers.sampled_rows(len(before), sizes.sample).to(device.torch_device)

    def agrees() -> bool:
        expected, result = peers.batched_statistics(x, y), run[spec.op]()
        if spec.op == "ks_select":
            result = result.mask().to(device.torch_device)
        if spec.op in ("ks_select", "ks_decide"):
            expected = expected >= threshold
        elif spec.op == KERNEL:
            expected = torch.where(expected >= threshold, expected, 0)
        return torch.equal(result[chosen], expected)

    contenders = {"ours": ours, **device.floors(before, after), "torch": torch_ks}
    return Workload(contenders, before.nbytes + after.nbytes, agrees=agrees)


def _unequal(sizes: Sizes, device: Device) -> Workload:
    """Both samples lie on the device. scipy gets copies on the host, and few of the rows."""
    (rows, n, m), where = sizes.unequal, device.torch_device
    generator = torch.Generator(where).manual_seed(SEED)
    x, y = (torch.randn(rows, size, generator=generator, device=where, dtype=torch.float64) for size in (n, m))
    y += 0.05
    few = min(rows, SCIPY_ROWS)
    here = [(a.numpy(), b.numpy()) for a, b in zip(x[:few].cpu(), y[:few].cpu(), strict=True)]

    def theirs() -> list[float]:
        return [scipy.stats.ks_2samp(a, b, method="asymp").statistic for a, b in here]

    def ours() -> Tensor:
        return ks_2samp(x, y, method="asymp", axis=1).statistic

    contenders = {
        "ours": Contender(lambda turn: ours(), waits=True),
        "scipy": Contender(lambda turn: theirs(), rows / few, waits=True),
    }

    def agrees() -> bool:
        apart = ours()[:few].cpu() - torch.tensor(theirs(), dtype=torch.float64)
        return bool((apart.abs() < 0.5 / (n * m)).all())  # the statistics are whole multiples of 1 / (n * m)

    return Workload(contenders, x.nbytes + y.nbytes, agrees=agrees)


REPLAY, MANY, EAGER, IN_TABLE = (
    "compact, graph replay",
    "compact, one of many in a graph",
    "compact, eager",
    "in a table, graph replay",
)
ADAMW_CASES = (REPLAY, MANY, EAGER, IN_TABLE)


def _adamw(spec: Spec, sizes: Sizes, device: Device) -> Workload:
    """One step on k rows, as a parameter of their own or in a table. Torch updates a dense table, or the rows alone.

    RowAdamW looks for NaN in every step, but torch does not.
    """
    (k, d), where = spec.shape, device.torch_device
    generator = torch.Generator(where).manual_seed(SEED)

    def parameter(rows: int) -> nn.Parameter:
        value = nn.Parameter(torch.randn(rows, d, generator=generator, device=where))
        value.grad = torch.randn(rows, d, generator=generator, device=where)
        return value

    def ours(param: nn.Parameter) -> Callable[[], object]:
        rows = torch.randperm(len(param), generator=generator, device=where)[:k] if len(param) > k else None
        options = {"lr": 1e-3, "weight_decay": 0.01, "nonfinite": "skip", "capturable": True}
        return RowAdamW([{"params": [param], "rows": rows}], **options).step

    def theirs(param: nn.Parameter) -> Callable[[], object]:
        # On the CPU, where only the dry run is, AdamW cannot be captured.
        captured = {"capturable": True} if where.type == "cuda" else {}
        return torch.optim.AdamW([param], lr=1e-3, weight_decay=0.01, fused=True, **captured).step

    dense, compact = parameter(sizes.vocab), parameter(k)
    peers = {"torch": theirs(dense), "compact": theirs(compact)}
    # Several sets of inputs, each with its own graph.
    sets = sizes.steps if spec.case == MANY else 4
    steps = [ours(dense if spec.case == IN_TABLE else parameter(k)) for _ in range(sets)]
    if spec.case == MANY:
        one_by_one = tuple(steps)
        steps = [device.captured(lambda: [step() for step in one_by_one])]
    elif spec.case != EAGER:
        steps = [device.captured(step) for step in steps]
    if spec.case != EAGER:
        peers = {name: device.captured(step) for name, step in peers.items()}
    run = Contender(lambda turn: steps[turn % len(steps)](), 1 / sets if spec.case == MANY else 1.0)
    contenders = {name: Contender(lambda turn, step=step: step()) for name, step in peers.items()}
    return Workload({"ours": run, **contenders}, 7 * k * d * 4)


def _embedding(spec: Spec, sizes: Sizes, device: Device) -> Workload:
    """Half of the tokens have trained rows. PEFT writes the rows into a copy of the table in every forward."""
    (k, d), where = spec.shape, device.torch_device
    generator = torch.Generator(where).manual_seed(SEED)
    table = torch.randn(sizes.vocab, d, generator=generator, device=where).to(spec.dtype)
    trained = torch.randperm(sizes.vocab, generator=generator, device=where)[:k]
    slots = torch.full((sizes.vocab,), -1, dtype=torch.int32, device=where)
    slots[trained] = torch.arange(k, dtype=torch.int32, device=where)

    def batch() -> Tensor:
        ids = torch.randint(sizes.vocab, sizes.tokens, generator=generator, device=where)
        replaced = trained[torch.randint(k, sizes.tokens, generator=generator, device=where)]
        return torch.where(torch.rand(sizes.tokens, generator=generator, device=where) < 0.5, replaced, ids)

    batches = [batch() for _ in range(8)]
    backward = spec.case != "forward"
    rows = table[trained].float().requires_grad_(backward)
    weight = table.clone().requires_grad_(backward)
    grad = torch.randn(*sizes.tokens, d, generator=generator, device=where).to(spec.dtype)
    looks: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda ids: ops.row_embedding(table, rows, slots, ids),
        "torch": lambda ids: F.embedding(ids, weight),
        "peft": lambda ids: F.embedding(ids, table.index_copy(0, trained, rows.to(table.dtype))),
    }

    def run(look: Callable[[Tensor], Tensor], turn: int) -> None:
        out = look(batches[turn % len(batches)])
        if backward:
            rows.grad = weight.grad = None
            out.backward(grad)

    contenders = {name: Contender(functools.partial(run, look)) for name, look in looks.items()}
    moved = grad.numel() * grad.element_size()  # of the forward: one row read and one written for each token
    return Workload(contenders, None if backward else 2 * moved)
