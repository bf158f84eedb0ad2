"""RowAdamW: torch.optim.AdamW restricted to rows, with state for those rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import kernels, row_adamw_, row_adamw_step_
from kslottery_fast.ops.records import RowUpdate
from kslottery_fast.ops.schemas import LEFT_OUT
from kslottery_fast.rows.tables import TABLE_DTYPES, check_token_ids

from .gradients import (
    ROW_STATE,
    as_matrix,
    check_hyperparameters,
    first_nonfinite,
    matched_state,
    nonfinite_message,
    row_gradient,
    state_shape,
)


class _Update(NamedTuple):
    """What one step does to one parameter."""

    group: dict[str, Any]
    param: Tensor
    rows: Tensor | None  # int64 [k] on the parameter's device
    grad: Tensor  # [k, d], or [V, d] with rows


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
    capturable : keep step numbers and learning rates on the device, and never wait for it: a CUDA graph that captured
        :meth:`step` then follows a learning-rate schedule. Needs ``nonfinite="skip"``, all parameters on one device,
        and one step before the capture. A float ``lr`` becomes a float64 tensor at the first step, into which torch's
        schedulers write; an ``lr`` tensor must be on the device of the parameters.

    Raises
    ------
    InputError : a hyperparameter out of range, bad row ids, a parameter that is no table, a NaN gradient.

    Notes
    -----
    Gradient clipping by norm counts what is in ``grad``. With ``"rows"`` on a dense weight call
    :meth:`mask_gradients` before ``clip_grad_norm_``; compact parameters need nothing. ``GradScaler`` works
    as usual: it leaves out steps with Inf (with ``capturable`` on the device, as torch's fused optimizers do).
    ``state_dict`` loads with ``weights_only=True`` and resumes bit for bit. On CUDA a step is one launch for up
    to 16 parameters, whatever their groups, and one more to look for NaN with ``nonfinite="skip"``.

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
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        nonfinite: str = "raise",
        capturable: bool = False,
    ) -> None:
        if nonfinite not in ("raise", "skip"):
            raise InputError(f"nonfinite must be 'raise' or 'skip', not {nonfinite!r}")
        if capturable and nonfinite == "raise":
            raise InputError(
                "capturable=True never waits for the device, so it cannot raise at a NaN gradient; pass "
                "nonfinite='skip', which leaves such steps out on the device and counts them"
            )
        self.nonfinite, self.capturable = nonfinite, capturable
        self._skipped = 0
        self._control: dict[torch.device, Tensor] = {}  # row_adamw_step_'s
        self._rows_on: dict[tuple[int, torch.device], Tensor] = {}  # of each group, by its index
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rows": None}
        super().__init__(params, {**defaults, "capturable": capturable})

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles keep what torch's Optimizer does not know of."""
        ours = ("nonfinite", "capturable", "_skipped", "_control", "_rows_on")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    @property
    def skipped_steps(self) -> int:
        """How many steps ``nonfinite="skip"`` left out. With ``capturable`` this waits for the device."""
        return self._skipped + sum(int(control[LEFT_OUT]) for control in self._control.values())

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then hands its scale and its found_inf to us, as attributes, and does not wait for the device.
        return self.capturable

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the same checks as in the constructor."""
        group = {**self.defaults, **param_group}
        check_hyperparameters(group)
        params = group["params"]
        group["params"] = params = [params] if torch.is_tensor(params) else list(params)
        for param in (
            entry[1] if isinstance(entry, tuple) else entry for entry in params
        ):  # named_parameters() has pairs
            if param.dtype not in TABLE_DTYPES:
                raise InputError(f"a parameter has the dtype {param.dtype}, expected floating point")
            if not param.is_contiguous() and param.dim() != 2:
                raise InputError(f"a parameter of shape {list(param.shape)} is not contiguous")
            if group["rows"] is not None:
                if is_dtensor(param):
                    raise InputError("'rows' needs a whole table, not a DTensor; attach the rows before fully_shard")
                if param.dim() != 2:
                    raise InputError(f"'rows' needs a table [V, d], not a parameter {list(param.shape)}")
                # Clones: the caller's tensor may change, ours must not.
                group["rows"] = check_token_ids(group["rows"], param.shape[0], "rows").clone()
        super().add_param_group(group)

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
        if not self.capturable and _capturing():
            raise InputError(
                "a CUDA graph is being captured, and this optimizer waits for the device in every step; build it with "
                "capturable=True and nonfinite='skip'"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [_Update(*trained, self._gradient(*trained[1:])) for trained in self._trained()]
        if len(updates) == 1 and not self.capturable and (param := updates[0].param).is_cpu and not is_dtensor(param):
            # Most of the time: one compact parameter. It is looked at and updated in one call.
            if not self._update_if_finite(updates[0]):
                self._refuse(updates[0])
        else:
            with torch.no_grad():
                self._update_all(updates)
        return loss

    def _update_all(self, updates: list[_Update]) -> None:
        # The op takes the rows out of a dense gradient itself; what is looked at for NaN here has to be the rows alone.
        looked_at = [(update.param, update.grad) for update in updates]
        if not self.capturable and (bad := first_nonfinite(looked_at)) is not None:
            self._refuse(updates[bad])
            return
        if not self.capturable:  # there a look at a learning rate would wait for the device
            for update in updates:  # all, before the first is written
                check_hyperparameters(update.group)
        by_device: dict[torch.device, list[_Update]] = {}
        for update in updates:
            by_device.setdefault(update.param.device, []).append(update)
        if self.capturable and len(by_device) > 1:
            raise InputError(f"capturable=True needs all parameters on one device, they are on {list(by_device)}")
        if self.capturable and any(is_dtensor(update.param) for update in updates):
            raise InputError(
                "capturable=True does not take DTensors: each process would decide alone which steps to leave out"
            )
        for device, batch in by_device.items():
            if self.capturable or device.type == "cuda":
                self._update_together(device, batch)
            else:
                for update in batch:
                    self._update_alone(update)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradient of every row that does not train, in the groups that have ``"rows"``.

        Call it after backward (and after ``GradScaler.unscale_``) and before ``clip_grad_norm_``, so that the
        norm counts the trained rows alone. The update itself never reads the other rows, masked or not.
        """
        for _, param, rows in self._trained():
            if rows is None or param.grad is None:
                continue
            kept = row_gradient(param, rows)
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
        pairs = matched_state(self.param_groups, state_dict)
        learning_rates = [group["lr"] for group in self.param_groups]
        states = {param: dict(self.state.get(param, {})) for param, _ in pairs}
        super().load_state_dict(state_dict)
        # Optimizer.load_state_dict casts the moments to the dtype of the parameter, which for bfloat16 loses
        # 16 bits of them; and it may keep the caller's tensors. So they are taken once more, as they are.
        for param, saved in pairs:
            for name in ROW_STATE:
                if name in saved:
                    self.state[param][name] = saved[name].to(param.device, copy=True)
        for group in self.param_groups:
            # accelerate moves a state to the device before it loads it; torch's AdamW, whose state fits a compact
            # parameter, has no rows.
            rows = group.setdefault("rows", None)
            group["rows"] = None if rows is None else rows.cpu()
        self._rows_on.clear()
        self._keep_tensors(learning_rates, states)

    def _keep_tensors(self, learning_rates: list[Any], states: dict[Tensor, dict[str, Any]]) -> None:
        """After loading: where steps and learning rates belong, and in the tensors that captured graphs read."""
        for group, old in zip(self.param_groups, learning_rates, strict=True):
            group["capturable"] = self.capturable
            if self.capturable and torch.is_tensor(old):
                group["lr"] = old.fill_(float(group["lr"]))
        for param, old_state in states.items():
            state = self.state.get(param, {})
            if "step" in state:
                place = param.device if self.capturable else "cpu"
                state["step"] = torch.as_tensor(state["step"]).to(place, torch.float32, copy=True)
            if self.capturable:
                for name in old_state.keys() & state.keys():
                    state[name] = old_state[name].copy_(state[name])

    def _trained(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor | None]]:
        """The parameters with a gradient: their group, they themselves, and their rows on their device."""
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is None:
                    continue
                key = index, param.device
                if group["rows"] is not None and key not in self._rows_on:
                    _refuse_in_capture()
                    self._rows_on[key] = group["rows"].to(param.device)
                yield group, param, self._rows_on.get(key)

    def _gradient(self, param: Tensor, rows: Tensor | None) -> Tensor:
        grad = param.grad
        if self.capturable and grad is not None and param.dim() == 2 and not grad.is_sparse:
            return grad
        return row_gradient(param, rows)

    def _refuse(self, update: _Update) -> None:
        """The gradient of this update holds NaN or Inf; nothing has been written."""
        if self.nonfinite == "raise":
            raise InputError(nonfinite_message(*update[1:]))
        self._skipped += 1

    def _update_if_finite(self, update: _Update) -> bool:
        first, made = not self.state.get(update.param), False
        state = self._state_of(update)
        try:
            made = kernels.update_rows_if_finite(_row_update(update, state, 1), state["step"])
        finally:
            if first and not made:
                del self.state[update.param]  # its master rows must be those of the first step that is made
        return made

    def _update_alone(self, update: _Update) -> None:
        """Without the cost of an op that takes lists, which one launch pays for and a call on the CPU does not."""
        state = self._state_of(update)
        state["step"] += 1
        arguments = _row_update(update, state, int(state["step"]))
        if update.param.is_cpu:
            kernels.update_rows(arguments)
        else:
            row_adamw_(**arguments._asdict())

    def _update_together(self, device: torch.device, updates: list[_Update]) -> None:
        if device not in self._control:
            _refuse_in_capture()
            self._control[device] = torch.zeros(3, dtype=torch.int32, device=device)
        states = [self._state_of(update) for update in updates]
        found_inf = getattr(self, "found_inf", None)
        row_adamw_step_(
            [as_matrix(update.param) for update in updates],
            [update.rows for update in updates],
            [update.grad for update in updates],
            [as_matrix(state["exp_avg"]) for state in states],
            [as_matrix(state["exp_avg_sq"]) for state in states],
            [as_matrix(state["master"]) if "master" in state else torch.empty(0) for state in states],
            [state["step"] for state in states],
            [self._lr(update.group, device) for update in updates],
            self._control[device],
            beta1=[float(update.group["betas"][0]) for update in updates],
            beta2=[float(update.group["betas"][1]) for update in updates],
            eps=[update.group["eps"] for update in updates],
            weight_decay=[update.group["weight_decay"] for update in updates],
            whole_grads=[update.grad is update.param.grad for update in updates],
            skip_nonfinite=self.capturable and found_inf is None,  # GradScaler has looked for NaN and Inf already
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=found_inf,
        )

    def _state_of(self, update: _Update) -> dict[str, Any]:
        _, param, rows, _ = update
        state: dict[str, Any] = self.state[param]
        if not state:
            _refuse_in_capture()
            shape, dtype = state_shape(param, rows), torch.promote_types(param.dtype, torch.float32)
            state["step"] = torch.zeros((), device=param.device if self.capturable else "cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                # Moments of a DTensor are DTensors, as torch.distributed.checkpoint expects it.
                moments: dict[str, Any] = {"dtype": dtype, "device": param.device}
                state[name] = torch.zeros_like(param, **moments) if is_dtensor(param) else torch.zeros(shape, **moments)
            if param.dtype in (torch.float16, torch.bfloat16):
                whole = param.detach() if is_dtensor(param) else as_matrix(param.detach())
                state["master"] = (whole if rows is None else whole.index_select(0, rows)).float().contiguous()
        return state

    def _lr(self, group: dict[str, Any], device: torch.device) -> Tensor:
        lr = group["lr"]
        if not self.capturable:
            return torch.tensor(float(lr), dtype=torch.float64)
        if not torch.is_tensor(lr):
            # From here on the schedulers write into this tensor, and captured graphs read it.
            _refuse_in_capture()
            group["lr"] = lr = torch.full((), lr, dtype=torch.float64, device=device)
        if lr.device != device:  # it would be read once, and a captured graph would repeat it
            raise InputError(f"lr is a tensor on {lr.device}, the parameters are on {device}: use lr.to('{device}')")
        return lr


def _row_update(update: _Update, state: dict[str, Any], step: int) -> RowUpdate:
    group, param, rows, grad = update
    beta1, beta2 = group["betas"]
    master = state.get("master")
    return RowUpdate(
        as_matrix(param),
        rows,
        grad,
        as_matrix(state["exp_avg"]),
        as_matrix(state["exp_avg_sq"]),
        step,
        float(group["lr"]),
        float(beta1),
        float(beta2),
        group["eps"],
        group["weight_decay"],
        None if master is None else as_matrix(master),
    )


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _refuse_in_capture() -> None:
    # What is made during a capture would be made anew by every replay.
    if _capturing():
        raise InputError("make one step before capturing a CUDA graph: the first one makes the optimizer's state")
