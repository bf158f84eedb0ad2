"""Rows of the head in trainers of TRL, which compute from the weight of the head and do not call the head.

TRL replaces the forward of the model by one that reads ``lm_head.weight``. The head is then never called, so a head
that follows rows would train and be evaluated with the rows of the table. Here such a forward finds a weight that has
the rows in it.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attachment import attached_model, row_heads
from kslottery_fast.rows.overlay import RowHead
from kslottery_fast.rows.switch import FUSED, READS_ROWS, passes_head_by


def read_rows_in_fused_head(model: nn.Module, *, tell: bool = True) -> None:
    """Let the forward that TRL gave to a model see the rows of its head.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows. Without a forward of TRL, or if the head reads no rows, it stays as it is.
    tell : bool
        Whether to warn about the cost. False is for trainings whose loss calls the head.

    Warns
    -----
    RuntimeWarning
        The head reads rows, so that a copy of its table is made in every step.
    """
    owner = attached_model(model)
    fused = vars(owner).get("forward")
    if not isinstance(fused, types.MethodType) or not passes_head_by(fused) or not row_heads(owner):
        return
    if tell:
        warn_caller(
            "TRL computes the loss from the weight of the head and does not call the head, so the rows are written "
            "into a copy of the head's table in every step; supervised_logits_only=True trains an SFTTrainer without "
            "the copy"
        )
    function = fused.__func__

    @functools.wraps(fused)  # generate looks at its signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Looked up in every call: merge_rows takes the rows off, and a copy of the model has heads of its own.
        with ExitStack() as stack:
            for head in row_heads(self) if kwargs.get(FUSED, False) else ():
                stack.enter_context(_rows_in_weight(head))
            return function(self, *args, **kwargs)

    setattr(forward, READS_ROWS, True)
    vars(owner)["forward"] = types.MethodType(forward, owner)


@contextmanager
def _rows_in_weight(head: RowHead) -> Iterator[None]:
    sets = head.row_sets
    if sets.mixture is not None:
        raise InputError("TRL's loss cannot read mixed_rows in the head; attach the rows with output='frozen'")
    if sets.off() or sets.active is None:
        yield
        return
    held: dict[str, Any] = head._parameters
    rows, entries, ids = head.row_sets.current().head.read()
    before = {name: held[name] for name in ("weight", "bias") if held.get(name) is not None}
    held["weight"] = before["weight"].index_copy(0, ids, rows.to(before["weight"].dtype))
    if entries is not None:
        held["bias"] = before["bias"].index_copy(0, ids, entries.to(before["bias"].dtype))
    try:
        yield
    finally:
        held.update(before)
