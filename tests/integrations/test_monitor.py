"""TicketMonitor: the tickets of the merged table, in the Trainer's log, and an end when they are stable."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import make
from tiny_trainer import TOKENS, arguments, dataset
from torch import nn
from transformers import Trainer, TrainerCallback

from kslottery_fast import attach_rows, embedding_table, get_rows, ks_select, merge_rows, use_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.monitor import TicketMonitor
from kslottery_fast.integrations.trainer import TicketTrainer


class Reference(TrainerCallback):
    """ks_select on the merged table, at every step."""

    def __init__(self) -> None:
        self.tickets = {}

    def on_step_end(self, args, state, control, *, model: nn.Module, **kwargs) -> None:
        before = embedding_table(model).detach().clone()
        after = embedding_table(merge_rows(copy.deepcopy(model)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.tickets[state.global_step] = ks_select(before, after, 0.3)


def trained(folder: Path, *callbacks: TrainerCallback, model: nn.Module | None = None, **options: object) -> Trainer:
    defaults = {"max_steps": 12, "save_strategy": "no", "learning_rate": 1.0}
    trainer = TicketTrainer(
        model=make("llama") if model is None else model,
        args=arguments(folder, **(defaults | options)),
        train_dataset=dataset(),
        tickets=TOKENS,
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


def checks(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "tickets" in entry]


def test_it_logs_the_number_of_tickets_and_their_overlap_through_the_trainer(tmp_path):
    seen, reference = [], Reference()

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(logs)

    monitor = TicketMonitor(every=4, alpha=0.3)
    trainer = trained(tmp_path, monitor, reference, Tracker())
    entries, want = checks(trainer), reference.tickets
    assert [entry["step"] for entry in entries] == [4, 8, 12]
    assert [entry["tickets"] for entry in entries] == [len(want[step]) for step in (4, 8, 12)]
    assert "ticket_overlap" not in entries[0]
    assert entries[1]["ticket_overlap"] == want[8].jaccard(want[4])
    assert monitor.tickets == want[12]
    assert len(want[12]) > 0
    assert any("ticket_overlap" in logs for logs in seen)


def test_it_changes_nothing_about_the_training(tmp_path):
    models = make("llama"), make("llama")
    trained(tmp_path, TicketMonitor(every=1, alpha=0.3), model=models[0])
    trained(tmp_path, model=models[1])
    assert torch.equal(get_rows(models[0]).rows, get_rows(models[1]).rows)


def test_it_stops_after_as_many_stable_checks_as_asked_for(tmp_path):
    reference = Reference()
    monitor = TicketMonitor(every=1, alpha=0.3, stop_when_stable=True, patience=3)
    trainer = trained(tmp_path, monitor, reference, max_steps=200)
    last, sets = trainer.state.global_step, reference.tickets
    assert 4 <= last < 200
    stable = [len(sets[step]) > 0 and sets[step].jaccard(sets[step - 1]) >= 0.9 for step in range(2, last + 1)]
    assert stable[-3:] == [True] * 3
    assert all(stable[i : i + 3] != [True] * 3 for i in range(len(stable) - 3))  # not one step later


def test_no_ticket_at_all_is_never_stable(tmp_path):
    monitor = TicketMonitor(every=1, stop_when_stable=True, patience=1)
    trainer = trained(tmp_path, monitor, learning_rate=1e-6)
    assert trainer.state.global_step == 12
    assert {entry["tickets"] for entry in checks(trainer)} == {0}


def test_a_class_in_place_of_a_monitor_is_bound_too(tmp_path):
    trainer = TicketTrainer(
        model=make("llama"),
        args=arguments(tmp_path, max_steps=10, save_strategy="no"),
        train_dataset=dataset(),
        tickets=TOKENS,
    )
    trainer.add_callback(TicketMonitor)
    trainer.train()
    assert [entry["step"] for entry in checks(trainer)] == [10]


def test_a_plain_trainer_can_bind_it(tmp_path):
    model = attach_rows(make("llama"), TOKENS)
    monitor = TicketMonitor(every=2)
    args = arguments(tmp_path, max_steps=2, save_strategy="no")
    trainer = Trainer(model=model, args=args, train_dataset=dataset(), callbacks=[monitor])
    with pytest.raises(InputError, match=r"call monitor.bind\(trainer\)"):
        trainer.train()
    with pytest.raises(TypeError, match=r"trainer is 'me': expected a transformers\.Trainer"):
        monitor.bind("me")
    monitor.bind(trainer)
    trainer.train()
    assert checks(trainer)


def test_it_can_be_added_later_and_wants_attached_rows(tmp_path):
    args = arguments(tmp_path, max_steps=2, save_strategy="no")
    model = make("llama")
    trainer = TicketTrainer(model=model, args=args, train_dataset=dataset(), tickets="none")
    trainer.add_callback(TicketMonitor(every=1))
    with pytest.raises(InputError, match="watches attached rows, but this model has none"):
        trainer.train()
    use_rows(attach_rows(model, TOKENS), None)
    with pytest.raises(InputError, match="watches the set in use, but no set is in use; call use_rows"):
        trainer.train()
    use_rows(model, "default")
    trainer.train()
    assert len(checks(trainer)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0: expected at least 1"),
        ({"every": True}, "every is True"),
        ({"patience": 0}, "patience is 0"),
        ({"overlap": 0.0}, "overlap is 0.0: expected"),
        ({"overlap": 1.5}, "overlap is 1.5"),
        ({"alpha": 1.0}, "alpha"),
        ({"correction": "holm"}, "correction is 'holm'"),
        ({"every": "4"}, "every is '4': expected an integer"),
        ({"overlap": None}, "overlap is None"),
        ({"method": "fast"}, "method is 'fast': expected 'auto', 'exact', 'asymp' or 'paper'"),
        ({"stop_when_stable": "no"}, "stop_when_stable is 'no'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((InputError, TypeError), match=message):
        TicketMonitor(**options)
