"""What single tickets do, and through which positions rows act."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import collate, encode, encode_prompt
from kslottery_fast.evaluation.evaluate import TargetNll
from kslottery_fast.evaluation.generation import device_of, inference
from kslottery_fast.evaluation.intervals import bootstrap_interval
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.rows.attach import get_rows
from kslottery_fast.rows.overlay import RowEmbedding

from .console import ProgressCallback
from .scoring import nll_record, validation_nll
from .trained import TrainedRows
from .workshop import Workshop

PARTS = ("instruction", "source", "history")
"""The positions of a text: the words of the template, the source sentence in it, the target read so far."""


def template_tokens(shop: Workshop) -> set[int]:
    """Token ids that the template itself puts into prompts: those at instruction positions of any validation prompt."""
    found: set[int] = set()
    for example, source in zip(shop.examples("validation"), shop.corpus.validation, strict=True):
        ids = encode_prompt(shop.loaded.tokenizer, example.prompt)
        parts = prompt_parts(shop.loaded.tokenizer, example.prompt, source.source)
        found |= {token for token, part in zip(ids, parts, strict=True) if part == 0}
    return found


def prompt_parts(tokenizer: Any, prompt: str, source: str) -> list[int]:
    """For every token of a prompt, 0 if it belongs to the instruction and 1 if it covers a character of the source.

    The source is looked for from the end: that is where templates put it, and the instruction may hold the same word.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("the effect of positions needs a fast tokenizer, which tells the offsets of its tokens")
    start = prompt.rfind(source)
    if start < 0:
        raise InputError(f"the prompt {prompt!r} does not hold its source {source!r}")
    end = start + len(source)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [int(first < end and last > start and first < last) for first, last in offsets]


def ticket_effects(
    shop: Workshop, tuned: TrainedRows, tickets: Sequence[int], shown: int, progress: ProgressCallback
) -> dict[str, Any]:
    """The effect of each of the first ``shown`` tickets on validation NLL: transferred alone, and left out of all.

    ``tuned`` are the rows after Embed Tuning, which are copied; ``tickets`` all ids, the first of the largest D.

    Returns
    -------
    dict : ``nothing`` and ``all`` (NLL of no and of all tickets transferred), and ``tickets``: for each the differences
        ``alone`` (NLL without minus NLL with it alone) and ``left_out`` (NLL of all but it minus NLL of all), in nats
        per token with paired 95 % intervals over sentences. Positive: the ticket helps.
    """
    settings = shop.settings
    total, done = 2 * min(shown, len(tickets)) + 2, itertools.count(1)

    def measure(ids: Sequence[int]) -> TargetNll:
        rows = tuned.only(torch.tensor(sorted(ids))) if ids else None
        with shop.wearing(rows) as model:
            result = validation_nll(shop, model)
        progress(next(done), total)
        return result

    def gain(worse: TargetNll, better: TargetNll) -> dict[str, float]:
        table = list(zip(worse.sentence_nll, better.sentence_nll, worse.sentence_tokens, strict=True))
        options = {"n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
        return bootstrap_interval(table, lambda s: (s[0] - s[1]) / s[2], **options).to_dict()

    nothing, everything = measure([]), measure(tickets)
    effects = [
        {
            "token_id": ticket,
            "alone": gain(nothing, measure([ticket])),
            "left_out": gain(measure([other for other in tickets if other != ticket]), everything),
        }
        for ticket in tickets[:shown]
    ]
    return {"nothing": nll_record(nothing), "all": nll_record(everything), "tickets": effects}


def position_effects(shop: Workshop, rows: TrainedRows, progress: ProgressCallback) -> dict[str, Any]:
    """Which share of the gain in validation NLL comes through the instruction, the source and the target history.

    The rows are switched on at some of the three kinds of positions and off at the others, in all 8 ways. The share of
    a kind is its Shapley value, the mean over the 6 orders of switching them on of what it adds: shares add up to the
    whole gain.

    Returns
    -------
    dict : ``gain`` and, for each of ``PARTS``, ``shapley``, ``alone`` and ``left_out``, in nats per token with 95 %
        intervals over sentences; ``tokens``: target tokens.
    """
    settings, tokenizer = shop.settings, shop.loaded.tokenizer
    pairs, examples = shop.corpus.validation, shop.examples("validation")
    features, parts = [], []
    for pair, example in zip(pairs, examples, strict=True):
        feature = encode(tokenizer, example)
        prompt = prompt_parts(tokenizer, example.prompt, pair.source)
        features.append(feature)
        parts.append(prompt + [2] * (len(feature["input_ids"]) - len(prompt)))
    subsets = [set(chosen) for size in range(4) for chosen in itertools.combinations(range(3), size)]
    sums: dict[frozenset[int], list[float]] = {}
    with shop.wearing(rows) as model, inference(model):
        for place, subset in enumerate(subsets, 1):
            on = [[part in subset for part in sentence] for sentence in parts]
            sums[frozenset(subset)] = _switched_nll(model, features, on, shop.pad_token_id, settings.eval_batch_size)
            progress(place, len(subsets))
    tokens = [sum(label >= 0 for label in feature["labels"]) for feature in features]
    order = [frozenset(subset) for subset in subsets]
    table = [[*(sums[subset][i] for subset in order), tokens[i]] for i in range(len(features))]
    column = {subset: place for place, subset in enumerate(order)}

    def interval(value: Callable[[Any], float]) -> dict[str, float]:
        found = bootstrap_interval(
            table, lambda s: value(s) / s[-1], n_bootstrap=settings.n_bootstrap, seed=settings.seed
        )
        return found.to_dict()

    def adds(sums: Any, part: int, to: frozenset[int]) -> float:
        return float(sums[column[to]] - sums[column[to | {part}]])

    none, everything = frozenset[int](), frozenset({0, 1, 2})
    result: dict[str, Any] = {
        "tokens": sum(tokens),
        "gain": interval(lambda s: float(s[column[none]] - s[column[everything]])),
    }
    for part, name in enumerate(PARTS):
        others = [frozenset(o) for size in range(3) for o in itertools.combinations({0, 1, 2} - {part}, size)]
        result[name] = {
            "shapley": interval(
                lambda s, part=part, others=others: sum(  # type: ignore[misc]
                    adds(s, part, other) / (3 * math.comb(2, len(other))) for other in others
                )
            ),
            "alone": interval(lambda s, part=part: adds(s, part, none)),  # type: ignore[misc]
            "left_out": interval(lambda s, part=part: adds(s, part, everything - {part})),  # type: ignore[misc]
        }
    return result


@contextlib.contextmanager
def switched(model: Any, on: torch.Tensor) -> Iterator[None]:
    """Inside the block the model's attached rows act only where ``on``, bool [B, T], is True."""
    embedding = get_rows(model)
    assert isinstance(embedding, RowEmbedding), "rows are attached"
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
