"""Greedy continuation of many prompts: sorted by length and padded on the left; ended rows leave their batch."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_integer, check_model, check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .checks import check_list, check_progress
from .encoding import check_fits, encode_prompt, eos_id, pad, pad_id

SHRINK = 0.75
"""Ended rows leave once this share of a batch or less still runs. More often would copy the cache too much."""

CACHE_NAMES = ("cache", "past_key_values")
"""What models call the keys and values of earlier tokens: transformers 5.24 has renamed them from the second name."""


@dataclass(frozen=True)
class GeneratedText:
    """One continuation of a prompt.

    Attributes
    ----------
    text : str
        The continuation, without the prompt and without special tokens.
    ended : bool
        Whether the model itself stopped, that is, whether an end-of-text token is among the generated tokens.
    tokens : int
        The number of generated tokens, the end-of-text token included.
    """

    text: str
    ended: bool
    tokens: int


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[GeneratedText]:
    """Return the greedy continuation of every prompt, in the order of the prompts.

    Each token is the most probable one. Sampling and penalties in the model's generation config play no part, so the
    same call gives the same text. Batches are made of prompts of similar length. How prompts share a batch changes only
    the rounding of matrix products. A text depends on that only where two tokens are all but equally probable.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder-only transformers model of any floating dtype, on any device, also offloaded by accelerate. Its
        modules return to the modes that they came in.
    tokenizer : transformers tokenizer
        The model's own. It is not changed; in particular, its padding side is not.
    prompts : sequence of str
        Texts, which must not be empty.
    max_new_tokens, batch_size : int
        At least 1.
    progress : callable, optional
        Called with (finished prompts, prompts).

    Returns
    -------
    list of GeneratedText
        A text ends at ``tokenizer.eos_token_id``, at an end token of the model's generation config, or after
        ``max_new_tokens``.

    Raises
    ------
    InputError
        There are no prompts, a size is below 1, the model has no key/value cache, or
        :func:`~kslottery_fast.evaluation.encoding.encode_prompt` or
        :func:`~kslottery_fast.evaluation.encoding.check_fits` refuses a prompt.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> generate(model, tokenizer, ["ab", "x"], max_new_tokens=3)
    [GeneratedText(text='cde', ended=False, tokens=3), GeneratedText(text='yz', ended=True, tokens=3)]
    """
    check_model(model)
    check_tokenizer(tokenizer)
    texts = check_list(prompts, str, "prompts")
    check_integer(max_new_tokens, "max_new_tokens", 1)
    check_integer(batch_size, "batch_size", 1)
    check_progress(progress)
    ids = [encode_prompt(tokenizer, text) for text in texts]
    check_fits(model, ids, max_new_tokens)
    ends = end_ids(model, tokenizer)
    results: list[GeneratedText | None] = [None] * len(ids)
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
                progress(done, len(ids))
    return [result for result in results if result is not None]


def end_ids(model: nn.Module, tokenizer: Tokenizer) -> set[int]:
    """Return the token ids that end a text: the tokenizer's end of text and those of the model's generation config.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> end_ids(*alphabet_model())
    {27}
    """
    check_model(model)
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = [] if configured is None else configured
    return {eos_id(tokenizer), *(configured if isinstance(configured, (list, tuple)) else [configured])}


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, the longest first: what does not fit into memory fails at once.

    Examples
    --------
    >>> list(length_batches([3, 9, 1], 2))
    [[1, 0], [2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode without gradients. Afterwards every module is in the mode it was in.

    This is not torch.inference_mode: a buffer that a model renews inside that mode, such as a rotary table, could not
    be used in training later.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 2).train()
    >>> with inference(model):
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in check_model(model).modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _contiguous_head_input(model: Any) -> Iterator[None]:
    """Make the hidden states that the output head reads contiguous.

    The last position of a prompt is a strided slice, [B, 1, d]. With a frozen head, torch computes B products from it
    and copies the [V, d] weight B times: 1.8 GB for 32 prompts of SmolLM2-135M in bfloat16.
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
    """Return the device on which a model expects its inputs.

    This is the device of the first parameter. If accelerate has offloaded that parameter, it is the device to which
    accelerate's hook moves it for the forward pass.

    Raises
    ------
    InputError
        The model has no parameters, or its first parameter has no values and no hook that brings them.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> device_of(torch.nn.Linear(2, 2))
    device(type='cpu')
    >>> device_of(torch.nn.Linear(2, 2, device="meta"))
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: the parameter weight of the model has no values (it is on the meta device):
    load them, e.g. with from_pretrained
    """
    name, parameter = next(check_model(model).named_parameters(), ("", None))
    if parameter is None:
        raise InputError(f"the model, {type(model).__name__}, has no parameters: load it with its weights")
    if not parameter.is_meta:
        return parameter.device
    # The hook belongs to the module of the parameter or, where accelerate moves whole blocks, to one around it.
    path = name.split(".")[:-1]
    for depth in range(len(path), -1, -1):
        hook: Any = getattr(model.get_submodule(".".join(path[:depth])), "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "offload", False) and each.execution_device is not None:
                return torch.device(each.execution_device)
    raise InputError(
        f"the parameter {name} of the model has no values (it is on the meta device): load them, e.g. with "
        "from_pretrained"
    )


def cache_keyword(model: Any) -> str | None:
    """Return the name under which the forward of a model takes the keys and values of earlier tokens, or None.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> cache_keyword(alphabet_model()[0]) in CACHE_NAMES
    True
    >>> cache_keyword(torch.nn.Linear(2, 2))
    """
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in accepted), None)


def cache_of(output: Any) -> Any:
    """Return the keys and values in the output of a model, or None if it has none."""
    found = (getattr(output, name, None) for name in CACHE_NAMES)
    return next((cache for cache in found if cache is not None), None)


def _greedy(model: Any, prompts: list[list[int]], ends: set[int], padding: int, max_new_tokens: int) -> list[list[int]]:
    """Return the generated token ids of one batch, row by row, each with its end token."""
    device = device_of(model)
    tokens = pad(prompts, padding, left=True).to(device)
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    # A PEFT wrapper passes every keyword on to the model inside. So ask that model for its signature.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(inner.forward).parameters
    keyword = cache_keyword(inner)
    if keyword is None:
        raise InputError(f"{type(inner).__name__} takes no key/value cache: generation needs one")
    generated: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # rows[b]: which prompt row b of the running batch belongs to
    cache = None
    for step in range(max_new_tokens):
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        inputs |= {keyword: cache, "use_cache": True}
        if "position_ids" in accepted:
            # Left padding moves a prompt to the right. Its first token is still at position 0.
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = 1
        output = model(**inputs)
        cache = cache_of(output)
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
