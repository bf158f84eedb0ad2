"""A warning about tickets whose tokens never occur in the training data, so that their rows get no gradient.

If the data can be read in a moment, they are read before training. Otherwise the moments of the optimizer show which
rows never had a gradient: these moments are zero, whatever the source of the data and whichever process read them.
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
from transformers import TrainerControl, TrainerState, TrainingArguments

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.rows.attach import attached_model, get_rows, output_role
from kslottery_fast.rows.rowset import RowSet

from .active_vocabulary import embedding_keys, examples_of, streams, tokens_of_decoder

LOOK_EXAMPLES, LOOK_SECONDS = 10_000, 1.0
"""A dataset of up to this many examples is read before training, for up to this many seconds."""

FIRST_STEPS = 100
"""If no ticket has been read after this many steps, the warning comes then, otherwise at the end of training."""

_SHOWN = 5


def watch_unread(trainer: transformers.Trainer, text_of: Callable[[int], str | None]) -> None:
    """Warn about attached rows that never occur in the data of a Trainer, now if the data are quick to read, or later.

    Parameters
    ----------
    trainer : transformers.Trainer
        A Trainer whose model has attached rows.
    text_of : callable
        Returns the text of a token id, or None if it is not known.

    Warns
    -----
    RuntimeWarning
        Names the tokens that never occur. Only the first process warns, and only once.
    """
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.model
    # A Dataset may open files when it is first read, and its workers must not share these with this process.
    plain = isinstance(trainer.train_dataset, (list, tuple)) or hasattr(trainer.train_dataset, "column_names")
    readable = plain or not trainer.args.dataloader_num_workers
    unread = unread_rows(trainer.train_dataset, model) if readable else None
    if unread is None:
        trainer.add_callback(UnreadRows(text_of))
    elif unread:
        warn_caller(_lacking_message(unread, len(_trained_ids(model)), text_of), RuntimeWarning)


def unread_rows(dataset: Any, model: nn.Module) -> list[int] | None:
    """Return the token ids of attached rows that never occur in a dataset.

    Parameters
    ----------
    dataset : Dataset, list or None
        What a Trainer trains on.
    model : nn.Module
        A model with attached rows.

    Returns
    -------
    list of int, or None
        Sorted. None if the dataset streams, is large or slow, or has no token ids, and if the head follows the rows,
        which gives all of them a gradient.
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
                    wanted.difference_update(np.ravel(example[key]).tolist())
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

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check whether any row had a gradient in the first steps."""
        if state.global_step == FIRST_STEPS:
            self._check(state.global_step, all_of_them=True, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check which rows never had a gradient."""
        self._check(state.global_step, all_of_them=False, **kwargs)

    def _check(self, steps: int, *, all_of_them: bool, model: nn.Module, optimizer: Any = None, **_: Any) -> None:
        if self.warned or optimizer is None:
            return
        still, total = rows_without_gradient(model, optimizer)
        if still and (len(still) == total or not all_of_them):
            self.warned = True
            warn_caller(_still_message(still, total, steps, self.text_of), RuntimeWarning)


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


def _lacking_message(unread: list[int], total: int, text_of: Callable[[int], str | None]) -> str:
    """What is said of tickets that a whole dataset does not hold."""
    if len(unread) == total:
        found = "the only ticket never occurs" if total == 1 else f"none of the {total} tickets occurs"
    else:
        found = f"{len(unread)} of {total} tickets never occur{'s' if len(unread) == 1 else ''}"
    rows, them = ("its row does", "it") if len(unread) == 1 else ("their rows do", "them")
    return (
        f"{found} in train_dataset, so {rows} not train: {_named(unread, text_of)}; leave {them} out, or add examples "
        f"that contain {them}"
    )


def _still_message(still: list[int], total: int, steps: int, text_of: Callable[[int], str | None]) -> str:
    """What is said of tickets whose rows had no gradient, which has two causes."""
    if len(still) == total:
        found = "the only ticket had no gradient" if total == 1 else f"none of the {total} tickets had a gradient"
    else:
        found = f"{len(still)} of {total} tickets had no gradient"
    rows, them = ("its row", "it") if len(still) == 1 else ("their rows", "them")
    return (
        f"{found} in {steps} steps, so {rows} did not train: {_named(still, text_of)}; no example contains {them}, or "
        f"only at its end, where nothing is predicted from {them}; leave {them} out, or add examples that contain "
        f"{them} elsewhere"
    )


def _named(tokens: list[int], text_of: Callable[[int], str | None]) -> str:
    shown = ", ".join(f"{token} {text!r}" if (text := text_of(token)) else f"{token}" for token in tokens[:_SHOWN])
    return f"token id{'' if len(tokens) == 1 else 's'} {shown}{', ...' if len(tokens) > _SHOWN else ''}"


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore all random generators after a block, so that reading a dataset early does not change the training."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a dataset may use it
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
