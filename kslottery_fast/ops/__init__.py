"""The operators that are registered with torch, ``torch.ops.kslottery.*``, and one Python function for each.

Importing this module registers them. They work in eager mode and under ``torch.compile(fullgraph=True)``. On the CPU
and on CUDA they run in native kernels, on other devices in plain torch. Inputs may be strided or transposed views,
which the native kernels do not copy.
"""

import torch
from torch import Tensor

from kslottery_fast.base.arguments import check_flag

from . import kernels, native, reference, schemas
from .arguments import (
    NUMBERS,
    require_integers,
    require_lists,
    require_numbers,
    require_tensors,
    require_tensors_or_none,
)
from .native import info

__all__ = [
    "info",
    "kernels",
    "ks_decide",
    "ks_rows",
    "ks_statistics",
    "native",
    "reference",
    "row_adamw_",
    "row_adamw_step_",
    "row_embedding",
    "row_embedding_backward",
    "schemas",
]


def ks_rows(x: Tensor, y: Tensor, sides: str = "both") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Exact two-sample Kolmogorov-Smirnov statistics, row by row, for both sides.

    With F and G the right-continuous empirical distribution functions of ``x[r]`` and ``y[r]``, the two sides are D+ =
    sup(F - G) and D- = sup(G - F). Both are multiples of 1 / L with L = n * m / gcd(n, m), so they are integers when
    counted in units of 1 / L.

    Parameters
    ----------
    x : Tensor
        [R, n] float32, float64, float16 or bfloat16, or int64 or uint64, with any strides. A sample that all rows
        share, with a stride of 0, is sorted once.
    y : Tensor
        [R, m], likewise. Floating dtypes may differ. Integers have one dtype.
    sides : {"both", "plus", "minus", "larger"}
        What is asked for. One side takes less work than both. "larger" is the side that a two-sided test reports. A
        side that was not asked for is 0.

    Returns
    -------
    plus : Tensor
        int64 [R], D+ * L. With n = m = d this is d * D+. A row with NaN has -1.
    minus : Tensor
        int64 [R], D- * L.
    plus_at, minus_at : Tensor
        float64 [R], the values where scipy.stats.ks_2samp finds them. A row with NaN has NaN, and so has a side that
        was not asked for. Of integers, the dtype of the samples, with 0 in place of NaN.
    flags : Tensor
        uint8 [R]: 1 where either row holds NaN, 2 where either holds Inf, 3 for both. Inf compares as usual. None of
        the outputs is differentiable.

    Raises
    ------
    InputError
        Not two matrices with the same number of rows on one device, a sample without values, or unknown sides.
    TypeError
        Not tensors.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[3.0, 4.0, 5.0, 6.0]])
    >>> plus, minus, plus_at, minus_at, flags = ks_rows(x, y)
    >>> plus.item() / 4, plus_at.item(), minus.item()
    (0.5, 2.0, 0)
    """
    require_tensors(x=x, y=y)
    return torch.ops.kslottery.ks_rows(x, y, sides)


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """The exact integer h = d * D behind the two-sided KS statistic D, for every row of two tables.

    Parameters
    ----------
    before, after : Tensor
        [V, d] float32, float64, float16 or bfloat16, with any strides. The dtypes may differ.
    threshold : int
        The smallest h of interest. The larger it is, the less work the rows below it cost.

    Returns
    -------
    h : Tensor
        int64 [V] in 0..d. It is 0 where h is below the threshold. A row with NaN has -1.
    flags : Tensor
        uint8 [V]: 1 where either row holds NaN, 2 where either holds Inf, 3 for both.

    Raises
    ------
    InputError
        Not two matrices of one shape [V, d], d > 0, on one device.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> before = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    >>> after = torch.tensor([[0.0, 1.0, 2.0, 3.0], [9.0, 1.0, 9.0, 3.0]])
    >>> ks_statistics(before, after)[0].tolist()
    [0, 2]
    """
    require_tensors(before=before, after=after)
    require_integers(threshold=threshold)
    return torch.ops.kslottery.ks_statistics(before, after, threshold)


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """``ks_statistics(before, after)[0] >= threshold``, for less work than h itself.

    Use this if only the decision is needed, for example to count the significant rows during training.
    :func:`kslottery_fast.ks_select` also needs h of the rows that it selects, so it calls ``ks_statistics`` with its
    threshold.

    Parameters
    ----------
    before, after : Tensor
        As for ks_statistics.
    threshold : int
        The smallest h that counts, for example the result of ``kslottery_fast.ks.critical_count``.

    Returns
    -------
    decided : Tensor
        bool [V]. A row with NaN has False.
    flags : Tensor
        uint8 [V], as from ks_statistics.

    Raises
    ------
    InputError, TypeError
        As for ks_statistics.

    Examples
    --------
    >>> before = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    >>> after = torch.tensor([[0.0, 1.0, 2.0, 3.0], [9.0, 1.0, 9.0, 3.0]])
    >>> ks_decide(before, after, 2)[0].tolist()
    [False, True]
    """
    require_tensors(before=before, after=after)
    require_integers(threshold=threshold)
    return torch.ops.kslottery.ks_decide(before, after, threshold)


def row_adamw_(
    table: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    master: Tensor | None = None,
    lazy: bool = False,
) -> None:
    """One AdamW update of some rows of a table, in place. It is torch.optim.AdamW on ``table[rows]``.

    No other row is read or written. Autograd does not record the update. The arithmetic is float32 (float64 for a
    float64 table), in the operations of torch.optim.AdamW with ``foreach=False``, each rounded correctly. Torch's own
    vector code fuses some multiplications and additions, and its square roots may be one unit off. So one step differs
    from torch's by a unit or two in the last place.

    Parameters
    ----------
    table : Tensor
        [V, d] of any floating dtype and strides. It is updated.
    rows : Tensor or None
        int64 [k], distinct. None stands for the whole table, with k = V.
    grad : Tensor
        [k, d] of any floating dtype and strides, the gradient of those rows.
    exp_avg, exp_avg_sq : Tensor
        [k, d] contiguous float32 (float64 for a float64 table), zeros before the first step. They are updated.
    step : int
        The number of this update, counted from 1.
    lr, beta1, beta2, eps, weight_decay : float
        As in torch.optim.AdamW. The decay is decoupled and applied first.
    master : Tensor or None
        [k, d] contiguous float32, only for a float16 or bfloat16 table: the exact values of the rows. It is updated,
        and the table gets its rounding. Without it, an update below half a unit of the table is lost.
    lazy : bool
        Leave a row whose gradient is all zero as it is, with its moments and its master row.

    Raises
    ------
    InputError
        Shapes, dtypes or devices that do not fit, a row twice or outside the table, or a hyperparameter out of its
        range. Nothing is written then. On CUDA nothing waits for the values of rows (see row_adamw_step_).
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> table, rows = torch.zeros(5, 2), torch.tensor([3])
    >>> state = torch.zeros(1, 2), torch.zeros(1, 2)
    >>> hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    >>> row_adamw_(table, rows, torch.tensor([[1.0, -1.0]]), *state, step=1, **hyper)
    >>> table[3]
    tensor([-0.1000,  0.1000])
    """
    require_tensors(table=table, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    require_tensors_or_none(rows=rows, master=master)
    require_integers(step=step)
    require_numbers(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    check_flag(lazy, "lazy")
    torch.ops.kslottery.row_adamw_(
        table, rows, grad, exp_avg, exp_avg_sq,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, master=master,
        lazy=lazy,
    )  # fmt: skip


def row_adamw_step_(
    tables: list[Tensor],
    rows: list[Tensor | None],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    steps: list[Tensor],
    lrs: list[Tensor],
    control: Tensor,
    *,
    beta1: list[float],
    beta2: list[float],
    eps: list[float],
    weight_decay: list[float],
    whole_grads: list[bool],
    skip_nonfinite: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    lazy: list[bool] | None = None,
) -> None:
    """One optimizer step: :func:`row_adamw_` for several tables at once. On CUDA one launch serves up to 16 tables.

    What changes from step to step is passed in tensors, so that a captured CUDA graph follows it. On CUDA nothing waits
    for the device, so the caller has to check the values of ``rows`` (:class:`kslottery_fast.RowAdamW` does so when it
    is built). An id outside the table ends the kernel as a failed assert does, and nothing is written outside the
    table. A row that occurs twice gets either of its two updates.

    Parameters
    ----------
    tables, rows, grads, exp_avgs, exp_avg_sqs : list of Tensor
        For each table as for row_adamw_, all on one device.
    masters : list of Tensor
        Likewise. An empty tensor stands for None.
    steps : list of Tensor
        float32 scalars: how many updates each table has had. They go up by one.
    lrs : list of Tensor
        float32 or float64 scalars. A step or lr on the device of the tables is read by the kernel. One on the CPU is
        read now, and a captured graph would repeat it.
    control : Tensor
        int32 [3] on the device of the tables, zeros before the first call, and the same tensor for every call of one
        optimizer. ``control[2]`` counts the steps that ``skip_nonfinite`` left out.
    beta1, beta2, eps, weight_decay : list of float
        One number for each table.
    whole_grads : list of bool
        For each table, whether its ``grads`` is [V, d] and the rows are to be taken from it. Otherwise it is [k, d].
    skip_nonfinite : bool
        Leave the whole step out if a gradient holds NaN or Inf.
    grad_scale : Tensor or None
        float32 scalar on the device, from GradScaler. Gradients are divided by it.
    found_inf : Tensor or None
        float32 scalar on the device, from GradScaler. The step is left out unless it is 0.
    lazy : list of bool, optional
        For each table, as for row_adamw_. By default no table is updated lazily. On CUDA one more launch then reads
        the gradients. A gradient counts as zero after its division by ``grad_scale``.

    Raises
    ------
    InputError
        As for row_adamw_, except for the values of rows on CUDA. Also lists of different lengths, and scalars of a
        wrong dtype or device.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> table, step, control = torch.zeros(5, 2), torch.zeros(()), torch.zeros(3, dtype=torch.int32)
    >>> state = [torch.zeros(1, 2)], [torch.zeros(1, 2)], [torch.empty(0)], [step], [torch.tensor(0.1)]
    >>> hyper = {"beta1": [0.9], "beta2": [0.999], "eps": [1e-8], "weight_decay": [0.0], "whole_grads": [False]}
    >>> row_adamw_step_([table], [torch.tensor([3])], [torch.tensor([[1.0, -1.0]])], *state, control, **hyper)
    >>> table[3], step
    (tensor([-0.1000,  0.1000]), tensor(1.))
    """
    require_lists(
        Tensor, "tensors", tables=tables, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs,
        masters=masters, steps=steps, lrs=lrs,
    )  # fmt: skip
    require_lists((Tensor, type(None)), "tensors or None", rows=rows)
    require_lists(NUMBERS, "numbers", beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    require_lists(bool, "bools", whole_grads=whole_grads, **({} if lazy is None else {"lazy": lazy}))
    require_tensors(control=control)
    require_tensors_or_none(grad_scale=grad_scale, found_inf=found_inf)
    check_flag(skip_nonfinite, "skip_nonfinite")
    torch.ops.kslottery.row_adamw_step_(
        tables, rows, grads, exp_avgs, exp_avg_sqs, masters, steps, lrs, control,
        beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, whole_grads=whole_grads,
        skip_nonfinite=skip_nonfinite, grad_scale=grad_scale, found_inf=found_inf, lazy=lazy,
    )  # fmt: skip


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Look tokens up in a frozen table, some of whose rows are replaced by trained ones.

    The result is differentiable with respect to ``rows`` only. The gradient has their dtype and is summed in float32.

    Parameters
    ----------
    table : Tensor
        [V, d] of any floating dtype and strides, not requiring grad.
    rows : Tensor
        [k, d] of any floating dtype, usually a float32 parameter.
    slots : Tensor
        int32 [V]: which of ``rows`` a token reads, or -1 for the row of the table.
    ids : Tensor
        int64 of any shape, in 0..V-1.

    Returns
    -------
    Tensor
        [*ids.shape, d] in the dtype of the table: ``rows[slots[id]]``, rounded, where ``slots[id] >= 0``, else
        ``table[id]``.

    Raises
    ------
    InputError
        Shapes, dtypes or devices that do not fit, an id outside the table, a slot without a row, or a table that
        requires grad. On CUDA a wrong id or slot ends the kernel as a failed assert does, as in torch.
    TypeError
        Not tensors.

    Examples
    --------
    >>> table, rows = torch.zeros(4, 2), torch.ones(1, 2)
    >>> slots = torch.tensor([-1, -1, 0, -1], dtype=torch.int32)
    >>> row_embedding(table, rows, slots, torch.tensor([1, 2])).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    require_tensors(table=table, rows=rows, slots=slots, ids=ids)
    return torch.ops.kslottery.row_embedding(table, rows, slots, ids)


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """The gradient of row_embedding with respect to its rows.

    Parameters
    ----------
    grad_out : Tensor
        [*ids.shape, d] of any floating dtype.
    slots : Tensor
        int32 [V], as for row_embedding.
    ids : Tensor
        int64 of any shape.
    k : int
        The number of rows.

    Returns
    -------
    Tensor
        [k, d] float32 (float64 for a float64 grad_out). Row s is the sum of grad_out over the positions whose token has
        slot s, in the order of the positions. The bits are the same for any number of threads, on the CPU and on CUDA.

    Raises
    ------
    InputError
        Shapes, dtypes or devices that do not fit, an id outside 0..V-1, or a slot of k or more (on CUDA as for
        row_embedding).
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> slots = torch.tensor([-1, -1, 0, -1], dtype=torch.int32)
    >>> row_embedding_backward(torch.ones(3, 2), slots, torch.tensor([2, 1, 2]), k=1)
    tensor([[2., 2.]])
    """
    require_tensors(grad_out=grad_out, slots=slots, ids=ids)
    require_integers(k=k)
    return torch.ops.kslottery.row_embedding_backward(grad_out, slots, ids, k)
