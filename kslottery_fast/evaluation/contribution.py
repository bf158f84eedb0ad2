"""How much of the loss's fall each row of an embedding table accounts for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from kslottery_fast.base.arguments import check_choice, check_flag, check_model
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import SharedRole
from kslottery_fast.rows.token_ids import TokenIds
from kslottery_fast.tickets.tables import Table

from .checks import check_batches, check_integer, check_progress
from .contribution_result import RowContributions
from .logits import IGNORE_INDEX
from .path import moved_rows, on_the_path
from .quadrature import Rule, quadrature
from .regrouping import Batch, deal, put_together, take_apart

Examples: TypeAlias = Literal["dealt", "all"]
"""Which examples a point of the path sees: its own part of them, or all of them."""


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
    output: SharedRole = "auto",
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

    The standard error is computed from the differences between batches of similar lengths at the same point. It tells
    how far contributions scatter with the examples, and does not contain the error of the quadrature.

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
    moved = moved_rows(model, before, after, token_ids)
    at, weights = quadrature(points, rule)
    check_choice(examples, ("dealt", "all"), "examples")
    check_choice(output, ("auto", "frozen", "tied"), "output")
    check_flag(measure_fall, "measure_fall")
    check_integer(seed, "seed", 0)
    check_progress(progress)
    given = check_batches(batches)
    singles = _supervised(model, given, moved.vocab_size)
    if examples == "dealt" and len(singles) < points:
        raise InputError(
            f"batches hold {len(singles)} examples with target tokens and points is {points}: give at least one "
            "example for each point, or examples='all'"
        )
    lengths = [example["input_ids"].shape[1] for example in singles]
    everything = deal(lengths, 1, seed)
    hands = deal(lengths, points, seed) if examples == "dealt" else everything * points
    size = max(len(batch["input_ids"]) for batch in given)
    done = _counter(progress, sum(map(len, hands)) + 2 * len(singles) * measure_fall)

    def batches_of(hand: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(hand), size):
            part = hand[start : start + size]
            yield put_together([singles[i] for i in part])
            done(len(part))

    loss_before = loss_after = None
    with on_the_path(model, moved, output) as walk:
        found = [walk.slope(float(t), batches_of(hand)) for t, hand in zip(at, hands, strict=True)]
        if measure_fall:
            loss_before, loss_after = (walk.loss(t, batches_of(everything[0])) for t in (0.0, 1.0))
    slopes = torch.stack([slope for slope, _ in found])
    return RowContributions(
        token_ids=moved.token_ids,
        contribution=weights @ slopes,
        standard_error=_standard_error(weights, [deviations for _, deviations in found], apart=examples == "dealt"),
        vocab_size=moved.vocab_size,
        rule=rule,
        points=at,
        slopes=slopes.sum(dim=1),
        examples=len(singles),
        loss_before=loss_before,
        loss_after=loss_after,
    )


def _standard_error(weights: torch.Tensor, deviations: Sequence[torch.Tensor], *, apart: bool) -> torch.Tensor:
    """The standard error of the weighted sum over points, float64 [k].

    ``deviations`` holds for each point by how much each of its m batches pulls the slopes away, [m, k]. The points are
    ``apart`` if each has examples of its own. If not, their errors do not average out.
    """
    weighted = [weight * each for weight, each in zip(weights, deviations, strict=True)]
    if not apart:
        weighted = [torch.stack(weighted).sum(dim=0)]
    return sum((_variance(each) for each in weighted), torch.zeros(())).sqrt()


def _variance(deviations: torch.Tensor) -> torch.Tensor:
    """The variance of the sum of m deviations from their mean, [m, k] to [k]. NaN if m is 1.

    It comes from the differences between neighbours, which are batches of similar lengths: the spread of lengths is no
    error, since every point has about as many examples of each length.
    """
    m = len(deviations)
    if m == 1:
        return torch.full_like(deviations[0], torch.nan)
    return m * (deviations.diff(dim=0) ** 2).sum(dim=0) / (2 * (m - 1))


def _supervised(model: nn.Module, batches: Sequence[Batch], vocab_size: int) -> list[dict[str, torch.Tensor]]:
    """The examples in which the model has at least one token to predict."""
    # A decoder-only model predicts no first token.
    first = 0 if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else 1
    singles = [each for each in take_apart(batches) if (each["labels"][:, first:] != IGNORE_INDEX).any()]
    if not singles:
        raise InputError("batches hold no target token: every label is -100")
    highest = max(int(example["input_ids"].max()) for example in singles)
    if highest >= vocab_size:
        raise InputError(
            f"batches hold the token id {highest}, outside the model's {vocab_size} embedding rows: use its own "
            "tokenizer"
        )
    return singles


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    return count
