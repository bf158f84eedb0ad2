"""LoRA and Prefix Tuning through PEFT, at a given number of trained parameters."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.generation import device_of, inference


class AdapterKind:
    """One kind of adapter: how to make it within a budget, keep it and load it."""

    default_rate: float

    def attached(
        self, model: Any, budget: int, prompt: Sequence[int]
    ) -> AbstractContextManager[tuple[nn.Module, dict[str, Any]]]:
        """A new adapter on ``model``, trainable, and its plan as JSON takes it; taken off after the block.

        ``budget``: how many numbers it may train, about. ``prompt``: token ids of a prompt of the task, which an
        adapter may start from. What is random is drawn from torch's global generator.
        """
        raise NotImplementedError

    def loaded(self, model: Any, folder: Path) -> AbstractContextManager[nn.Module]:
        """The saved adapter on ``model``; taken off after the block."""
        raise NotImplementedError

    def save(self, adapter: Any, folder: Path) -> None:
        """Write the adapter as PEFT does; no look at the Hugging Face hub."""
        adapter.save_pretrained(folder, save_embedding_layers=False)


class Lora(AdapterKind):
    """LoRA on the projections that PEFT takes by default, of all layers or, on a small budget, the upper ones."""

    default_rate = 1e-3

    @contextlib.contextmanager
    def attached(self, model: Any, budget: int, prompt: Sequence[int]) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        peft = _peft()
        plan = plan_lora(model, budget)
        # Scale 2, the usual choice, whatever the rank.
        config = peft.LoraConfig(
            r=plan["rank"],
            lora_alpha=2 * plan["rank"],
            target_modules=plan["modules"],
            layers_to_transform=plan["layers"],
            task_type="CAUSAL_LM",
        )
        with _quiet():
            adapter = peft.get_peft_model(model, config)
        try:
            yield adapter, plan
        finally:
            adapter.unload()

    @contextlib.contextmanager
    def loaded(self, model: Any, folder: Path) -> Iterator[nn.Module]:
        with _quiet():
            adapter = _peft().PeftModel.from_pretrained(model, folder)
        try:
            yield adapter
        finally:
            adapter.unload()


def plan_lora(model: Any, budget: int) -> dict[str, Any]:
    """Rank, modules and layers of a LoRA adapter with about ``budget`` parameters: ``rank``, ``modules``, ``layers``.

    On all layers the rank is what comes nearest. Below rank 1 on all layers: rank 1 on the upper layers, as many as
    come nearest, at least one.

    Raises
    ------
    InputError : PEFT knows no default projections for the architecture.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    kind = getattr(model.config, "model_type", None)
    if kind not in DEFAULTS:
        raise InputError(f"PEFT has no default LoRA modules for model type {kind!r}; leave the arm lora out")
    targets = list(DEFAULTS[kind])
    cost: dict[int, int] = defaultdict(int)
    for name, module in model.named_modules():
        layer = re.search(r"\.(\d+)\.", name)
        if layer and name.rsplit(".", 1)[-1] in targets:
            cost[int(layer[1])] += sum(module.weight.shape)  # parameters of rank 1: in + out
    layers, total = sorted(cost), sum(cost.values())
    if budget >= total:
        return {"rank": round(budget / total), "modules": targets, "layers": layers}
    upper = layers[::-1]
    counts = [abs(sum(cost[layer] for layer in upper[:n]) - budget) for n in range(1, len(upper) + 1)]
    return {"rank": 1, "modules": targets, "layers": sorted(upper[: counts.index(min(counts)) + 1])}


class Prefix(AdapterKind):
    """Prefix Tuning: keys and values of virtual tokens in front of the text, in every layer.

    They start as those that the model itself computes for the first tokens of the prompt, repeated where the prefix is
    longer. Li and Liang (2021, arXiv 2101.00190, section 7.4) found that activations of real words are what a prefix
    has to start from where data are few; PEFT draws keys and values from N(0, 1), which spoils every prediction. Noise
    of a tenth of their size lets training seeds start from different places. No reparametrization by an MLP.
    """

    default_rate = 1e-2
    noise = 0.1

    @contextlib.contextmanager
    def attached(self, model: Any, budget: int, prompt: Sequence[int]) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        peft = _peft()
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        tokens = max(1, round(budget / (2 * config.num_hidden_layers * heads * width)))
        start = keys_and_values(model, [prompt[i % len(prompt)] for i in range(tokens)])
        plan = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, inference_mode=False)
        with _quiet():
            adapter = peft.get_peft_model(model, plan)
        with torch.no_grad():
            # PEFT's own draw is the noise, each key and value in proportion to its size.
            drawn = adapter.prompt_encoder[adapter.active_adapter].embedding.weight.view_as(start)
            drawn.mul_(self.noise * start.square().mean(-1, keepdim=True).sqrt()).add_(start)
        yield PrefixedModel(adapter), {"virtual_tokens": tokens, "starts_from": "prompt"}

    @contextlib.contextmanager
    def loaded(self, model: Any, folder: Path) -> Iterator[nn.Module]:
        with _quiet():
            adapter = _peft().PeftModel.from_pretrained(model, folder)
        yield PrefixedModel(adapter)

    def save(self, adapter: Any, folder: Path) -> None:
        super().save(adapter.adapter, folder)


def keys_and_values(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """What a causal model keeps in its cache for n tokens, in the order in which PEFT lays out a prefix.

    Returns
    -------
    Tensor : float32 [n, 2 L, heads, width]; places 2 l and 2 l + 1 hold keys and values of layer l.

    Raises
    ------
    InputError : a model that does not keep keys and values of all n tokens, of one shape in all layers.
    """
    with inference(model):
        cache = model(torch.tensor([list(token_ids)], device=device_of(model)), use_cache=True).past_key_values
    parts = [part for layer in getattr(cache, "layers", ()) for part in (layer.keys, layer.values)]
    if not parts or any(part.shape != parts[0].shape or part.shape[2] != len(token_ids) for part in parts):
        raise InputError(
            f"{type(model).__name__} does not keep keys and values of {len(token_ids)} tokens alike in all layers, "
            "which Prefix Tuning starts from; leave the arm prefix out or give it fewer numbers to train"
        )
    return torch.cat(parts).permute(2, 0, 1, 3).float()


class PrefixedModel(nn.Module):
    """A causal model that sees a trained prefix, with and without a cache, whichever side batches are padded on.

    PEFT's own forward puts the prefix in front at every call and drops position ids, so with left padding and a cache
    (generation) it would not be the model that was trained.
    """

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = adapter.get_base_model().config
        self.generation_config = adapter.get_base_model().generation_config

    def get_base_model(self) -> Any:
        """The model inside, whose signature counts."""
        return self.adapter.get_base_model()

    def get_input_embeddings(self) -> Any:
        return self.get_base_model().get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.get_base_model().get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        """As the model inside; the mask and positions given are those of the text alone."""
        length = self.adapter.active_peft_config.num_virtual_tokens
        if past_key_values is None:
            past_key_values = self.adapter.get_prompt(len(input_ids))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return self.get_base_model()(
            input_ids=input_ids,
            attention_mask=torch.cat([attention_mask.new_ones(len(input_ids), length), attention_mask], dim=1),
            past_key_values=past_key_values,
            position_ids=position_ids + length,
            **others,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal that PEFT still asks transformers for a name that will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def check_peft() -> None:
    """Raise InputError where PEFT is not installed."""
    _peft()


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise InputError("the arms lora and prefix need the package peft: pip install 'kslottery-fast[peft]'") from None
    return peft


LORA, PREFIX = Lora(), Prefix()
