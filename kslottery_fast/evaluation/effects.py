"""What single rows do to a model's predictions, and through which positions of a text rows act."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows

from .encoding import Example, collate, encode, encode_prompt, pad_id
from .evaluate import TargetNll, nll
from .generation import device_of, inference
from .intervals import bootstrap_interval
from .logits import supervised_logits

PARTS = ("instruction", "source", "history")
"""The positions of a text: the words of the template, the source sentence in it, the target read so far."""


@contextlib.contextmanager
def wearing(model: Any, token_ids: torch.Tensor, rows: torch.Tensor, *, output: str = "auto") -> Iterator[Any]:
    """The model with ``rows`` [k, d] in place of its own inside the block, and as it was after it.

    Errors and ``output`` are those of :func:`kslottery_fast.attach_rows`; without ``token_ids`` it is the model itself.
    """
    if len(token_ids) == 0:
        yield model
        return
    attach_rows(model, token_ids, output=output)
    try:
        with torch.no_grad():
            get_rows(model).rows.copy_(rows)
        yield model
    finally:
        detach_rows(model)


def ticket_effects(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    token_ids: torch.Tensor,
    rows: torch.Tensor,
    *,
    shown: int,
    output: str = "auto",
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The effect of each of the first rows on NLL: transferred alone, and left out of all.

    Parameters
    ----------
    model, tokenizer, examples, batch_size, n_bootstrap, seed
        As :func:`~kslottery_fast.evaluation.evaluate.nll` takes them.
    token_ids, rows : int64 tensor [k], tensor [k, d]
        Rows that are copied into the model; nothing trains.
    shown : int
        How many of them, from the first on, are looked at one by one.
    output : str
        Role of a tied table, see :func:`kslottery_fast.attach_rows`.
    progress : callable, optional
        Called with (evaluations done, evaluations).

    Returns
    -------
    dict
        ``nothing`` and ``all``: NLL with none and with all rows, see :meth:`TargetNll.to_dict`. ``tickets``: for each
        row its ``token_id`` and the differences ``alone`` (NLL without minus NLL with it alone) and ``left_out`` (NLL
        of all but it minus NLL of all), in nats per token with paired 95 % intervals over sentences. Positive: the row
        helps.
    """
    total, done = 2 * min(shown, len(token_ids)) + 2, itertools.count(1)
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    every = token_ids.argsort()

    def measure(places: torch.Tensor) -> TargetNll:
        with wearing(model, token_ids[places], rows[places], output=output):
            result = nll(model, tokenizer, examples, batch_size=batch_size, **options)
        if progress:
            progress(next(done), total)
        return result

    def gain(worse: TargetNll, better: TargetNll) -> dict[str, float]:
        table = list(zip(worse.sentence_nll, better.sentence_nll, worse.sentence_tokens, strict=True))
        return bootstrap_interval(table, lambda s: (s[0] - s[1]) / s[2], **options).to_dict()

    nothing, everything = measure(every[:0]), measure(every)
    effects = [
        {
            "token_id": token,
            "alone": gain(nothing, measure(every[every == place])),
            "left_out": gain(measure(every[every != place]), everything),
        }
        for place, token in enumerate(token_ids[:shown].tolist())
    ]
    return {"nothing": nothing.to_dict(), "all": everything.to_dict(), "tickets": effects}


