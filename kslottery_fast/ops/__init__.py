"""The operators, as torch sees them: ``torch.ops.kslottery.*`` and one Python function for each.

Importing this registers them. They work in eager mode and under ``torch.compile(fullgraph=True)``. On the CPU
and on CUDA native kernels run them, on other devices plain torch. Inputs may be strided or transposed views; the
native kernels copy none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels, native, reference, schemas
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


def _require_tensors(**arguments: object) -> None:
    # torch's dispatcher would raise RuntimeError, with the schema in place of the reason.
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")


def ks_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Exact two-sample Kolmogorov-Smirnov statistics, row by row, both sides.

    With F and G the right-continuous empirical CDFs of ``x[r]`` and ``y[r]``, the two sides are
    D+ = sup(F - G) and D- = sup(G - F): rationals with the denominator L = n * m / gcd(n, m), so integers
    when counted in units of 1 / L.

    Parameters
    ----------
    x : [R, n] float32, float64, float16 or bfloat16, any strides.
    y : [R, m], likewise; the dtypes may differ.

    Returns
    -------
    plus : int64 [R], D+ * L; with n = m = d simply d * D+. -1 for a row with NaN.
    minus : int64 [R], D- * L.
    plus_at, minus_at : float64 [R], the values where scipy.stats.ks_2samp finds them (NaN for a row with
        NaN).
    flags : uint8 [R], 1 where a NaN stands in either row, 2 where an Inf does, 3 for both. Inf compares as
        usual.
        None of them is differentiable: they never require grad.

    Raises
    ------
    InputError : not two matrices of as many rows on one device; a sample without values.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[3.0, 4.0, 5.0, 6.0]])
    >>> plus, minus, plus_at, minus_at, flags = ks_rows(x, y)
    >>> plus.item() / 4, plus_at.item(), minus.item()
    (0.5, 2.0, 0)
    """
    _require_tensors(x=x, y=y)
    return torch.ops.kslottery.ks_rows(x, y)


