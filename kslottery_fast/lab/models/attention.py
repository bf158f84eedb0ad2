"""The attention that takes gradients fastest."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def quick_attention(model: Any) -> Iterator[None]:
    """Take gradients of a bfloat16 model on a CPU with transformers' own attention in place of torch's fused one.

    In bfloat16 the backward pass of the fused attention is so slow that a step takes 0.7 of the time without it. In
    float32 the fused attention is faster (docs/performance.md). The model may be inside an adapter.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    parameter = next(model.parameters())
    slow = parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16 and attention == "sdpa"
    if not slow:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
