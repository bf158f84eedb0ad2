"""TicketMonitor: how many rows are tickets by now, in the log of a transformers Trainer."""

from __future__ import annotations

import warnings
from typing import Any

import transformers

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.decision import check_options
from kslottery_fast.rows.attach import get_rows, has_rows
from kslottery_fast.tickets.attached import ks_select_rows
from kslottery_fast.tickets.tickets import Tickets


class TicketMonitor(transformers.TrainerCallback):
    """Runs the KS test on the attached rows every few steps, logs it, and can stop when the tickets are stable.

    Logged through the Trainer, so that it reaches its log history and every tracker: ``tickets``, their number,
    and from the second check on ``ticket_overlap``, their Jaccard overlap with the check before.

    Parameters
    ----------
    every : steps between two checks, at least 1.
    alpha, method, correction : as for :func:`kslottery_fast.ks_select`.
    stop_when_stable : stop training once ``patience`` checks in a row overlap by ``overlap`` or more with the one
        before. Checks without a single ticket do not count.
    overlap : Jaccard overlap in (0, 1] that counts as stable.
    patience : how many such checks it takes, at least 1.

    Attributes
    ----------
    tickets : Tickets of the last check, or None.

    Raises
    ------
    InputError : an option out of range; at the start of training a model without attached rows in use, or a Trainer
        that is not a TicketTrainer and was not given to :meth:`bind`; during training, NaN in a row.

    Notes
    -----
    A check tests the k attached rows, not the V of the table: see
    :func:`kslottery_fast.tickets.ks_select_rows`. A resumed run counts stable checks from none.

    Examples
    --------
    >>> monitor = TicketMonitor(every=20, stop_when_stable=True)
    >>> monitor.every, monitor.tickets
    (20, None)
    """

    def __init__(
        self,
        every: int = 10,
        *,
        alpha: float = 0.05,
        method: str = "auto",
        correction: str | None = None,
        stop_when_stable: bool = False,
        overlap: float = 0.9,
        patience: int = 3,
    ) -> None:
        for name, value in (("every", every), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, expected an integer of at least 1")
        if not 0 < overlap <= 1:
            raise InputError(f"overlap is {overlap}, expected a number in (0, 1]")
        check_options(alpha, correction, None)
        self.every, self.stop_when_stable, self.overlap, self.patience = every, stop_when_stable, overlap, patience
        self._options: dict[str, Any] = {"alpha": alpha, "method": method, "correction": correction}
        self._trainer: transformers.Trainer | None = None
        self._stable = 0
        self.tickets: Tickets | None = None

    def bind(self, trainer: transformers.Trainer) -> TicketMonitor:
        """Log through this Trainer; a TicketTrainer binds its monitors itself. Returns the monitor."""
        self._trainer = trainer
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that there is something to watch and somewhere to log."""
        del args, state, control
        if self._trainer is None:
            raise InputError("TicketMonitor logs through its Trainer: use TicketTrainer, or call monitor.bind(trainer)")
        if not has_rows(kwargs["model"]):
            raise InputError("TicketMonitor watches attached rows, this model has none; call attach_rows first")
        if get_rows(kwargs["model"]).row_sets.active is None:
            raise InputError("TicketMonitor watches the set in use, and none is; call use_rows(model, name) first")
        self.tickets, self._stable = None, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Test, log, and stop if that was asked for."""
        del args
        if state.global_step % self.every:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no ticket yet: the log says so by a zero
            tickets = ks_select_rows(kwargs["model"], **self._options)
        logs: dict[str, float] = {"tickets": len(tickets)}
        if self.tickets is not None:
            logs["ticket_overlap"] = tickets.jaccard(self.tickets)
            stable = len(tickets) > 0 and logs["ticket_overlap"] >= self.overlap
            self._stable = self._stable + 1 if stable else 0
        self.tickets = tickets
        assert self._trainer is not None
        self._trainer.log(logs)
        if self.stop_when_stable and self._stable >= self.patience:
            control.should_training_stop = True