def position_effects(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    sources: Sequence[str],
    token_ids: torch.Tensor,
    rows: torch.Tensor,
    *,
    output: str = "auto",
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Which share of the gain in NLL comes through the instruction, the source and the target history.

    The rows are switched on at some of the three kinds of positions and off at the others, in all 8 ways. The share of
    a kind is its Shapley value, the mean over the 6 orders of switching them on of what it adds: shares add up to the
    whole gain.

    Parameters
    ----------
    sources : sequence of str
        The source sentence in the prompt of each example.
    model, tokenizer, examples, token_ids, rows, output, batch_size, n_bootstrap, seed, progress
        As for :func:`ticket_effects`.

    Returns
    -------
    dict
        ``gain`` and, for each of ``PARTS``, ``shapley``, ``alone`` and ``left_out``, in nats per token with 95 %
        intervals over sentences; ``tokens``: target tokens.

    Raises
    ------
    InputError
        What :func:`prompt_parts` refuses.
    """
    features, parts = [encode(tokenizer, example) for example in examples], []
    for feature, example, source in zip(features, examples, sources, strict=True):
        prompt = prompt_parts(tokenizer, example.prompt, source)
        parts.append(prompt + [2] * (len(feature["input_ids"]) - len(prompt)))
    order = [frozenset(chosen) for size in range(4) for chosen in itertools.combinations(range(3), size)]
    sums = []
    with wearing(model, token_ids, rows, output=output), inference(model):
        for place, subset in enumerate(order, 1):
            on = [[part in subset for part in sentence] for sentence in parts]
            sums.append(_switched_nll(model, features, on, pad_id(tokenizer), batch_size))
            if progress:
                progress(place, len(order))
    tokens = [sum(label >= 0 for label in feature["labels"]) for feature in features]
    table = list(zip(*sums, tokens, strict=True))
    column = {subset: place for place, subset in enumerate(order)}

    def interval(value: Callable[[Any], float]) -> dict[str, float]:
        found = bootstrap_interval(table, lambda s: value(s) / s[-1], n_bootstrap=n_bootstrap, seed=seed)
        return found.to_dict()

    def adds(sums: Any, part: int, to: frozenset[int]) -> float:
        return float(sums[column[to]] - sums[column[to | {part}]])

    def share(sums: Any, part: int) -> float:
        return sum(adds(sums, part, to) / (3 * math.comb(2, len(to))) for to in order if part not in to)

    none, everything = order[0], order[-1]
    result: dict[str, Any] = {
        "tokens": sum(tokens),
        "gain": interval(lambda s: float(s[column[none]] - s[column[everything]])),
    }
    for part, name in enumerate(PARTS):
        result[name] = {
            "shapley": interval(lambda s, part=part: share(s, part)),  # type: ignore[misc]
            "alone": interval(lambda s, part=part: adds(s, part, none)),  # type: ignore[misc]
            "left_out": interval(lambda s, part=part: adds(s, part, everything - {part})),  # type: ignore[misc]
        }
    return result


def template_tokens(tokenizer: Any, prompts: Sequence[str], sources: Sequence[str]) -> set[int]:
    """Token ids that the template itself puts into prompts: those at instruction positions of any of them."""
    found: set[int] = set()
    for prompt, source in zip(prompts, sources, strict=True):
        parts = prompt_parts(tokenizer, prompt, source)
        found |= {i for i, part in zip(encode_prompt(tokenizer, prompt), parts, strict=True) if part == 0}
    return found


def prompt_parts(tokenizer: Any, prompt: str, source: str) -> list[int]:
    """For every token of a prompt, 0 if it belongs to the instruction and 1 if it covers a character of the source.

    The source is looked for from the end: that is where templates put it, and the instruction may hold the same word.

    Raises
    ------
    InputError : a tokenizer that does not tell offsets, a prompt without the source.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("the effect of positions needs a fast tokenizer, which tells the offsets of its tokens")
    start = prompt.rfind(source)
    if start < 0:
        raise InputError(f"the prompt {prompt!r} does not hold its source {source!r}")
    end = start + len(source)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [int(first < end and last > start and first < last) for first, last in offsets]


@contextlib.contextmanager
def switched(model: Any, on: torch.Tensor) -> Iterator[None]:
    """Inside the block the model's attached rows act only where ``on``, bool [B, T], is True."""
    embedding = get_rows(model)
    sets = embedding.row_sets

    def choose(module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # The same module without its rows: scales and the like apply to both alike.
        in_use, sets.active = sets.active, None
        try:
            original = type(module).forward(module, *arguments)
        finally:
            sets.active = in_use
        return torch.where(on.to(output.device)[..., None], output, original)

    hook = embedding.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def _switched_nll(
    model: Any, features: Sequence[dict[str, list[int]]], on: Sequence[Sequence[bool]], padding: int, size: int
) -> list[float]:
    """NLL in nats of every sentence, with the rows switched on at some positions."""
    result: list[float] = []
    for start in range(0, len(features), size):
        batch = collate(features[start : start + size], padding)
        mask = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        for row, flags in enumerate(on[start : start + size]):
            mask[row, : len(flags)] = torch.tensor(flags)
        with switched(model, mask):
            logits, targets = supervised_logits(model, {k: v.to(device_of(model)) for k, v in batch.items()})
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double().cpu()
        lengths = (batch["labels"][:, 1:] >= 0).sum(dim=1).tolist()
        result += [float(part.sum()) for part in losses.split(lengths)]
    return result
