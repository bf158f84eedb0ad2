"""TicketMonitor: logs how many rows are tickets so far, during a training with a Trainer of transformers."""

import warnings
from typing import Any, Literal

import transformers
from transformers import TrainerControl, TrainerState, TrainingArguments
from typing_extensions import Self

from kslottery_fast.base.arguments import check_choice, check_flag, check_integer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_trainer
from kslottery_fast.ks.decision import check_options
from kslottery_fast.ks.null import METHODS
from kslottery_fast.rows.attach import get_rows, has_rows
from kslottery_fast.tickets.attached import ks_select_rows
from kslottery_fast.tickets.tickets import Tickets

require_trainer()  # here, because this is the first file of the Trainer that is imported


class TicketMonitor(transformers.TrainerCallback):
    """Runs the KS test on the attached rows every few steps, logs the result, and can stop when tickets are stable.

    The Trainer logs it, so that it reaches the log history and every tracker: ``tickets`` is the number of tickets, and
    ``ticket_overlap`` their Jaccard overlap with the previous check. The first check has no overlap.

    Parameters
    ----------
    every : int
        The number of steps between two checks, at least 1.
    alpha : float
        The significance level, as for :func:`kslottery_fast.ks_select`.
    method : {"auto", "exact", "asymp", "paper"}
        How p-values are computed, as for :func:`kslottery_fast.ks_select`.
    correction : {None, "bonferroni", "bh"}
        The correction for many tests, as for :func:`kslottery_fast.ks_select`.
    stop_when_stable : bool
        True stops the training once ``patience`` checks in a row have each overlapped by at least ``overlap`` with the
        check before. Checks without a ticket do not count.
    overlap : float
        The Jaccard overlap that counts as stable, in (0, 1].
    patience : int
        The number of stable checks in a row, at least 1.

    Attributes
    ----------
    tickets : Tickets or None
        The tickets of the last check.

    Raises
    ------
    InputError
        An option is out of range. At the start of training: the model has no attached rows in use, or the Trainer is
        not a TicketTrainer and was not given to :meth:`bind`. During training: a row holds NaN.
    TypeError
        ``every``, ``patience`` or ``stop_when_stable`` is of another type.

    Notes
    -----
    A check tests the k attached rows, not the V rows of the table, see :func:`kslottery_fast.ks_select_rows`. A resumed
    training starts with a count of 0 stable checks.

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
        method: Literal["auto", "exact", "asymp", "paper"] = "auto",
        correction: Literal["bonferroni", "bh"] | None = None,
        stop_when_stable: bool = False,
        overlap: float = 0.9,
        patience: int = 3,
    ) -> None:
        check_integer(every, "every", 1)
        check_integer(patience, "patience", 1)
        if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 < overlap <= 1:
            raise InputError(f"overlap is {shown(overlap)}: expected a number in (0, 1]")
        check_flag(stop_when_stable, "stop_when_stable")
        check_choice(method, ("auto", *METHODS), "method")
        check_options(alpha, correction, None)
        self.every, self.stop_when_stable, self.overlap, self.patience = every, stop_when_stable, overlap, patience
        self._options: dict[str, Any] = {"alpha": alpha, "method": method, "correction": correction}
        self._trainer: transformers.Trainer | None = None
        self._stable = 0
        self.tickets: Tickets | None = None

    def bind(self, trainer: transformers.Trainer) -> Self:
        """Log through a Trainer. A TicketTrainer binds its monitors itself.

        Parameters
        ----------
        trainer : transformers.Trainer
            The Trainer that runs this callback.

        Returns
        -------
        TicketMonitor
            The monitor itself.

        Raises
        ------
        TypeError
            ``trainer`` is not a Trainer.
        """
        if not isinstance(trainer, transformers.Trainer):
            raise TypeError(f"trainer is {shown(trainer)}: expected a transformers.Trainer")
        self._trainer = trainer
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that rows are attached and that a Trainer logs."""
        del args, state, control
        if self._trainer is None:
            raise InputError("TicketMonitor logs through its Trainer: use TicketTrainer, or call monitor.bind(trainer)")
        if not has_rows(kwargs["model"]):
            raise InputError("TicketMonitor watches attached rows, but this model has none; call attach_rows first")
        if get_rows(kwargs["model"]).row_sets.active is None:
            raise InputError(
                "TicketMonitor watches the set in use, but no set is in use; call use_rows(model, name) first"
            )
        self.tickets, self._stable = None, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run the test when it is due, log the result, and stop the training if tickets are stable."""
        del args
        if state.global_step % self.every:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no ticket yet, which the log shows as 0
            tickets = ks_select_rows(kwargs["model"], **self._options)
        logs: dict[str, float] = {"tickets": len(tickets)}
        if self.tickets is not None:
            logs["ticket_overlap"] = tickets.jaccard(self.tickets)
            stable = len(tickets) > 0 and logs["ticket_overlap"] >= self.overlap
            self._stable = self._stable + 1 if stable else 0
        self.tickets = tickets
        assert self._trainer is not None
        due = control.should_log
        self._trainer.log(logs)
        control.should_log = due  # the Trainer took this for its own log, and would leave out the loss of this step
        if self.stop_when_stable and self._stable >= self.patience:
            control.should_training_stop = True
