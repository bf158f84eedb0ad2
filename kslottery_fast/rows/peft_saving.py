"""A warning where PEFT saves an adapter and leaves the attached rows behind.

``PeftModel.save_pretrained`` writes the tensors of its own adapters, and then lets the config of each write itself. The
rows know the model inside the PeftModel, and that model knows the configs. So the config is where they can speak up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from kslottery_fast.base.caller import warn_caller

_MESSAGE = (
    "PEFT saves its adapter without the attached rows; "
    "kslottery_fast.integrations.lora_rows.save_lora_and_rows(model, path) writes LoRA and rows as one adapter, and "
    "kslottery_fast.save_adapter(model, path) writes the rows alone"
)


class _SaveAndTell:
    """``save_pretrained`` of a config of PEFT, and a warning. A class, so that the config can be copied."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        warn_caller(_MESSAGE)
        type(self.config).save_pretrained(self.config, *args, **kwargs)


def tell_on_save(model: nn.Module) -> None:
    """Let the adapters that PEFT has put on a model say, when they are saved, that the rows are not."""
    for config in _configs(model):
        vars(config)["save_pretrained"] = _SaveAndTell(config)


def tell_no_more(model: nn.Module) -> None:
    """Undo :func:`tell_on_save`."""
    for config in _configs(model):
        if isinstance(vars(config).get("save_pretrained"), _SaveAndTell):
            del vars(config)["save_pretrained"]


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        configs = vars(module).get("peft_config")
        if isinstance(configs, dict):
            yield from (config for config in configs.values() if hasattr(type(config), "save_pretrained"))
