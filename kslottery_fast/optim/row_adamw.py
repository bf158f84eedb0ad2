"""RowAdamW: torch.optim.AdamW restricted to rows, with state for those rows alone."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kslottery_fast.base.arguments import check_choice, check_flag, shown
from kslottery_fast.base.dtensors import cuts_rows, is_dtensor
from kslottery_fast.base.errors import DivergedError, InputError
from kslottery_fast.ops import kernels, row_adamw_
from kslottery_fast.ops.schemas import LEFT_OUT

from . import capture
from .checks import check_hyperparameters, listed_params
from .gradients import first_nonfinite, nonfinite_message, row_gradient
from .row_optimizer import RowOptimizer
from .trained_rows import TrainedRows
from .updates import Update, row_update, update_together

_Loss = TypeVar("_Loss")


class RowAdamW(RowOptimizer):
    """AdamW for a few rows of a large table or for a compact row parameter, with ``lr=1e-2`` and no decay by default.

    ``torch.optim.AdamW`` has ``lr=1e-3, weight_decay=1e-2``. The default here is the learning rate of the paper's
    Partial Tuning, without decay, because decay moves rows that get no gradient.

    The update is that of ``torch.optim.AdamW`` on the sub-table ``weight[rows]``. No other row is read or written,
    neither by the update nor by momentum or weight decay. As in torch, a row whose gradient is zero keeps moving by its
    momentum, unless the update is lazy. The moments are float32 [k, d]. A float16 or bfloat16 table also gets float32
    master rows, so that small updates add up. Do not write to such rows from elsewhere while they train, because the
    master rows overwrite them.

    Parameters
    ----------
    params : iterable of parameters, of (name, parameter) pairs, or of groups
        As for any torch optimizer. A group may have ``"rows"``: k distinct token ids, or Tickets. Then each of its
        parameters is a dense table [V, d] with a dense or sparse COO gradient, and only these rows train. Without
        ``"rows"`` a parameter trains whole, whatever its shape. Examples are the ``rows`` of ``attach_rows`` and LoRA
        weights.
    lr : float or Tensor
        Learning rate, at least 0.
    betas : (float, float)
        Decay rates of the two moments, each in [0, 1).
    eps : float
        Number added to the denominator, at least 0.
    weight_decay : float
        Decoupled weight decay, at least 0.
    lazy : bool
        Leave a row whose gradient is all zero in a step as it is, without momentum and weight decay. Bias correction
        counts all steps. This is the update of ``torch.optim.SparseAdam``, which adds ``eps`` before the bias
        correction and not after it. A parameter of one dimension is one row.
    nonfinite : {"raise", "skip"}
        What to do about NaN or Inf in a gradient. "raise" raises InputError before anything is written. "skip" leaves
        the whole step out and counts it in ``skipped_steps``.
    capturable : bool
        Keep step numbers and learning rates on the device, and never wait for it. A CUDA graph that captured
        :meth:`step` then follows a learning-rate schedule. This needs ``nonfinite="skip"``, all parameters on one
        device, and one step before the capture. A float ``lr`` becomes a float64 tensor at the first step, into which
        torch's schedulers write. An ``lr`` that is a tensor must be on the device of the parameters.

    Raises
    ------
    InputError
        A hyperparameter out of range, row ids that do not fit, ``"rows"`` for a parameter that is not a table, an
        unknown key in a group, or no parameters.
    TypeError
        An argument has the wrong type.

    Notes
    -----
    ``param_groups[i]["rows"]`` may be changed between two steps, and so may the list of groups. A row that goes on
    training keeps its moments. A new row begins with moments of zero, as in a dense AdamW whose gradient for this row
    was zero until now. A CUDA graph has to be captured again.

    Gradient clipping by norm counts what is in ``grad``. With ``"rows"`` on a dense weight, call :meth:`mask_gradients`
    before ``clip_grad_norm_``. Compact parameters need nothing. ``GradScaler`` works as usual and leaves out steps with
    Inf. With ``capturable`` it does so on the device, as with torch's fused optimizers.

    ``state_dict`` loads with ``weights_only=True`` and resumes bit for bit. Without ``"rows"`` the state has the format
    of ``torch.optim.AdamW``, so that each of the two can continue from a state of the other.

    On CUDA a step is one launch for up to 16 parameters, whatever their groups. With ``nonfinite="skip"`` one more
    launch looks for NaN.

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
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        lazy: bool = False,
        nonfinite: Literal["raise", "skip"] = "raise",
        capturable: bool = False,
    ) -> None:
        check_choice(nonfinite, ("raise", "skip"), "nonfinite")
        check_flag(capturable, "capturable")
        if capturable and nonfinite == "raise":
            raise InputError(
                "capturable=True never waits for the device, so it cannot raise at a NaN gradient; pass "
                "nonfinite='skip', which leaves such steps out on the device and counts them"
            )
        self.nonfinite, self.capturable = nonfinite, capturable
        self._skipped = 0
        self._control: dict[torch.device, Tensor] = {}  # row_adamw_step_'s
        self._rows = TrainedRows()
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "lazy": lazy, "rows": None}
        check_hyperparameters(defaults)
        super().__init__(listed_params(params), {**defaults, "capturable": capturable})

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles keep what torch's Optimizer does not know of."""
        ours = ("nonfinite", "capturable", "_skipped", "_control", "_rows")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    @property
    def skipped_steps(self) -> int:
        """How many steps ``nonfinite="skip"`` left out. With ``capturable`` this waits for the device."""
        return self._skipped + sum(int(control[LEFT_OUT]) for control in self._control.values())

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then hands over its scale and its found_inf as attributes, and does not wait for the device.
        return self.capturable

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...

    def step(self, closure: Callable[[], _Loss] | None = None) -> _Loss | None:
        """Make one update. Parameters without a gradient are left alone.

        Parameters
        ----------
        closure : callable, optional
            Clears the gradients, computes the loss, calls backward and returns the loss.

        Returns
        -------
        loss
            What the closure returned, or None.

        Raises
        ------
        InputError
            NaN or Inf in a gradient, with ``nonfinite="raise"``. Nothing has been written.
        """
        if not self.capturable and capture.capturing():
            raise InputError(
                "a CUDA graph is being captured, and this optimizer waits for the device in every step; build it with "
                "capturable=True and nonfinite='skip'"
            )
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure is {shown(closure)}: expected a function, or None")
            with torch.enable_grad():
                loss = closure()
        updates = [Update(*trained, self._gradient(*trained[1:])) for trained in self._trained()]
        if len(updates) == 1 and not self.capturable and (param := updates[0].param).is_cpu and not is_dtensor(param):
            # In most cases there is one compact parameter. It is searched for NaN and updated in one call.
            if not self._update_if_finite(updates[0]):
                self._refuse(updates[0])
        else:
            with torch.no_grad():
                self._update_all(updates)
        return loss

    def _update_all(self, updates: list[Update]) -> None:
        # The op takes the rows out of a dense gradient itself, but the search for NaN must see the rows alone.
        looked_at = [(update.param, update.grad) for update in updates]
        if not self.capturable and (bad := first_nonfinite(looked_at)) is not None:
            self._refuse(updates[bad])
            return
        if not self.capturable:  # with capturable, reading a learning rate would wait for the device
            for group in {id(update.group): update.group for update in updates}.values():
                check_hyperparameters(group)  # of all groups, before the first parameter is written
        by_device: dict[torch.device, list[Update]] = {}
        for update in updates:
            by_device.setdefault(update.param.device, []).append(update)
        if self.capturable and len(by_device) > 1:
            raise InputError(f"capturable=True needs all parameters on one device, but they are on {list(by_device)}")
        if self.capturable and any(is_dtensor(update.param) for update in updates):
            raise InputError(
                "capturable=True does not take DTensors: each process would decide alone which steps to leave out"
            )
        for update in updates:
            if update.group["lazy"] and cuts_rows(update.param):
                raise InputError(
                    f"lazy=True does not take a DTensor of shape {list(update.param.shape)} whose rows are cut: "
                    "a process does not see whether the whole row has a gradient. Shard "
                    "it along dimension 0, or give it a group with lazy=False"
                )
        for device, batch in by_device.items():
            if self.capturable or device.type == "cuda":
                self._update_together(device, batch)
            else:
                for update in batch:
                    self._update_alone(update)

    def _gradient(self, param: Tensor, rows: Tensor | None) -> Tensor:
        grad = param.grad
        if self.capturable and grad is not None and param.dim() == 2 and not grad.is_sparse:
            return grad
        return row_gradient(param, rows)

    def _refuse(self, update: Update) -> None:
        """The gradient of this update holds NaN or Inf; nothing has been written."""
        if self.nonfinite == "raise":
            raise DivergedError(nonfinite_message(*update[1:]))
        self._skipped += 1

    def _update_if_finite(self, update: Update) -> bool:
        first, made = not self.state.get(update.param), False
        state = self._state_of(update.param, update.rows)
        try:
            made = kernels.update_rows_if_finite(row_update(update, state, 1), state["step"])
        finally:
            if first and not made:
                del self.state[update.param]  # its master rows must be those of the first step that is made
        return made

    def _update_alone(self, update: Update) -> None:
        """Without the cost of an op that takes lists, which one launch pays for and a call on the CPU does not."""
        state = self._state_of(update.param, update.rows)
        state["step"] += 1
        arguments = row_update(update, state, int(state["step"]))
        if update.param.is_cpu:
            kernels.update_rows(arguments)
        else:
            row_adamw_(**arguments._asdict())

    def _update_together(self, device: torch.device, updates: list[Update]) -> None:
        if device not in self._control:
            capture.refuse_in_capture()
            self._control[device] = torch.zeros(3, dtype=torch.int32, device=device)
        states = [self._state_of(update.param, update.rows) for update in updates]
        found_inf = getattr(self, "found_inf", None)
        update_together(
            updates,
            states,
            [self._lr(update.group, device) for update in updates],
            self._control[device],
            skip_nonfinite=self.capturable and found_inf is None,  # GradScaler has looked for NaN and Inf already
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=found_inf,
        )

    def _lr(self, group: dict[str, Any], device: torch.device) -> Tensor:
        lr = group["lr"]
        if not self.capturable:
            return torch.tensor(float(lr), dtype=torch.float64)
        if not torch.is_tensor(lr):
            # From here on the schedulers write into this tensor, and captured graphs read it.
            capture.refuse_in_capture()
            group["lr"] = lr = torch.full((), lr, dtype=torch.float64, device=device)
        if lr.device != device:  # it would be read once, and a captured graph would repeat it
            raise InputError(
                f"lr is a tensor on {lr.device}, but the parameters are on {device}: use lr.to('{device}')"
            )
        return lr
