"""The rows of a parameter that train, and the state that belongs to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kslottery_fast.base.dtensors import is_dtensor
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.tables import check_token_ids

from .capture import refuse_in_capture
from .gradients import as_matrix
from .state import ROW_STATE


class _Placed(NamedTuple):
    """Rows on a device, and what they were copied from."""

    source: Tensor
    version: int
    rows: Tensor


class TrainedRows:
    """The rows that the groups of an optimizer name, also after they have changed.

    Only ``group["rows"]`` tells which rows train. It may be replaced or written into between two steps, and groups may
    be removed and added. A row that goes on training keeps its moments. A new row begins with moments of zero, as in a
    dense AdamW whose gradient for this row was zero until now.
    """

    def __init__(self) -> None:
        self._placed: dict[tuple[int, torch.device], _Placed] = {}  # by the index of the group
        self._state_rows: dict[Tensor, Tensor | None] = {}  # the rows that each parameter's state belongs to

    def forget_copies(self) -> None:
        """Read the rows of all groups again at the next step."""
        self._placed.clear()

    def of(self, index: int, group: dict[str, Any], param: Tensor) -> Tensor | None:
        """Return the rows of a parameter, int64 [k] on its device, or None if it trains whole.

        Raises
        ------
        InputError
            New rows that do not fit the parameter.
        """
        source = group.get("rows")
        if source is None:
            return None
        placed = self._placed.get((index, param.device))
        if placed is None or placed.source is not source or placed.version != source._version:
            refuse_in_capture()
            for each in group["params"]:
                checked = check_rows(source, each)
            source = group["rows"] = checked
            placed = _Placed(source, source._version, source.to(param.device, copy=True))
            self._placed[index, param.device] = placed
        return placed.rows

    def adopt(self, param: Tensor, rows: Tensor | None) -> None:
        """Note that the state of a parameter belongs to these rows."""
        self._state_rows[param] = rows

    def follow(self, param: Tensor, rows: Tensor | None, state: dict[str, Any]) -> None:
        """Bring the state of a parameter to the rows that train now."""
        known = self._state_rows.setdefault(param, rows)
        if known is rows:  # as in nearly every step
            return
        if not _same(known, rows):
            refuse_in_capture()
            _move_state(param, known, rows, state)
        self._state_rows[param] = rows


def check_rows(rows: Any, param: Tensor) -> Tensor:
    """Return row ids of a table, int64 [k] on the CPU. They are a copy, so that the caller's tensor may change.

    Raises
    ------
    InputError
        Row ids that do not fit the table, or a parameter that is not a table.
    """
    if is_dtensor(param):
        raise InputError("'rows' needs a whole table, not a DTensor; attach the rows before fully_shard")
    if param.dim() != 2:
        raise InputError(f"'rows' needs a table [V, d], not a parameter {list(param.shape)}")
    return check_token_ids(rows, param.shape[0], "rows").clone()


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second.to(first.device))


def _move_state(param: Tensor, old: Tensor | None, new: Tensor | None, state: dict[str, Any]) -> None:
    """Make the state of new rows. A row of the old state is kept, and another begins as in a first step."""
    every = torch.arange(len(param), device=param.device)
    had, wanted = (every if rows is None else rows.to(param.device) for rows in (old, new))
    place = torch.full_like(every, -1).index_copy_(0, had, torch.arange(len(had), device=param.device))[wanted]
    kept = place >= 0
    for name in ROW_STATE:
        if name in state:
            fresh = as_matrix(param.detach())[wanted] if name == "master" else torch.zeros(len(wanted), param.shape[1])
            fresh = fresh.to(state[name])
            fresh[kept] = state[name][place[kept]]
            state[name] = fresh
