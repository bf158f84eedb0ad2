"""Tickets whose tokens the training data never hold: their rows get no gradient, and a warning names them.

A look at the dataset before training tells this for data that can be read in a moment. Otherwise the moments of the
optimizer tell it: a row that never had a gradient has moments of zero, whatever the data came from and whichever
process read them.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.rows.attach import attached_model, get_rows, output_role
from kslottery_fast.rows.rowset import RowSet

from .active_vocabulary import embedding_keys, examples_of, streams, tokens_of_decoder

LOOK_EXAMPLES, LOOK_SECONDS = 10_000, 1.0
"""The largest dataset that is looked at before training, and the longest look."""

FIRST_STEPS = 100
"""After so many steps a training that has read no ticket at all is warned about. The others are named at its end."""

_SHOWN = 5


def watch_unread(trainer: transformers.Trainer, text_of: Callable[[int], str | None]) -> None:
    """Warn about rows that the data of a Trainer never read: now if a look at them tells, else during training.

    Parameters
    ----------
    trainer : transformers.Trainer
        A Trainer whose model has attached rows.
    text_of : callable
        Returns the text of a token id, or None if it is not known.

    Warns
    -----
    RuntimeWarning
        Names the rows that are never read. Only the first process warns, and only once.
    """
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.model
    # A Dataset of the caller's own may open files in the process that reads it first, which workers must not share.
    plain = isinstance(trainer.train_dataset, (list, tuple)) or hasattr(trainer.train_dataset, "column_names")
    looks = plain or not trainer.args.dataloader_num_workers
    unread = unread_rows(trainer.train_dataset, model) if looks else None
    if unread is None:
        trainer.add_callback(UnreadRows(text_of))
    elif unread:
        warn_caller(
            _message(unread, len(_trained_ids(model)), "in train_dataset", text_of)
            + "; leave them out, or add examples that contain them",
            RuntimeWarning,
        )


def unread_rows(dataset: Any, model: nn.Module) -> list[int] | None:
    """Return the token ids of attached rows that a dataset never reads.

    Parameters
    ----------
    dataset : Dataset, list or None
        What a Trainer trains on.
    model : nn.Module
        A model with attached rows.

    Returns
    -------
    list of int, or None
        Sorted. None where a short look does not tell: a dataset that streams, is large or slow, or has no token ids,
        and a head that follows the rows, which gives a gradient to all of them.
    """
    if dataset is None or streams(dataset) or len(dataset) > LOOK_EXAMPLES or output_role(model) == "tied":
        return None
    base = attached_model(model)
    keys, wanted = embedding_keys(base), set(_trained_ids(model)) - set(tokens_of_decoder(base))
    end = time.monotonic() + LOOK_SECONDS
    with _same_random_numbers():
        for example in examples_of(dataset):
            if not isinstance(example, Mapping) or keys[0] not in example or time.monotonic() > end:
                return None
            for key in keys:
                if example.get(key) is not None:
                    wanted.difference_update(torch.as_tensor(example[key]).reshape(-1).tolist())
            if not wanted:
                break
    return sorted(wanted)


class UnreadRows(transformers.TrainerCallback):
    """Warns about attached rows that have had no gradient by the end of a training.

    If no row at all has had one after ``FIRST_STEPS`` steps, the warning comes then.

    Parameters
    ----------
    text_of : callable
        Returns the text of a token id, or None if it is not known.
    """

    def __init__(self, text_of: Callable[[int], str | None]) -> None:
        self.text_of, self.warned = text_of, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look whether any row was read in the first steps."""
        if state.global_step == FIRST_STEPS:
            self._check(state.global_step, all_of_them=True, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look which rows were never read."""
        self._check(state.global_step, all_of_them=False, **kwargs)

    def _check(self, steps: int, *, all_of_them: bool, model: nn.Module, optimizer: Any = None, **_: Any) -> None:
        if self.warned or optimizer is None:
            return
        still, total = rows_without_gradient(model, optimizer)
        if still and (len(still) == total or not all_of_them):
            self.warned = True
            message = _message(still, total, f"in the data of {steps} steps", self.text_of)
            warn_caller(f"{message}; leave them out, or add examples that contain them", RuntimeWarning)


def rows_without_gradient(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[int], int]:
    """Return the token ids of rows that never had a gradient, and how many rows the optimizer trains.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    optimizer : torch.optim.Optimizer
        RowAdamW or another Adam, wrapped by accelerate or not. The rows of any other optimizer are not counted.

    Returns
    -------
    token_ids : list of int
        Sorted.
    total : int
    """
    still, total, every = list[int](), 0, getattr(optimizer, "state", {})
    for row_set in _row_sets(model):
        state = every.get(row_set.rows, {})
        if {"exp_avg", "exp_avg_sq"} <= state.keys():
            # The first moment falls to zero soon after the last gradient, the second only after 100,000 steps.
            moved = (state["exp_avg"] != 0) | (state["exp_avg_sq"] != 0)
            total += len(moved)
            still += row_set.token_ids[~moved.any(dim=1)].tolist()
    return sorted(still), total


def _trained_ids(model: nn.Module) -> list[int]:
    return sorted(
        {token for row_set in _row_sets(model) if row_set.rows.requires_grad for token in row_set.token_ids.tolist()}
    )


def _row_sets(model: nn.Module) -> list[RowSet]:
    return list(get_rows(model).row_sets.values())


def _message(unread: list[int], total: int, where: str, text_of: Callable[[int], str | None]) -> str:
    shown = ", ".join(f"{token} {text!r}" if (text := text_of(token)) else f"{token}" for token in unread[:_SHOWN])
    shown += ", ..." if len(unread) > _SHOWN else ""
    if len(unread) == total:
        tickets = "the ticket never occurs" if total == 1 else f"none of the {total} tickets occurs"
    else:
        tickets = f"{len(unread)} of {total} tickets never occur{'s' if len(unread) == 1 else ''}"
    return f"{tickets} {where}, and a row that is never read does not train: token ids {shown}"


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore all generators after a block: a dataset that draws random numbers trains as without the look."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a dataset may draw from
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
