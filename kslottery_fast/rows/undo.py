"""Giving a model back its modules, tensors and configs after a change that failed half-way."""

from typing import Any

from torch import nn

_TABLES = ("_parameters", "_buffers", "_modules")


class ModelState:
    """What a model consists of, by reference: no tensor is copied, so values that are overwritten in place are lost."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, _contents(module)) for module in model.modules()]
        self.tensors = [(parameter, parameter.data) for parameter in model.parameters()]
        configs: dict[int, Any] = {}
        for module in model.modules():
            _collect_configs(getattr(module, "config", None), configs)
        self.configs = [(config, dict(vars(config))) for config in configs.values()]

    def restore(self) -> None:
        """Give everything back."""
        for module, contents in self.modules:
            held = vars(module)
            held.clear()
            held.update(contents)
        for parameter, data in self.tensors:
            parameter.data = data
        for config, contents in self.configs:
            vars(config).clear()
            vars(config).update(contents)


def _contents(module: nn.Module) -> dict[str, Any]:
    return {key: dict(value) if key in _TABLES else value for key, value in vars(module).items()}


def _collect_configs(config: Any, found: dict[int, Any]) -> None:
    """Add a config of transformers and those that are parts of it."""
    if not hasattr(config, "get_text_config") or id(config) in found:
        return
    found[id(config)] = config
    for part in vars(config).values():
        _collect_configs(part, found)
