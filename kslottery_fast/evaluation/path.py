"""A model whose rows move on the straight path between two tables."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import SharedRole
from kslottery_fast.ks.tables import table_pair
from kslottery_fast.rows.attachment import get_rows, has_rows
from kslottery_fast.rows.tables import check_finite, input_embedding, table_shape
from kslottery_fast.rows.token_ids import check_token_ids
from kslottery_fast.tickets.tables import numbers_of_both

from .generation import device_of, inference
from .logits import supervised_logits
from .regrouping import Batch
from .worn_rows import wearing

_NAMES = ("before", "after")
_COMPARED = 4096  # rows that are compared at once


@dataclass(frozen=True)
class MovedRows:
    """The k rows that differ: token ids ascending, and the rows before and after, float64 [k, d] on the CPU."""

    token_ids: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    vocab_size: int


def moved_rows(model: nn.Module, before: Any, after: Any, token_ids: Any) -> MovedRows:
    """Return the rows that differ between two tables of a model, or between the rows of some token ids.

    Parameters
    ----------
    model : nn.Module
        A model without attached rows.
    before, after, token_ids
        As for :func:`kslottery_fast.row_contributions`.

    Raises
    ------
    InputError
        No row differs, a row that differs holds NaN or Inf, the tables do not fit the model, or it has attached rows.
    TypeError
        An argument has the wrong type.
    """
    shape = table_shape(input_embedding(model))
    if has_rows(model):
        raise InputError("model has attached rows: call detach_rows or merge_rows first, and give the rows as after")
    tables = numbers_of_both(before, after, _NAMES)
    ids = torch.arange(shape[0])
    if token_ids is not None:
        ids = check_token_ids(token_ids, shape[0])
        tables = _rows_of(tables[0], ids, shape), _rows_of(tables[1], ids, shape)
    first, second = table_pair(*tables, _NAMES)
    if first.shape != (len(ids), shape[1]):
        rows = "" if token_ids is None else f", or {[len(ids), shape[1]]}, the rows of token_ids"
        raise InputError(f"before and after have the shape {list(first.shape)}: expected {list(shape)}, as model{rows}")
    pairs = zip(first.split(_COMPARED), second.split(_COMPARED), strict=True)
    places = torch.cat([(a != b).any(dim=1) for a, b in pairs]).nonzero()[:, 0]
    ids = ids[places.cpu()]
    if len(ids) == 0:
        raise InputError("before and after hold the same rows: no row moved, so there is nothing to account for")
    places, ids = places[ids.argsort().to(places.device)], ids.sort().values
    check_finite(first[places], ids, "before cannot be used: the checkpoint is damaged, load it again")
    check_finite(second[places], ids, "after cannot be used: training diverged, lower the learning rate")
    return MovedRows(ids, first[places].double().cpu(), second[places].double().cpu(), shape[0])


def _rows_of(table: Any, ids: torch.Tensor, shape: tuple[int, int]) -> Any:
    """The rows [k, d] of these ids, taken from a whole table. Anything else is returned as it is."""
    whole = isinstance(table, (torch.Tensor, np.ndarray)) and tuple(table.shape) == shape and len(ids) != shape[0]
    return table[ids.numpy() if isinstance(table, np.ndarray) else ids] if whole else table


class Walk:
    """A model with attached rows that stand at some point of the path.

    Parameters
    ----------
    model : nn.Module
        The model.
    moved : MovedRows
        Its attached rows before and after, in the same order.
    """

    def __init__(self, model: nn.Module, moved: MovedRows) -> None:
        self.model, self.moved, self.device = model, moved, device_of(model)
        self.rows = get_rows(model).rows
        self.step = (moved.after - moved.before).to(self.rows.device)

    def slope(self, t: float, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how steeply the mean loss falls along the step of each row.

        Parameters
        ----------
        t : float
            The point of the path.
        batches : iterable of mapping
            m batches.

        Returns
        -------
        slope : torch.Tensor
            float64 [k], in nats per target token.
        deviations : torch.Tensor
            float64 [m, k]. What each batch adds to the slope, less what its tokens would add at the mean slope. Sums
            to 0 over the batches.
        """
        falls, tokens = [], []
        self._move_to(t)
        for batch in batches:
            with torch.enable_grad():
                loss, n = self._loss(batch, t)
                (gradient,) = torch.autograd.grad(loss, self.rows)
            falls.append(-(gradient.double() * self.step).sum(dim=1).cpu())
            tokens.append(n)
        sums, counts = torch.stack(falls), torch.tensor(tokens, dtype=torch.float64)
        slope = sums.sum(dim=0) / counts.sum()
        return slope, (sums - counts[:, None] * slope) / counts.sum()

    def loss(self, t: float, batches: Iterable[Batch]) -> float:
        """Return the mean loss over target tokens at a point of the path."""
        self._move_to(t)
        found = [self._loss(batch, t) for batch in batches]
        return sum(float(loss) for loss, _ in found) / sum(n for _, n in found)

    def _move_to(self, t: float) -> None:
        with torch.no_grad():
            self.rows.copy_(torch.lerp(self.moved.before, self.moved.after, t))

    def _loss(self, batch: Batch, t: float) -> tuple[torch.Tensor, int]:
        """Return the sum of the loss over target tokens, and their number."""
        logits, targets = supervised_logits(self.model, {k: v.to(self.device) for k, v in batch.items()})
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = nn.functional.cross_entropy(wide, targets, reduction="sum")
        if not loss.isfinite():
            raise InputError(
                f"the model gives a loss of {loss.item()} at the point {t:.3f} of the path from before to after: "
                "its training diverged, or its file is damaged"
            )
        return loss, len(targets)


@contextlib.contextmanager
def on_the_path(model: nn.Module, moved: MovedRows, output: SharedRole) -> Iterator[Walk]:
    """Put a model on the path inside the block, in evaluation mode. After the block it is as it was.

    Parameters
    ----------
    model : nn.Module
        A model without attached rows.
    moved : MovedRows
        The two ends of the path.
    output : {"auto", "frozen", "tied"}
        Role of a tied table.
    """
    embedding = input_embedding(model)
    with contextlib.ExitStack() as stack:
        # Attached without a padding row: nn.Embedding gives that row no gradient, but it may have moved all the same.
        padding, embedding.padding_idx = embedding.padding_idx, None
        try:
            stack.enter_context(wearing(model, moved.token_ids, moved.before, output=output))
        finally:
            embedding.padding_idx = padding
        stack.enter_context(inference(model))
        yield Walk(model, moved)
