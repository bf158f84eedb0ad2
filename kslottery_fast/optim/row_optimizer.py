"""Groups that name the rows which train, and the state of those rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from . import capture
from .checks import check_keys, checked_group
from .gradients import row_gradient
from .state import fitted_state, matched_state, new_state
from .trained_rows import TrainedRows


class RowOptimizer(Optimizer):
    """What :class:`RowAdamW` does between its steps: it follows the rows of its groups, and saves and loads its state.

    A parameter of a group with ``"rows"`` is a table of which only these rows train. The state has a row for each.
    """

    capturable: bool
    _rows: TrainedRows

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch also calls this with a loaded state, which holds no attribute of this class."""
        super().__setstate__(state)
        self.__dict__.setdefault("_rows", TrainedRows())  # pickles of version 0.1 have none
        for group in (self.defaults, *self.param_groups):
            group.setdefault("lazy", False)  # states of torch's AdamW and of version 0.1 have none

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
        >>> from kslottery_fast import RowAdamW
        >>> optimizer = RowAdamW([torch.nn.Parameter(torch.ones(2, 3))])
        >>> optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(9, 3))], "rows": [4]})
        >>> optimizer.param_groups[1]["rows"]
        tensor([4])
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is {shown(param_group)}: expected a dict with 'params'")
        if "params" not in param_group:
            raise InputError("param_group has no 'params': expected the parameters of the group under this key")
        check_keys(param_group, capturable=self.capturable)
        super().add_param_group(checked_group({**self.defaults, **param_group}))

    def mask_gradients(self) -> None:
        """Zero the gradient of every row that does not train, in the groups that have ``"rows"``.

        Call it after backward (and after ``GradScaler.unscale_``) and before ``clip_grad_norm_``, so that the norm
        counts the trained rows alone. The update itself never reads the other rows, masked or not.

        Examples
        --------
        >>> from kslottery_fast import RowAdamW
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
        >>> from kslottery_fast import RowAdamW
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
        >>> from kslottery_fast import RowAdamW
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

    def _state_of(self, param: Tensor, rows: Tensor | None) -> dict[str, Any]:
        """Return the state of a parameter for the rows that train now. The first step makes it."""
        state: dict[str, Any] = self.state[param]
        if state:
            self._rows.follow(param, rows, state)
        else:
            capture.refuse_in_capture()
            state.update(new_state(param, rows, capturable=self.capturable))
            self._rows.adopt(param, rows)
        return state
