"""LoRA through PEFT, at a given number of trained parameters."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from kslottery_fast.base.arguments import check_integer, check_path
from kslottery_fast.base.errors import InputError

from .adapter_kind import (
    AdapterKind,
    check_peft,
    check_pretrained,
    installed_peft,
    original_again,
    quietly,
)


class Lora(AdapterKind):
    """LoRA on the projections that PEFT adapts by default. A small budget covers the upper layers only."""

    default_rate = 1e-2  # below the best one found, three times which spoils the model (docs/experiments.md)

    @contextlib.contextmanager
    def attached(
        self, model: nn.Module, budget: int, prompt: Sequence[int]
    ) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        """See :meth:`AdapterKind.attached`."""
        peft = installed_peft()
        plan = plan_lora(model, budget)
        # The scale is 2 for every rank, which is the usual choice.
        config = peft.LoraConfig(
            r=plan["rank"],
            lora_alpha=2 * plan["rank"],
            target_modules=plan["modules"],
            layers_to_transform=plan["layers"],
            task_type="CAUSAL_LM",
        )
        with original_again(model, copy=False):
            adapter = quietly(peft.get_peft_model, model, config)
            try:
                yield adapter, plan
            finally:
                adapter.unload()

    @contextlib.contextmanager
    def loaded(self, model: nn.Module, folder: str | os.PathLike[str]) -> Iterator[nn.Module]:
        """See :meth:`AdapterKind.loaded`."""
        check_path(folder, "folder")
        with original_again(model, copy=False):
            adapter = quietly(installed_peft().PeftModel.from_pretrained, model, folder)
            try:
                yield adapter
            finally:
                adapter.unload()


def plan_lora(model: nn.Module, budget: int) -> dict[str, Any]:
    """Plan a LoRA adapter with about a given number of parameters.

    A LoRA adapter on all layers gets the rank that comes nearest to the budget. If the budget is too small for rank 1
    on all layers, the adapter has rank 1 on the upper layers: as many as come nearest to the budget, at least one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model to adapt.
    budget : int
        The number of parameters.

    Returns
    -------
    dict
        ``rank``, ``modules`` and ``layers``.

    Raises
    ------
    InputError
        PEFT knows no default projections for the architecture, or ``budget`` is not a positive integer.
    TypeError
        ``model`` is not a model.
    """
    check_integer(budget, "budget", 1)
    targets = _lora_targets(model)
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


def _lora_targets(model: nn.Module) -> list[str]:
    """Return the names of the projections that PEFT adapts by default."""
    kind = getattr(check_pretrained(model), "model_type", None)
    check_peft()
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    if kind not in DEFAULTS:
        raise InputError(f"PEFT has no default LoRA modules for model type {kind!r}; leave LoRA out")
    return list(DEFAULTS[kind])
