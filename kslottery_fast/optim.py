"""RowAdamW: torch.optim.AdamW restricted to rows, with state for those rows alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from .errors import InputError
from .ops import row_adamw_
from .tables import TABLE_DTYPES, check_token_ids

_ROW_STATE = ("exp_avg", "exp_avg_sq", "master")


class RowAdamW(Optimizer):
    """AdamW for a few rows of a large table, or for a compact row parameter.

    Semantics: ``torch.optim.AdamW`` on the sub-table ``weight[rows]``, dense in time (a row whose gradient is
    zero keeps moving by its momentum, as torch does it). No other row is read or written, by the update, by
    its momentum or by weight decay. The moments are float32 [k, d]; a float16 or bfloat16 table also gets
    float32 master rows, so that small updates add up (do not write to those rows from elsewhere while
    training: the master would win).

    Parameters
    ----------
    params : parameters or groups, as for any torch optimizer. A group may have ``"rows"``: k distinct token
        ids or Tickets; then each of its parameters is a dense table [V, d] with a dense or sparse COO
        gradient, and only these rows train. Without ``"rows"`` a parameter trains whole, whatever its shape:
        the ``rows`` of ``attach_rows``, or LoRA weights beside them.
    lr : learning rate, at least 0.
    betas : decay of the two moments, each in [0, 1).
    eps : added to the denominator, at least 0.
    weight_decay : decoupled, at least 0.
    nonfinite : what to do about NaN or Inf in a gradient. "raise": an InputError before anything is written.
        "skip": leave the whole step out, count it in ``skipped_steps``.

    Raises
    ------
    InputError : a hyperparameter out of range, bad row ids, a parameter that is no table, a NaN gradient.

    Notes
    -----
    Gradient clipping by norm counts what is in ``grad``. With ``"rows"`` on a dense weight call
    :meth:`mask_gradients` before ``clip_grad_norm_``; compact parameters need nothing. ``GradScaler`` works
    as usual: it leaves out steps with Inf. ``state_dict`` loads with ``weights_only=True`` and resumes bit
    for bit.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019; torch.optim.AdamW.

    Examples
    --------
    >>> table = torch.nn.Embedding(1000, 8)
    >>> optimizer = RowAdamW([{"params": [table.weight], "rows": [3, 5]}], lr=0.1)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([3, 4])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight != before).any(dim=1).nonzero().flatten().tolist()
    [3]
    >>> optimizer.state[table.weight]["exp_avg"].shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        nonfinite: str = "raise",
    ) -> None:
        if nonfinite not in ("raise", "skip"):
            raise InputError(f"nonfinite must be 'raise' or 'skip', not {nonfinite!r}")
        self.nonfinite = nonfinite
        self.skipped_steps = 0
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rows": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the same checks as in the constructor."""
        group = {**self.defaults, **param_group}
        _check_hyperparameters(group)
        params = group["params"]
        group["params"] = params = [params] if torch.is_tensor(params) else list(params)
        for param in params:
            if param.dtype not in TABLE_DTYPES:
                raise InputError(f"a parameter has the dtype {param.dtype}, expected floating point")
            if not param.is_contiguous() and param.dim() != 2:
                raise InputError(f"a parameter of shape {list(param.shape)} is not contiguous")
            if group["rows"] is not None:
                if param.dim() != 2:
                    raise InputError(f"'rows' needs a table [V, d], not a parameter {list(param.shape)}")
                # Clones: the caller's tensor may change, ours must not.
                group["rows"] = check_token_ids(group["rows"], param.shape[0], "rows").clone()
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update. Parameters without a gradient are left alone.

        Parameters
        ----------
        closure : clears gradients, computes the loss, calls backward and returns the loss; optional.

        Returns
        -------
        What the closure returned, or None.

        Raises
        ------
        InputError : NaN or Inf in a gradient, with ``nonfinite="raise"``. Nothing has been written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [(group, param, _row_gradient(param, group["rows"])) for group, param in self._trained()]
        for group, param, grad in updates:
            if not _all_finite(grad):
                if self.nonfinite == "skip":
                    self.skipped_steps += 1
                    return loss
                bad = (~torch.isfinite(grad)).reshape(len(grad), -1).any(dim=1).nonzero().flatten()
                names = bad if group["rows"] is None else group["rows"][bad.cpu()]
                raise InputError(
                    f"the gradient of a parameter {list(param.shape)} holds NaN or Inf in {len(bad)} rows "
                    f"(first: {names[0].item()}); nothing was updated. Training diverged: lower the learning "
                    "rate, clip the gradient, or pass nonfinite='skip' to leave such steps out"
                )
        for group, param, grad in updates:
            self._update(group, param, grad)
        return loss

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradient of every row that does not train, in the groups that have ``"rows"``.

        Call it after backward (and after ``GradScaler.unscale_``) and before ``clip_grad_norm_``, so that the
        norm counts the trained rows alone. The update itself never reads the other rows, masked or not.
        """
        for group, param in self._trained():
            if group["rows"] is None or param.grad is None:
                continue
            rows, kept = group["rows"].to(param.device), _row_gradient(param, group["rows"])
            if param.grad.is_sparse:
                param.grad = torch.sparse_coo_tensor(rows[None], kept, param.shape, check_invariants=False)
            else:
                param.grad.zero_().index_copy_(0, rows, kept)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; a resumed run continues bit for bit.

        Raises
        ------
        InputError : moments that do not fit the parameters, or other ``"rows"`` than those of this optimizer.
        """
        saved_groups, saved_state = state_dict["param_groups"], state_dict["state"]
        pairs = []
        for group, saved in zip(self.param_groups, saved_groups, strict=False):
            ours, theirs = group["rows"], saved.get("rows")
            if (ours is None) != (theirs is None) or (ours is not None and not torch.equal(ours, theirs.cpu())):
                raise InputError("the optimizer state is of other rows than this optimizer trains")
            pairs += list(zip(group["params"], itertools.repeat(group), saved["params"], strict=False))
        for param, group, key in pairs:
            for name in _ROW_STATE:
                value = saved_state.get(key, {}).get(name)
                if value is not None and value.shape != _state_shape(param, group["rows"]):
                    raise InputError(
                        f"the optimizer state has {name} {list(value.shape)}, expected "
                        f"{list(_state_shape(param, group['rows']))}"
                    )
        super().load_state_dict(state_dict)
        # Optimizer.load_state_dict casts the moments to the dtype of the parameter, which for bfloat16 loses
        # 16 bits of them; and it may keep the caller's tensors. So they are taken once more, as they are.
        for param, _, key in pairs:
            for name in _ROW_STATE:
                if name in saved_state.get(key, {}):
                    self.state[param][name] = saved_state[key][name].to(param.device, copy=True)

    def _trained(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield group, param

    def _update(self, group: dict[str, Any], param: torch.Tensor, grad: torch.Tensor) -> None:
        rows = None if group["rows"] is None else group["rows"].to(param.device)
        table = param if param.dim() == 2 else param.view(1, -1)
        state = self.state[param]
        if not state:
            moments: dict[str, Any] = {
                "dtype": torch.promote_types(param.dtype, torch.float32),
                "device": param.device,
            }
            shape = _state_shape(param, rows)
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros(shape, **moments)
            state["exp_avg_sq"] = torch.zeros(shape, **moments)
            if param.dtype in (torch.float16, torch.bfloat16):
                state["master"] = (table if rows is None else table.index_select(0, rows)).float().contiguous()
        state["step"] += 1
        beta1, beta2 = group["betas"]
        row_adamw_(
            table,
            rows,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=int(state["step"].item()),
            lr=float(group["lr"]),
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            master=state.get("master"),
        )


def _state_shape(param: torch.Tensor, rows: torch.Tensor | None) -> torch.Size:
    if rows is not None:
        return torch.Size((len(rows), param.shape[1]))
    return param.shape if param.dim() == 2 else torch.Size((1, param.numel()))


def _row_gradient(param: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The gradient of the trained rows: [k, d]; a whole parameter of other than two dimensions is one row."""
    grad = param.grad
    assert grad is not None
    if rows is None:
        grad = grad.to_dense() if grad.is_sparse else grad
        return grad if grad.dim() == 2 else grad.reshape(1, -1)
    rows = rows.to(grad.device)
    if not grad.is_sparse:
        return grad.index_select(0, rows)
    grad = grad.coalesce()
    ordered, order = rows.sort()
    found = grad.indices()[0]
    place = torch.searchsorted(ordered, found).clamp(max=len(rows) - 1)
    ours = ordered[place] == found
    dense = grad.values().new_zeros(len(rows), param.shape[1])
    return dense.index_copy_(0, order[place[ours]], grad.values()[ours])


def _all_finite(grad: torch.Tensor) -> bool:
    # A sum is the cheapest look at every value. NaN and Inf come through; only an overflow needs the closer look.
    return math.isfinite(grad.sum()) or bool(torch.isfinite(grad).all())


def _check_hyperparameters(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise InputError(f"{name} is {float(group[name])}, expected a finite number of at least 0")
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= float(beta) < 1 for beta in betas):
        raise InputError(f"betas is {betas}, expected two numbers in [0, 1)")
