"""How much of the loss's fall each row of an embedding table accounts for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from kslottery_fast.base.arguments import check_choice, check_flag, check_model
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.tables import table_pair
from kslottery_fast.rows.attachment import get_rows, has_rows
from kslottery_fast.rows.tables import check_finite, input_embedding, table_shape
from kslottery_fast.rows.token_ids import TokenIds, check_token_ids
from kslottery_fast.tickets.tables import Table, numbers_of_both

from .checks import check_batches, check_integer, check_progress
from .contribution_result import RowContributions
from .generation import device_of, inference
from .logits import IGNORE_INDEX, supervised_logits
from .quadrature import Rule, quadrature
from .regrouping import Batch, deal, put_together, take_apart
from .worn_rows import OutputRole, wearing

Examples: TypeAlias = Literal["dealt", "all"]
"""Which examples a point of the path sees: its own part of them, or all of them."""

_NAMES = ("before", "after")
_COMPARED = 4096  # rows that are compared at once


def row_contributions(
    model: nn.Module,
    before: Table,
    after: Table,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    token_ids: TokenIds | None = None,
    points: int = 8,
    rule: Rule = "gauss",
    examples: Examples = "dealt",
    output: OutputRole = "auto",
    measure_fall: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RowContributions:
    """Compute how much of the loss's fall between two embedding tables each row accounts for.

    The rows move on the straight path from ``before`` to ``after``. The contribution of a row is the part of the loss's
    fall that its own movement causes, summed along the path. The contributions sum to the whole fall.

    Parameters
    ----------
    model : nn.Module
        A transformers model with an output head and without attached rows. Rows that did not move are read from its own
        table. It computes in evaluation mode and is then as it was, also after an error.
    before, after : Tensor, array, nn.Embedding or model
        The original and the tuned table [V, d], as for :func:`kslottery_fast.ks_select`. ``before`` is usually the
        model itself. With ``token_ids`` each may also be the rows [k, d] of these tokens.
    batches : sequence of mapping
        Training batches, as :func:`~kslottery_fast.evaluation.logits.supervised_logits` takes them. They are taken
        apart, and examples of similar length are put together into batches of the size of the largest one.
    token_ids : TokenIds, optional
        The only rows that move. By default all rows that differ between the two tables move.
    points : int
        The number of points n at which the path is sampled.
    rule : {"gauss", "gauss-squared", "midpoint"}
        The quadrature rule, see :func:`~kslottery_fast.evaluation.quadrature.quadrature`.
    examples : {"dealt", "all"}
        With "dealt" every example is used at one point: they are dealt out at random, and each point gets about as many
        of each length. This takes one pass over the examples. With "all" every point uses all examples, which takes n
        passes and leaves only the error of the quadrature.
    output : {"auto", "frozen", "tied"}
        Role of a tied table, see :func:`kslottery_fast.attach_rows`.
    measure_fall : bool
        Whether the loss before and after is measured on all examples. This takes two more passes, without gradients.
    seed : int
        Seed for dealing out the examples.
    progress : callable, optional
        Called with (examples done, examples), where an example counts once for each time that it is used.

    Returns
    -------
    RowContributions
        The rows that moved with their contributions, in nats per target token.

    Raises
    ------
    InputError
        No row moved, or a row has NaN or Inf. The tables do not fit the model. There are no batches, fewer examples
        with target tokens than points, or batches that cannot be put together. The model has attached rows, or gives a
        loss that is not finite. An option is unknown or out of range.
    TypeError
        An argument has the wrong type. Neither a single batch nor a generator is accepted as ``batches``.

    Notes
    -----
    With g_r(t) the gradient of the mean loss over target tokens with respect to row r at
    ``before + t * (after - before)``, the contribution of the row is the integral of
    ``-g_r(t) . (after_r - before_r)`` over t in [0, 1]. This is integrated gradients [1]_ of the fall of the loss, the
    Aumann-Shapley value of the row. The integral is computed as a weighted sum over the points. The loss at a point is
    the mean over the target tokens of the examples of that point.

    The standard error is that of a stratified sample: at every point it is computed from the differences between
    neighbouring batches, whose examples have similar lengths.

    References
    ----------
    .. [1] Sundararajan, Taly, Yan: *Axiomatic Attribution for Deep Networks*, ICML 2017, arXiv 1703.01365.

    Examples
    --------
    >>> from kslottery_fast import embedding_table
    >>> from kslottery_fast.evaluation.encoding import Example, collate, encode
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> after = embedding_table(model).detach().clone()
    >>> after[24] = after[1]  # "x" is to be read as "a", so that "b" follows
    >>> after[25] += 0.1
    >>> batch = collate([encode(tokenizer, Example(prompt, "b")) for prompt in ("x", "xx", "ax", "zx")], 0)
    >>> found = row_contributions(model, model, after, [batch], points=4)
    >>> found
    RowContributions(2 rows account for 2.637 of a fall of 2.646 nats per token)
    >>> found.token_ids.tolist(), found.enough(0.95).tolist()
    ([24, 25], [24])
    """
    check_model(model)
    if torch.is_inference_mode_enabled():
        raise InputError("row_contributions takes gradients, which torch.inference_mode switches off: call it outside")
    moved = _moved(model, before, after, token_ids)
    at, weights = quadrature(points, rule)
    check_choice(examples, ("dealt", "all"), "examples")
    check_choice(output, ("auto", "frozen", "tied"), "output")
    check_flag(measure_fall, "measure_fall")
    check_integer(seed, "seed", 0)
    check_progress(progress)
    given = check_batches(batches)
    singles, size = _supervised(model, given), max(len(batch["input_ids"]) for batch in given)
    if examples == "dealt" and len(singles) < points:
        raise InputError(
            f"batches hold {len(singles)} examples with target tokens and points is {points}: give at least one "
            "example for each point, or examples='all'"
        )
    lengths = [example["input_ids"].shape[1] for example in singles]
    hands = deal(lengths, points if examples == "dealt" else 1, seed)
    everything = deal(lengths, 1, seed)[0]
    hands *= points // len(hands)
    done = _counter(progress, sum(map(len, hands)) + 2 * len(singles) * measure_fall)

    def batches_of(hand: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(hand), size):
            part = hand[start : start + size]
            yield put_together([singles[i] for i in part])
            done(len(part))

    loss_before = loss_after = None
    with _on_the_path(model, moved, output) as walk:
        found = [walk.slope(float(t), batches_of(hand)) for t, hand in zip(at, hands, strict=True)]
        if measure_fall:
            loss_before, loss_after = (walk.loss(t, batches_of(everything)) for t in (0.0, 1.0))
    slopes = torch.stack([slope for slope, _ in found])
    errors = torch.stack([error for _, error in found])
    return RowContributions(
        token_ids=moved.token_ids,
        contribution=weights @ slopes,
        standard_error=(weights**2 @ errors**2).sqrt(),
        vocab_size=moved.vocab_size,
        rule=rule,
        points=at,
        slopes=slopes.sum(dim=1),
        examples=len(singles),
        loss_before=loss_before,
        loss_after=loss_after,
    )


@dataclass(frozen=True)
class _Moved:
    """The k rows that differ: token ids ascending, and the rows before and after, float64 [k, d] on the CPU."""

    token_ids: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    vocab_size: int


def _moved(model: nn.Module, before: Any, after: Any, token_ids: Any) -> _Moved:
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
    return _Moved(ids, first[places].double().cpu(), second[places].double().cpu(), shape[0])


def _rows_of(table: Any, ids: torch.Tensor, shape: tuple[int, int]) -> Any:
    """The rows [k, d] of these ids, taken from a whole table. Anything else is returned as it is."""
    whole = isinstance(table, (torch.Tensor, np.ndarray)) and tuple(table.shape) == shape and len(ids) != shape[0]
    return table[ids.numpy() if isinstance(table, np.ndarray) else ids] if whole else table


def _supervised(model: nn.Module, batches: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
    """The examples in which the model has at least one token to predict."""
    # A decoder-only model predicts no first token.
    first = 0 if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else 1
    singles = [each for each in take_apart(batches) if (each["labels"][:, first:] != IGNORE_INDEX).any()]
    if not singles:
        raise InputError("batches hold no target token: every label is -100")
    return singles


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    return count


class _Walk:
    """A model whose rows stand at some point of the path."""

    def __init__(self, model: nn.Module, moved: _Moved) -> None:
        self.model, self.moved, self.device = model, moved, device_of(model)
        self.rows = get_rows(model).rows
        self.step = (moved.after - moved.before).to(self.rows.device)

    def slope(self, t: float, batches: Iterator[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how steeply the mean loss falls along each row's step, and the standard error, float64 [k] each."""
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
        # The variance of a mean of m batches, from the differences between neighbours: they differ in length by little.
        m, residuals = len(tokens), sums - counts[:, None] * slope
        if m < 2:
            return slope, torch.full_like(slope, torch.nan)
        variance = m * (residuals.diff(dim=0) ** 2).sum(dim=0) / (2 * (m - 1)) / counts.sum() ** 2
        return slope, variance.sqrt()

    def loss(self, t: float, batches: Iterator[dict[str, torch.Tensor]]) -> float:
        """Return the mean loss over target tokens."""
        self._move_to(t)
        found = [self._loss(batch, t) for batch in batches]
        return sum(float(loss) for loss, _ in found) / sum(n for _, n in found)

    def _move_to(self, t: float) -> None:
        with torch.no_grad():
            self.rows.copy_(torch.lerp(self.moved.before, self.moved.after, t))

    def _loss(self, batch: dict[str, torch.Tensor], t: float) -> tuple[torch.Tensor, int]:
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
def _on_the_path(model: nn.Module, moved: _Moved, output: OutputRole) -> Iterator[_Walk]:
    """Put a model on the path inside the block."""
    embedding = input_embedding(model)
    padding, embedding.padding_idx = embedding.padding_idx, None
    try:
        # Attached without a padding row: nn.Embedding gives that row no gradient, but it may have moved all the same.
        with wearing(model, moved.token_ids, moved.before, output=output), inference(model):
            yield _Walk(model, moved)
    finally:
        embedding.padding_idx = padding
