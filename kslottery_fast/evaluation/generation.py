"""Greedy continuation of many prompts: sorted, padded on the left; ended rows leave their batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.errors import InputError

from .encoding import check_fits, encode_prompt, eos_id, pad, pad_id

SHRINK = 0.75
"""Finished rows leave once this share or less of a batch runs; more often would copy the cache too much."""


@dataclass(frozen=True)
class GeneratedText:
    """One continuation.

    ``text`` has the prompt and all special tokens removed. ``ended`` tells whether the model itself stopped,
    i.e. whether an end-of-text token is among the generated tokens. ``tokens`` counts the generated tokens,
    that end included.
    """

    text: str
    ended: bool
    tokens: int


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[GeneratedText]:
    """The greedy continuation of every prompt, in the order of the prompts.

    Each token is the most probable one, whatever sampling or penalties the model's generation config names:
    the same call gives the same text. Batches are made of prompts of similar length. How prompts share a
    batch changes only the rounding of matrix products; a text depends on it where two tokens are as good as
    tied.

    Parameters
    ----------
    model : a decoder-only transformers model of any floating dtype, on any device; left in the modes it came
        in.
    tokenizer : its tokenizer; not changed (in particular not its padding side).
    prompts : texts, none empty.
    max_new_tokens, batch_size : at least 1.
    progress : called with (finished prompts, prompts).

    Returns
    -------
    list of GeneratedText. A text ends at ``tokenizer.eos_token_id`` or at any end token of the model's
    generation
        config, or after ``max_new_tokens``.

    Raises
    ------
    InputError : no prompts, sizes below 1, prompts or models that
        :func:`~kslottery_fast.evaluation.encoding.encode_prompt` and
        :func:`~kslottery_fast.evaluation.encoding.check_fits` refuse, a model without a key/value cache.
    """
    if not prompts:
        raise InputError("prompts is empty; give at least one")
    check_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_fits(model, ids, max_new_tokens)
    ends = end_ids(model, tokenizer)
    results: list[GeneratedText | None] = [None] * len(prompts)
    done = 0
    with inference(model), _contiguous_head_input(model):
        for batch in length_batches([len(row) for row in ids], batch_size):
            tokens = _greedy(model, [ids[i] for i in batch], ends, pad_id(tokenizer), max_new_tokens)
            for i, row in zip(batch, tokens, strict=True):
                ended = row[-1] in ends
                text = tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)
                results[i] = GeneratedText(text, ended, len(row))
            done += len(batch)
            if progress:
                progress(done, len(prompts))
    return [result for result in results if result is not None]


def end_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """Token ids that end a text: the tokenizer's end of text and those of the model's generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = [] if configured is None else configured
    return {eos_id(tokenizer), *(configured if isinstance(configured, (list, tuple)) else [configured])}


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: what does not fit into memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in.

    Not torch.inference_mode: a buffer that a model renews in there (a rotary table, say) could not be trained
    with later.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _contiguous_head_input(model: Any) -> Iterator[None]:
    """The output head sees contiguous hidden states.

    The last position of a prompt is a strided slice, [B, 1, d]. With a frozen head torch makes a batch of B
    products of that and copies the [V, d] weight B times for it: 1.8 GB for 32 prompts of SmolLM2-135M in bfloat16.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _module, arguments: (arguments[0].contiguous(), *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()


def device_of(model: nn.Module) -> torch.device:
    """The device of the inputs: that of the first parameter."""
    return next(model.parameters()).device


def check_positive(**sizes: int) -> None:
    """Refuse sizes that are not integers of at least 1, by name."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} is a {type(size).__name__}; expected an int")
        if size < 1:
            raise InputError(f"{name} is {size}; expected at least 1")


def _greedy(model: Any, prompts: list[list[int]], ends: set[int], padding: int, max_new_tokens: int) -> list[list[int]]:
    """Generated token ids of one batch, row by row, each up to its end token included."""
    device = device_of(model)
    tokens = pad(prompts, padding, left=True).to(device)
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    # A PEFT wrapper hands every keyword on to the model inside, whose signature is the one to ask.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(inner.forward).parameters
    if "past_key_values" not in accepted:
        raise InputError(f"{type(inner).__name__} takes no key/value cache; generation needs one")
    generated: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # rows[b]: which prompt row b of the running batch belongs to
    cache = None
    for step in range(max_new_tokens):
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        inputs |= {"past_key_values": cache, "use_cache": True}
        if "position_ids" in accepted:
            # Left padding moves a prompt to the right; its first token is at position 0 all the same.
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = 1
        output = model(**inputs)
        cache = output.past_key_values
        chosen = output.logits[:, -1].argmax(-1)
        running = []
        for b, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if not (generated[row] and generated[row][-1] in ends):
                generated[row].append(token)
                if token not in ends:
                    running.append(b)
        if not running or step + 1 == max_new_tokens:
            break
        if len(running) <= SHRINK * len(rows):
            keep = torch.tensor(running, device=chosen.device)
            cache.reorder_cache(keep)
            chosen, mask = chosen[keep], mask[keep]
            rows = [rows[b] for b in running]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return generated
