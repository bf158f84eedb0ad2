"""The positions of a text through which rows act: the instruction, the source, or the target read so far."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import SharedRole
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.rows.token_ids import TokenIds

from .checks import check_instance, check_list, check_same_length
from .encoding import Example, check_fits, collate, encode, encode_prompt, pad_id
from .generation import device_of, inference
from .intervals import bootstrap_interval
from .logits import supervised_logits
from .worn_rows import check_measuring, check_rows, switched, wearing

PARTS = ("instruction", "source", "history")
"""The kinds of positions of a text: words of the template, the source sentence in it, and the target read so far."""


def position_effects(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    sources: Sequence[str],
    token_ids: TokenIds,
    rows: torch.Tensor,
    *,
    output: SharedRole = "auto",
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure how much of the gain in NLL comes through the instruction, the source and the target history.

    The rows are switched on at some of these three kinds of positions and off at the others, in all 8 combinations. The
    share of a kind is its Shapley value: what switching it on adds, averaged over the 6 orders. The three shares add up
    to the whole gain.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder-only transformers model without attached rows, also offloaded by accelerate.
    tokenizer : transformers tokenizer
        The model's own, a fast one.
    examples : sequence of Example
        Held-out prompts and targets, at least one.
    sources : sequence of str
        The source sentence in the prompt of each example.
    token_ids : TokenIds
        k token ids, Tickets, the path of a ticket file, or token strings; at least one.
    rows : tensor [k, d]
        Rows that are copied into the model. Nothing trains.
    output : {"auto", "frozen", "tied"}
        Role of a tied table, see :func:`kslottery_fast.attach_rows`.
    batch_size : int
        Sentences in a batch.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.
    progress : callable, optional
        Called with (combinations done, 8).

    Returns
    -------
    dict
        ``gain`` and, for each of ``PARTS``, ``shapley``, ``alone`` and ``left_out``, in nats per token with 95%
        intervals over sentences. ``tokens`` is the number of target tokens.

    Raises
    ------
    InputError
        There are no rows, the rows do not fit the token ids and the model, the lists differ in length, or
        :func:`prompt_parts` or :func:`~kslottery_fast.evaluation.encoding.check_fits` refuses an example.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> row_of_a = model.get_input_embeddings().weight[[1]]
    >>> found = position_effects(model, tokenizer, [Example("to x", "bc")], ["x"], [24], row_of_a)
    >>> [round(found[part]["shapley"]["value"], 2) for part in PARTS]  # "x" occurs in the source alone
    [0.0, 1.76, 0.0]
    """
    check_model(model)
    check_tokenizer(tokenizer)
    examples = check_list(examples, Example, "examples", ", e.g. Example('Spanish:', ' casa')")
    sources = check_list(sources, str, "sources")
    check_same_length(sources, examples, ("sources", "examples"))
    ids, values = check_rows(model, token_ids, rows, tokenizer)
    if len(ids) == 0:
        raise InputError("token_ids is empty: give at least one token id")
    check_measuring(output, batch_size, n_bootstrap, seed, progress)
    features, parts = [encode(tokenizer, example) for example in examples], []
    for feature, example, source in zip(features, examples, sources, strict=True):
        prompt = prompt_parts(tokenizer, example.prompt, source)
        parts.append(prompt + [2] * (len(feature["input_ids"]) - len(prompt)))
    check_fits(model, [feature["input_ids"] for feature in features])
    order = [frozenset(chosen) for size in range(4) for chosen in itertools.combinations(range(3), size)]
    sums = []
    with wearing(model, ids, values, output=output), inference(model):
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


def template_tokens(tokenizer: Tokenizer, prompts: Sequence[str], sources: Sequence[str]) -> set[int]:
    """Return the token ids that the template itself puts into prompts.

    These are the ids at instruction positions of any prompt.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        A fast one.
    prompts, sources : sequence of str
        Prompts, and the source sentence in each of them.

    Raises
    ------
    InputError
        The lists are empty or differ in length, or :func:`prompt_parts` refuses a prompt.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> _, tokenizer = alphabet_model()
    >>> template_tokens(tokenizer, ["a bc", "a d"], ["bc", "d"])  # "a" and the space
    {0, 1}
    """
    check_tokenizer(tokenizer)
    prompts, sources = check_list(prompts, str, "prompts"), check_list(sources, str, "sources")
    check_same_length(sources, prompts, ("sources", "prompts"))
    found: set[int] = set()
    for prompt, source in zip(prompts, sources, strict=True):
        parts = prompt_parts(tokenizer, prompt, source)
        found |= {i for i, part in zip(encode_prompt(tokenizer, prompt), parts, strict=True) if part == 0}
    return found


def prompt_parts(tokenizer: Tokenizer, prompt: str, source: str) -> list[int]:
    """Tell for every token of a prompt whether it belongs to the source (1) or to the instruction (0).

    A token belongs to the source if it covers a character of it. The source is searched for from the end. That is where
    templates put it, and the instruction may hold the same word.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        A fast one, since only these report the offsets of their tokens.
    prompt, source : str
        A prompt, and the source sentence in it.

    Raises
    ------
    InputError
        The tokenizer is not a fast one, or the prompt does not hold its source.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> _, tokenizer = alphabet_model()
    >>> prompt_parts(tokenizer, "b is bc", "bc")
    [0, 0, 0, 0, 0, 1, 1]
    """
    check_tokenizer(tokenizer)
    check_instance(prompt, str, "prompt")
    check_instance(source, str, "source")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("tokenizer is not a fast one: the effect of positions needs the offsets of its tokens")
    start = prompt.rfind(source)
    if start < 0:
        raise InputError(f"source {source!r} is not in its prompt {prompt!r}")
    end = start + len(source)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [int(first < end and last > start and first < last) for first, last in offsets]


def _switched_nll(
    model: nn.Module, features: Sequence[dict[str, list[int]]], on: Sequence[Sequence[bool]], padding: int, size: int
) -> list[float]:
    """Return the NLL in nats of every sentence, with the rows switched on at some positions."""
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