def ks_statistics(before: Tensor, after: Tensor, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """The exact integer h = d * D behind the two-sided KS statistic D, for every row of two tables.

    Parameters
    ----------
    before, after : [V, d] float32, float64, float16 or bfloat16, any strides; the dtypes may differ.
    threshold : the smallest h that is of interest; the larger it is, the less work for the rows below it.

    Returns
    -------
    h : int64 [V] in 0..d, 0 where h is below the threshold, -1 for a row with NaN.
    flags : uint8 [V], 1 where a NaN stands in either row, 2 where an Inf does.

    Raises
    ------
    InputError : not two matrices of one shape [V, d], d > 0, on one device.

    Examples
    --------
    >>> before = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    >>> after = torch.tensor([[0.0, 1.0, 2.0, 3.0], [9.0, 1.0, 9.0, 3.0]])
    >>> ks_statistics(before, after)[0].tolist()
    [0, 2]
    """
    _require_tensors(before=before, after=after)
    return torch.ops.kslottery.ks_statistics(before, after, threshold)


def ks_decide(before: Tensor, after: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """``ks_statistics(before, after)[0] >= threshold``, for less work than knowing h.

    For those who want the decision alone, such as a count of significant rows during training:
    :func:`kslottery_fast.ks_select` also needs h of the rows that it selects, and calls ``ks_statistics`` with
    its threshold.

    Parameters
    ----------
    before, after : as for ks_statistics.
    threshold : the smallest h that counts, see ``kslottery_fast.ks.significance.critical_count``.

    Returns
    -------
    decided : bool [V], False for a row with NaN.
    flags : uint8 [V], as for ks_statistics.

    Raises
    ------
    InputError : as for ks_statistics.
    """
    _require_tensors(before=before, after=after)
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
) -> None:
    """One AdamW update of some rows of a table, in place: torch.optim.AdamW on ``table[rows]``.

    No other row is read or written. Autograd does not record it. The arithmetic is float32 (float64 for a
    float64 table), operation by operation that of torch.optim.AdamW with ``foreach=False``, each rounded
    correctly. Torch's own vector code fuses some multiplications and additions, and takes square roots that
    may be one unit off: one step differs from torch's by a unit or two in the last place.

    Parameters
    ----------
    table : [V, d] any floating dtype and strides; updated.
    rows : int64 [k], distinct; or None for the whole table, k = V.
    grad : [k, d] any floating dtype and strides, the gradient of those rows.
    exp_avg, exp_avg_sq : [k, d] contiguous float32 (float64 for a float64 table), zeros before the first
        step; updated.
    step : the number of this update, counted from 1.
    lr, beta1, beta2, eps, weight_decay : as in torch.optim.AdamW; the decay is decoupled and applied first.
    master : [k, d] contiguous float32 or None, only for a float16 or bfloat16 table: the exact values of the
        rows. It is updated and the table gets its rounding; without it an update below half a unit of the
        table is lost.

    Raises
    ------
    InputError : shapes, dtypes or devices that do not fit; a row twice or outside the table (on CUDA, where nothing
        waits for the values of rows, see row_adamw_step_); a hyperparameter out of its range. Nothing is written then.

    Examples
    --------
    >>> table, rows = torch.zeros(5, 2), torch.tensor([3])
    >>> state = torch.zeros(1, 2), torch.zeros(1, 2)
    >>> hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    >>> row_adamw_(table, rows, torch.tensor([[1.0, -1.0]]), *state, step=1, **hyper)
    >>> table[3]
    tensor([-0.1000,  0.1000])
    """
    _require_tensors(table=table, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    torch.ops.kslottery.row_adamw_(
        table, rows, grad, exp_avg, exp_avg_sq,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, master=master,
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
) -> None:
    """One optimizer step: :func:`row_adamw_` for several tables at once, on CUDA in one launch for up to 16 of them.

    What changes from step to step comes in tensors, so that a captured CUDA graph follows it. On CUDA nothing waits for
    the device, so the values of ``rows`` are the caller's to check (:class:`kslottery_fast.RowAdamW` does it when it is
    built): an id outside the table ends the kernel as a failed assert does, and nothing is written outside; a row that
    stands twice gets either of its two updates.

    Parameters
    ----------
    tables, rows, grads, exp_avgs, exp_avg_sqs : of each table as for row_adamw_, all on one device.
    masters : likewise, an empty tensor where there is none.
    steps : float32 scalars, how many updates each table has had; they go up by one.
    lrs : float32 or float64 scalars. A step or lr on the tables' device is read by the kernel; one on the CPU is read
        now, and a captured graph would repeat it.
    control : int32 [3] on the tables' device, zeros before the first call and then the same tensor for every call of
        one optimizer. ``control[2]`` counts the steps that ``skip_nonfinite`` left out.
    beta1, beta2, eps, weight_decay : one number for each table.
    whole_grads : for each table, whether its ``grads`` is [V, d], of which the rows are meant, and not [k, d].
    skip_nonfinite : leave the whole step out where a gradient holds NaN or Inf.
    grad_scale : float32 scalar on the device or None: gradients are divided by it.
    found_inf : float32 scalar on the device or None: the step is left out unless it is 0. Both are GradScaler's.

    Raises
    ------
    InputError : as for row_adamw_, values of rows on CUDA excepted; lists of different lengths; scalars of another
        dtype or device.

    Examples
    --------
    >>> table, step, control = torch.zeros(5, 2), torch.zeros(()), torch.zeros(3, dtype=torch.int32)
    >>> state = [torch.zeros(1, 2)], [torch.zeros(1, 2)], [torch.empty(0)], [step], [torch.tensor(0.1)]
    >>> hyper = {"beta1": [0.9], "beta2": [0.999], "eps": [1e-8], "weight_decay": [0.0], "whole_grads": [False]}
    >>> row_adamw_step_([table], [torch.tensor([3])], [torch.tensor([[1.0, -1.0]])], *state, control, **hyper)
    >>> table[3], step
    (tensor([-0.1000,  0.1000]), tensor(1.))
    """
    torch.ops.kslottery.row_adamw_step_(
        tables, rows, grads, exp_avgs, exp_avg_sqs, masters, steps, lrs, control,
        beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, whole_grads=whole_grads,
        skip_nonfinite=skip_nonfinite, grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip


def row_embedding(table: Tensor, rows: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Look tokens up in a frozen table, some of whose rows are replaced by trained ones.

    Differentiable with respect to ``rows`` only; the gradient has their dtype and is summed up in float32.

    Parameters
    ----------
    table : [V, d] any floating dtype and strides, not requiring grad.
    rows : [k, d] any floating dtype, usually a float32 parameter.
    slots : int32 [V], which row a token reads, -1 for the table's own.
    ids : int64 of any shape, in 0..V-1.

    Returns
    -------
    Tensor [*ids.shape, d] in the dtype of the table: ``rows[slots[id]]``, rounded, where ``slots[id] >= 0``,
        else ``table[id]``.

    Raises
    ------
    InputError : shapes, dtypes or devices that do not fit; an id outside the table or a slot without a row (on CUDA
        these end the kernel as a failed assert does, as in torch); a table that requires grad.

    Examples
    --------
    >>> table, rows = torch.zeros(4, 2), torch.ones(1, 2)
    >>> slots = torch.tensor([-1, -1, 0, -1], dtype=torch.int32)
    >>> row_embedding(table, rows, slots, torch.tensor([1, 2])).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    _require_tensors(table=table, rows=rows, slots=slots, ids=ids)
    return torch.ops.kslottery.row_embedding(table, rows, slots, ids)


def row_embedding_backward(grad_out: Tensor, slots: Tensor, ids: Tensor, k: int) -> Tensor:
    """The gradient of row_embedding with respect to its rows.

    Parameters
    ----------
    grad_out : [*ids.shape, d] any floating dtype.
    slots : int32 [V], as for row_embedding.
    ids : int64 of any shape.
    k : the number of rows.

    Returns
    -------
    Tensor [k, d] float32 (float64 for a float64 grad_out): row s is the sum of grad_out over the positions
        whose token has slot s, in the order of the positions: the same bits for any number of threads, and on the CPU
        and on CUDA.

    Raises
    ------
    InputError : shapes, dtypes or devices that do not fit; an id outside 0..V-1 or a slot of k or more (on CUDA as
        for row_embedding).
    """
    _require_tensors(grad_out=grad_out, slots=slots, ids=ids)
    return torch.ops.kslottery.row_embedding_backward(grad_out, slots, ids, k)
