"""RowAdamW: torch.optim.AdamW restricted to rows, with state for those rows alone."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from kslottery_fast.base.arguments import check_choice, check_flag, shown
from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import DivergedError, InputError
from kslottery_fast.ops import kernels, row_adamw_
from kslottery_fast.ops.schemas import LEFT_OUT

from . import capture
from .checks import check_hyperparameters, checked_group, listed_params
from .gradients import first_nonfinite, nonfinite_message, row_gradient
from .state import fitted_state, matched_state, new_state
from .trained_rows import TrainedRows
from .updates import Update, row_update, update_together

_Loss = TypeVar("_Loss")


class RowAdamW(Optimizer):
    """AdamW for a few rows of a large table or for a compact row parameter, with ``lr=1e-2`` and no decay by default.

    ``torch.optim.AdamW`` has ``lr=1e-3, weight_decay=1e-2``. The default here is the learning rate of the paper's
    Partial Tuning, without decay, because decay moves rows that get no gradient.

    The update is that of ``torch.optim.AdamW`` on the sub-table ``weight[rows]``. No other row is read or written,
    neither by the update nor by momentum or weight decay. As in torch, a row whose gradient is zero keeps moving by its
    momentum. The moments are float32 [k, d]. A float16 or bfloat16 table also gets float32 master rows, so that small
    updates add up. Do not write to such rows from elsewhere while they train, because the master rows overwrite them.

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
        A hyperparameter out of range, row ids that do not fit, ``"rows"`` for a parameter that is not a table, or no
        parameters.
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
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rows": None}
        check_hyperparameters(defaults)
        super().__init__(listed_params(params), {**defaults, "capturable": capturable})

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles keep what torch's Optimizer does not know of."""
        ours = ("nonfinite", "capturable", "_skipped", "_control", "_rows")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch also calls this with a loaded state, which holds no attribute of this class."""
        super().__setstate__(state)
        self.__dict__.setdefault("_rows", TrainedRows())  # pickles of version 0.1 have none

    @property
    def skipped_steps(self) -> int:
        """How many steps ``nonfinite="skip"`` left out. With ``capturable`` this waits for the device."""
        return self._skipped + sum(int(control[LEFT_OUT]) for control in self._control.values())

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then hands over its scale and its found_inf as attributes, and does not wait for the device.
        return self.capturable

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the same checks as in the constructor.

        Parameters
        ----------
        param_group : dict
            ``"params"``, and whatever this group has of its own: ``"rows"``, ``"lr"``, ``"weight_decay"`` and so on.

        Raises
        ------
        InputError, TypeError
            As in the constructor. The group is not added.

        Examples
        --------
        >>> optimizer = RowAdamW([torch.nn.Parameter(torch.ones(2, 3))])
        >>> optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(9, 3))], "rows": [4]})
        >>> optimizer.param_groups[1]["rows"]
        tensor([4])
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is {shown(param_group)}: expected a dict with 'params'")
        if "params" not in param_group:
            raise InputError("param_group has no 'params': expected the parameters of the group under this key")
        super().add_param_group(checked_group({**self.defaults, **param_group}))

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
        for device, batch in by_device.items():
            if self.capturable or device.type == "cuda":
                self._update_together(device, batch)
            else:
                for update in batch:
                    self._update_alone(update)

    def mask_gradients(self) -> None:
        """Zero the gradient of every row that does not train, in the groups that have ``"rows"``.

        Call it after backward (and after ``GradScaler.unscale_``) and before ``clip_grad_norm_``, so that the norm
        counts the trained rows alone. The update itself never reads the other rows, masked or not.

        Examples
        --------
        >>> table = torch.nn.Embedding(5, 2)
        >>> optimizer = RowAdamW([{"params": [table.weight], "rows": [3]}])
        >>> table(torch.tensor([1, 3])).sum().backward()
        >>> optimizer.mask_gradients()
        >>> table.weight.grad.any(dim=1).nonzero().flatten().tolist()
        [3]
        """
        with torch.no_grad():
            for _, param, rows in self._trained():
                if rows is None or param.grad is None:
                    continue
                kept = row_gradient(param, rows)
                if param.grad.is_sparse:
                    param.grad = torch.sparse_coo_tensor(rows[None], kept, param.shape, check_invariants=False)
                else:
                    param.grad.zero_().index_copy_(0, rows, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the groups, as any torch optimizer does. The state is that of the rows that train now.

        Examples
        --------
        >>> sorted(RowAdamW([torch.nn.Parameter(torch.ones(2, 3))]).state_dict())
        ['param_groups', 'state']
        """
        self._follow_rows()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. A resumed run continues bit for bit.

        Parameters
        ----------
        state_dict : dict
            What :meth:`state_dict` returned, or the state of ``torch.optim.AdamW`` if all parameters train whole here.

        Raises
        ------
        InputError
            Moments that do not fit the parameters, other ``"rows"`` than those of this optimizer, or the state of
            another algorithm (``amsgrad``, ``maximize``, Adam with weight decay).
        TypeError
            Not a dict.

        Examples
        --------
        >>> theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 3))])
        >>> ours = RowAdamW([torch.nn.Parameter(torch.ones(2, 3))])
        >>> ours.load_state_dict(theirs.state_dict())
        >>> ours.param_groups[0]["lr"]
        0.001
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict is {shown(state_dict)}: expected what an optimizer's state_dict() returned")
        if not (isinstance(state_dict.get("state"), dict) and isinstance(state_dict.get("param_groups"), list)):
            raise InputError(
                "state_dict has no dict 'state' and no list 'param_groups': expected what state_dict() returned"
            )
        self._follow_rows()
        pairs = matched_state(self.param_groups, state_dict)
        learning_rates = [group["lr"] for group in self.param_groups]
        states = {param: dict(self.state.get(param, {})) for param, _ in pairs}
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            # accelerate moves a state to the device before it loads it. A state of torch's AdamW has no rows.
            rows = group.setdefault("rows", None)
            group["rows"] = None if rows is None else rows.cpu()
        self._rows.forget_copies()
        # Optimizer.load_state_dict casts the moments to the dtype of the parameter, which for bfloat16 loses 16 bits of
        # them, and it may keep the caller's tensors. So they are taken once more, as they are.
        saved_states = dict(pairs)
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if saved := saved_states.get(param):
                    rows = self._rows.of(index, group, param)
                    self.state[param].update(fitted_state(param, rows, saved))
                    self._rows.adopt(param, rows)
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
                if param.grad is not None:
                    yield group, param, self._rows.of(index, group, param)

    def _follow_rows(self) -> None:
        """Check the rows of all groups, and bring all state to the rows that train now."""
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                rows = self._rows.of(index, group, param)
                if state := self.state.get(param):
                    self._rows.follow(param, rows, state)

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
        state = self._state_of(update)
        try:
            made = kernels.update_rows_if_finite(row_update(update, state, 1), state["step"])
        finally:
            if first and not made:
                del self.state[update.param]  # its master rows must be those of the first step that is made
        return made

    def _update_alone(self, update: Update) -> None:
        """Without the cost of an op that takes lists, which one launch pays for and a call on the CPU does not."""
        state = self._state_of(update)
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
        states = [self._state_of(update) for update in updates]
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

    def _state_of(self, update: Update) -> dict[str, Any]:
        _, param, rows, _ = update
        state: dict[str, Any] = self.state[param]
        if state:
            self._rows.follow(param, rows, state)
        else:
            capture.refuse_in_capture()
            state.update(new_state(param, rows, capturable=self.capturable))
            self._rows.adopt(param, rows)
        return state

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
