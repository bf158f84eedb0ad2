"""Prefix Tuning through PEFT, at a given number of trained parameters, started from a prompt."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_integer, check_path, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.generation import CACHE_NAMES, cache_keyword, cache_of, device_of, inference

from .adapter_kind import AdapterKind, check_pretrained, installed_peft, original_again, quietly


class Prefix(AdapterKind):
    """Prefix Tuning: trained keys and values of virtual tokens in front of the text, in every layer.

    The prefix starts from the keys and values that the model computes for the first tokens of the prompt. A longer
    prefix repeats the prompt. Li and Liang (2021, arXiv 2101.00190, section 7.4) found that with few data a prefix has
    to start from the activations of real words. PEFT draws keys and values from N(0, 1), which spoils every prediction.
    Noise of a tenth of their size lets training seeds start from different places. There is no reparametrization by an
    MLP.
    """

    default_rate = 3e-2  # chosen as for LoRA (docs/experiments.md)
    noise = 0.1

    @contextlib.contextmanager
    def attached(
        self, model: nn.Module, budget: int, prompt: Sequence[int]
    ) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        """See :meth:`AdapterKind.attached`."""
        peft = installed_peft()
        config = check_pretrained(model)
        check_integer(budget, "budget", 1)
        prompt = _checked_ids(prompt, "prompt")
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        tokens = max(1, round(budget / (2 * config.num_hidden_layers * heads * width)))
        start = keys_and_values(model, [prompt[i % len(prompt)] for i in range(tokens)])
        plan = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, inference_mode=False)
        with original_again(model, copy=False):
            adapter = quietly(peft.get_peft_model, model, plan)
            with torch.no_grad():
                # The random numbers that PEFT drew are the noise, scaled to the size of each key and value.
                drawn = adapter.prompt_encoder[adapter.active_adapter].embedding.weight.view_as(start)
                drawn.mul_(self.noise * start.square().mean(-1, keepdim=True).sqrt()).add_(start)
            yield PrefixedModel(adapter), {"virtual_tokens": tokens, "starts_from": "prompt"}

    @contextlib.contextmanager
    def loaded(self, model: nn.Module, folder: str | os.PathLike[str]) -> Iterator[nn.Module]:
        """See :meth:`AdapterKind.loaded`."""
        check_path(folder, "folder")
        with original_again(model, copy=False):
            yield PrefixedModel(quietly(installed_peft().PeftModel.from_pretrained, model, folder))

    def save(self, adapter: nn.Module, folder: str | os.PathLike[str]) -> None:
        """See :meth:`AdapterKind.save`."""
        super().save(getattr(adapter, "adapter", adapter), folder)


def keys_and_values(model: nn.Module, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the keys and values that a causal model caches for n tokens, in the layout of a PEFT prefix.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal model.
    token_ids : sequence of int
        The n tokens.

    Returns
    -------
    torch.Tensor
        float32 [n, 2 L, heads, width]. Places 2 l and 2 l + 1 hold the keys and values of layer l.

    Raises
    ------
    InputError
        The model does not cache keys and values of all n tokens, of one shape in all layers.
    TypeError
        ``model`` is not a model.
    """
    check_pretrained(model)
    token_ids = _checked_ids(token_ids, "token_ids")
    with inference(model):
        cache = cache_of(model(torch.tensor([token_ids], device=device_of(model)), use_cache=True))
    parts = [part for layer in getattr(cache, "layers", ()) for part in (layer.keys, layer.values)]
    if not parts or any(part.shape != parts[0].shape or part.shape[2] != len(token_ids) for part in parts):
        raise InputError(
            f"{type(model).__name__} does not keep keys and values of {len(token_ids)} tokens alike in all layers, and "
            "Prefix Tuning starts from these; leave Prefix Tuning out, or give it fewer numbers to train"
        )
    return torch.cat(parts).permute(2, 0, 1, 3).float()


def _checked_ids(token_ids: Any, name: str) -> list[int]:
    ids = token_ids.tolist() if torch.is_tensor(token_ids) else token_ids
    if not isinstance(ids, Sequence) or not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise InputError(f"{name} is {shown(token_ids)}: expected a list of token ids, at least one")
    return list(ids)


class PrefixedModel(nn.Module):
    """A causal model that sees a trained prefix, with and without a cache, and with padding on either side.

    The forward of PEFT adds the prefix at every call and drops position ids. In generation, with left padding and a
    cache, it would not be the model that was trained.

    Parameters
    ----------
    adapter : peft.PeftModel
        The model with its prefix.
    """

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = adapter.get_base_model().config
        self.generation_config = adapter.get_base_model().generation_config

    def get_base_model(self) -> Any:
        """Return the model inside, whose signature counts."""
        return self.adapter.get_base_model()

    def get_input_embeddings(self) -> Any:
        """Return those of the model inside."""
        return self.get_base_model().get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return those of the model inside."""
        return self.get_base_model().get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Run the model inside. The mask and the positions are those of the text without the prefix."""
        length = self.adapter.active_peft_config.num_virtual_tokens
        earlier = [others.pop(name, None) for name in CACHE_NAMES]
        cache = next((each for each in earlier if each is not None), None)
        if cache is None:
            cache = self.adapter.get_prompt(len(input_ids))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        base = self.get_base_model()
        others[cache_keyword(base) or CACHE_NAMES[0]] = cache
        return base(
            input_ids=input_ids,
            attention_mask=torch.cat([attention_mask.new_ones(len(input_ids), length), attention_mask], dim=1),
            position_ids=position_ids + length,
            **others,
        )
